"""A cost model for when nothing can be measured: roofline arithmetic, no timing."""

from __future__ import annotations

from sparsecore.tune.candidates import DENSE, WeightStatistics

# Shares of the FMA peak that were measured on AVX2 machines (benchmarks/NOTES.md): dense libraries about 0.7, CSR
# float 0.2 at 90% sparsity. Their ratio decides; the peak itself cancels out.
DENSE_SHARE = 0.7
SPARSE_SHARE = 0.2
# One column of activations is bound by bytes: 4 per dense weight, 8 per stored entry, and gathers on top.
DENSE_BYTES = 4.0
SPARSE_BYTES = 8.0
GATHER = 1.5


def relative_time(format_name: str, weight: WeightStatistics, columns: int) -> float:
    """Time of a format over the time of dense float32, predicted.

    Args:
        format_name: a format of ``candidates.CANDIDATES``.
        weight: size and non-zeros.
        columns: columns of activations that the layer runs on at once; 0 is unknown and counts as many.
    """
    if format_name == DENSE:
        return 1.0
    density = 1.0 - weight.sparsity
    if format_name == "int8":
        return 0.5 if columns == 1 else 0.8
    if columns == 1:
        return density * SPARSE_BYTES / DENSE_BYTES * GATHER
    return density * DENSE_SHARE / SPARSE_SHARE
