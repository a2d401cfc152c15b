"""A cost model for when nothing can be measured: roofline arithmetic, no timing."""

from __future__ import annotations

import math

from sparsecore import _C
from sparsecore.formats.packed_int8 import FEW_ROWS
from sparsecore.tune.candidates import INTEGER_FORMATS, MOST_BITMAP_ROWS, WeightStatistics
from sparsecore.tune.makers import DENSE

# Shares of the FMA peak as measured (benchmarks/NOTES.md; of bitmaps predicted, and with their zeros), at many columns
# of activations. Their ratio decides; the peak itself cancels out.
DENSE_SHARE = 0.75
SHARES = {"csr": 0.3, "jit": 0.75, "panel": 0.45, "4x1": 0.6, "8x1": 0.6, "block": 0.6, "bitmap": 0.6}
# Code is read in the time that it takes to compute with it on so many columns.
JIT_COLUMNS = 40
# Binary and ternary weights, whose zeros are work too, as measured. Their tables, and in a convolution the unfolded
# image, are made once for all rows and cost as much as some of them.
PLANES = {"binary": 0.25, "ternary": 0.45}
PLANES_ROWS = 256
# Depthwise convolutions of ours over PyTorch's, both in [batch, C, H, W].
DEPTHWISE = 0.6
# One column of activations is bound by bytes: 4 per dense weight, 8 per stored entry, and gathers on top.
DENSE_BYTES = 4.0
SPARSE_BYTES = 8.0
GATHER = 1.5
# Dense int8 over dense float32 at many columns of activations: with and without dot products of bytes.
INT8_WITH_VNNI, INT8_WITHOUT = 0.3, 0.65
# A step of table lookup over the dot product of as many dense weights.
LOOKUP_STEP = 1.7
# With 4-bit values: a step over one of int8, as measured, and scale and sum of a row's 256 columns.
INT4_STEP = 1.3
GROUP_BYTES = 6 / 256
# A bit for each weight beside its entries. And a mask of 16 weights costs about 1.5 cycles, of the 10 in which their 64
# dense bytes come from memory (prediction).
BITMAP_BYTES = 0.125
BITMAP_WORK = 0.15


def relative_time(format_name: str, weight: WeightStatistics, columns: int) -> float:
    """Time of a format over the time of dense float32, predicted.

    Args:
        format_name: a format of ``candidates.CANDIDATES``.
        weight: size and non-zeros.
        columns: columns of activations that the layer runs on at once; 0 is unknown and counts as many.
    """
    if format_name == DENSE:
        return 1.0
    if format_name == "depthwise":
        return DEPTHWISE
    if format_name in PLANES:
        return PLANES[format_name] * (1 + PLANES_ROWS / max(weight.N, 1))
    density = 1.0 - weight.sparsity
    if format_name in INTEGER_FORMATS:
        return _relative_int8_time(format_name, density, columns)
    if format_name == "bitmap":
        if not 0 < columns <= MOST_BITMAP_ROWS:  # it multiplies with its zeros too
            return DENSE_SHARE / SHARES["bitmap"]
        return max((BITMAP_BYTES + density * DENSE_BYTES) / DENSE_BYTES, BITMAP_WORK)
    if columns == 1 and format_name not in ("jit", "panel"):
        return density * SPARSE_BYTES / DENSE_BYTES * GATHER
    # A panel kernel computes a whole vector of columns, however few there are.
    padding = 8 / columns if format_name == "panel" and 0 < columns < 8 else 1.0
    if format_name == "jit" and columns > 0:
        padding = 1 + JIT_COLUMNS / columns
    return density * padding * DENSE_SHARE / SHARES[format_name]


def _relative_int8_time(format_name: str, density: float, columns: int) -> float:
    slots = _slots(density, columns)
    bytes_per_weight = {
        "int8": 1.0,
        "lookup int8": 2 * slots,
        "bitmap int8": 1 / 8 + density,
        "lookup int4": slots + GROUP_BYTES,
    }[format_name]
    work = {
        "int8": 1.0,
        "lookup int8": LOOKUP_STEP * slots,
        "bitmap int8": 1.3,
        "lookup int4": LOOKUP_STEP * INT4_STEP * slots,
    }[format_name]
    has_vnni = _C.isa().endswith(("vnni", "vbmi", "amx", "neondot"))
    if columns == 1:
        return max(bytes_per_weight, work / 4) / DENSE_BYTES
    return work * (INT8_WITH_VNNI if has_vnni else INT8_WITHOUT)


def _slots(density: float, columns: int) -> float:
    """Slots per dense weight of the lookup format: the fullest of a block's rows decides, in fours."""
    _, table, _ = _C.int8_packing(0 < columns <= FEW_ROWS)
    mean = table * density
    fullest = mean + 1.8 * math.sqrt(mean * (1 - density))  # of 8 to 16 rows, if zeros fall at random
    return 4 * math.ceil(fullest / 4) / table
