"""What the times say about int8: dense and sparse beside the peers' dense int8, the int8 peak, bytes per second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, mode

from sparsecore.bench.kernels.compare import Comparison, Row, geometric_mean, is_ours, label, speedup
from sparsecore.bench.kernels.layers import FEW_ROWS, ONE_ROW

# A VNNI instruction does four int8 multiply-adds where a float32 one does one, on vectors of the same width.
INT8_OVER_FMA = 4
VNNI_ISAS = ("avxvnni", "avx512vnni", "avx512vbmi")


@dataclass(frozen=True)
class LayerInt8:
    """int8 on one layer. Dense figures are the mean over the shares of zeros, which dense int8 does not depend on.

    Attributes:
        layer: Of a report.
        peer: The dense int8 of the peers that was the fastest most often.
        peer_us: Median over the shares of zeros of the fastest dense int8 of the peers.
        ours_us: The same of our dense int8.
        dense_over_peer: Speed-up of our dense int8 over the fastest of the peers, geometric mean.
        dense_over_onnx: The same over ONNX Runtime's fastest.
        share_of_peak: Share of the int8 peak that our dense int8 reaches; None without VNNI.
        sparse_over_peer: Share of zeros to the speed-up of our fastest sparse int8 over the peers' dense int8.
        behind: Shares of zeros at which the peers' dense int8 is faster than everything of ours.
    """

    layer: Row
    peer: str | None
    peer_us: float | None
    ours_us: float | None
    dense_over_peer: float | None
    dense_over_onnx: float | None
    share_of_peak: float | None
    sparse_over_peer: dict[float, float]
    behind: tuple[float, ...]


def int8_layers(comparisons: Sequence[Comparison], isa: str) -> list[LayerInt8]:
    """Sum up int8 for every layer.

    Args:
        comparisons: Of one report.
        isa: The instruction set of that report's machine.

    Returns:
        The layers in the order of the report, without those that nobody's dense int8 was measured on.
    """
    by_layer: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if comparison.dense_int8 or comparison.our_dense_int8:
            by_layer.setdefault(comparison.layer["name"], []).append(comparison)
    return [_layer(members, isa) for members in by_layer.values()]


def _layer(comparisons: Sequence[Comparison], isa: str) -> LayerInt8:
    peers = [c.dense_int8 for c in comparisons if c.dense_int8]
    ours = [c.our_dense_int8 for c in comparisons if c.our_dense_int8]
    sparse = {c.cell["sparsity"]: speedup(c.dense_int8, c.our_sparse_int8) for c in comparisons}
    ahead = {c.cell["sparsity"]: speedup(c.dense_int8, c.ours_any) for c in comparisons}
    return LayerInt8(
        comparisons[0].layer,
        peer=mode(map(label, peers)) if peers else None,
        peer_us=_median_us(peers),
        ours_us=_median_us(ours),
        dense_over_peer=geometric_mean(speedup(c.dense_int8, c.our_dense_int8) for c in comparisons),
        dense_over_onnx=geometric_mean(speedup(c.onnx_int8, c.our_dense_int8) for c in comparisons),
        share_of_peak=geometric_mean(_share_of_peak(c) for c in comparisons) if isa in VNNI_ISAS else None,
        sparse_over_peer={share: ratio for share, ratio in sparse.items() if ratio is not None},
        behind=tuple(sorted(share for share, ratio in ahead.items() if ratio is not None and ratio < 1)),
    )


def _median_us(candidates: Iterable[Row]) -> float | None:
    return median(times) if (times := [candidate["us"]["median_us"] for candidate in candidates]) else None


def _share_of_peak(comparison: Comparison) -> float | None:
    """From the share of the float32 peak that counts non-zeros, while dense int8 multiplies with the zeros too."""
    ours, nnz = comparison.our_dense_int8, comparison.cell["nnz"]
    if ours is None or not ours["share_of_peak"] or not nnz:
        return None
    share: float = ours["share_of_peak"] * comparison.layer["N"] * comparison.layer["K"] / nnz / INT8_OVER_FMA
    return share


@dataclass(frozen=True)
class Goal:
    """A figure beside what it is to be at least; ``reached`` is what was measured, ``where`` the layer if it is one."""

    title: str
    least: float
    reached: float
    where: str = ""

    @property
    def is_met(self) -> bool:
        return self.reached >= self.least


MEAN_OVER_ONNX, WORST_OVER_ONNX = 0.95, 0.8


def goals(layers: Iterable[LayerInt8]) -> list[Goal]:
    """Compare our dense int8 with ONNX Runtime's over all layers; nothing where that was not measured."""
    speedups = {found.layer["name"]: found.dense_over_onnx for found in layers if found.dense_over_onnx}
    mean = geometric_mean(speedups.values())
    if mean is None:
        return []
    worst = min(speedups, key=speedups.__getitem__)
    over = "dense int8 over ONNX Runtime's"
    return [
        Goal(f"{over}, geometric mean", MEAN_OVER_ONNX, mean),
        Goal(f"{over}, worst layer", WORST_OVER_ONNX, speedups[worst], worst),
    ]


@dataclass(frozen=True)
class WeightRead:
    """How fast one of our formats goes through its weight.

    Attributes:
        gbps: Bytes of the packed weight over the time of a call, 10^9 bytes per second.
        bits: Bits of the packed weight per entry of the dense one.
    """

    gbps: float
    bits: float


def weight_reads(comparison: Comparison) -> dict[str, WeightRead]:
    """Format to what it reads, of a linear layer with 1 to 15 rows of activations; empty for any other layer."""
    layer = comparison.layer
    if layer["kind"] not in (ONE_ROW, FEW_ROWS):
        return {}
    entries = layer["N"] * layer["K"]
    return {
        label(candidate): WeightRead(
            candidate["weight_bytes"] / candidate["us"]["median_us"] / 1e3, 8 * candidate["weight_bytes"] / entries
        )
        for candidate in comparison.cell["candidates"]
        if is_ours(candidate) and candidate.get("us") and not candidate["wrong"] and candidate.get("weight_bytes")
    }
