"""What the times say: ours over dense, over the best of all peers, means, and from which sparsity on it pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsecore.bench.kernels.layers import FEW_ROWS, KINDS, MANY_ROWS, ONE_ROW
from sparsecore.bench.kernels.libraries import OURS, PEERS
from sparsecore.bench.peers.candidate import FLOAT32, INT4, INT8

Row = Mapping[str, Any]
# Layers too small for a mean: they measure the cost of a call.
MIN_COLUMNS, MIN_K = MANY_ROWS, 128
ALL = "all, 16 columns and more"
DENSE = "dense"
ONNX_RUNTIME = PEERS["onnxruntime"].name


@dataclass(frozen=True)
class Comparison:
    """One layer at one sparsity.

    Attributes:
        cell: Of a report.
        dense: The fastest dense float32 of all libraries, or None.
        ours: Our fastest sparse float32 format.
        ours_any: Our fastest format, int8 included.
        our_int4: Our fastest with 4-bit weights, which is not in ``ours_any``.
        peer: The fastest that is not ours, int8 and dense included.
        peer_int4: The fastest of the others with 4-bit weights, which lose far more accuracy and are not in ``peer``.
        dense_int8: The fastest dense int8 of the others.
        onnx_int8: ONNX Runtime's fastest dense int8.
        our_dense_int8: Our fastest dense int8.
        our_sparse_int8: Our fastest sparse int8 format.
    """

    cell: Row
    dense: Row | None
    ours: Row | None
    ours_any: Row | None
    our_int4: Row | None
    peer: Row | None
    peer_int4: Row | None
    dense_int8: Row | None
    onnx_int8: Row | None
    our_dense_int8: Row | None
    our_sparse_int8: Row | None

    @property
    def layer(self) -> Row:
        layer: Row = self.cell["layer"]
        return layer

    @property
    def over_dense(self) -> float | None:
        """Speed-up of ours over dense, both float32."""
        return speedup(self.dense, self.ours)

    @property
    def cold_over_dense(self) -> float | None:
        """The same for the first call of a turn, on caches that the others left."""
        return speedup(self.dense, self.ours, "first_us")

    @property
    def over_peers(self) -> float | None:
        """Speed-up of our fastest over the fastest of the others, any type against any type."""
        return speedup(self.peer, self.ours_any)

    @property
    def over_int4(self) -> float | None:
        """Speed-up of our fastest of 8 bits and more over the fastest of the others with 4-bit weights."""
        return speedup(self.peer_int4, self.ours_any)

    @property
    def int4_over_int4(self) -> float | None:
        """Speed-up between the fastest with 4-bit weights, the others' and ours."""
        return speedup(self.peer_int4, self.our_int4)

    @property
    def share_of_peak(self) -> float | None:
        """Share of the float32 multiply-add peak that ours reaches, counting non-zeros only."""
        return self.ours["share_of_peak"] if self.ours else None


def compare(cell: Row) -> Comparison:
    """Pick the fastest of every sort from a cell; wrong and unfinished candidates do not count."""
    timed = [candidate for candidate in cell["candidates"] if candidate.get("us") and not candidate["wrong"]]
    ours = [candidate for candidate in timed if is_ours(candidate)]
    others = [candidate for candidate in timed if not is_ours(candidate)]
    our_int8 = [candidate for candidate in ours if candidate["dtype"] == INT8]
    dense_int8 = [candidate for candidate in others if candidate["dtype"] == INT8 and not candidate["sparse"]]
    return Comparison(
        cell,
        dense=_fastest(c for c in others if c["dtype"] == FLOAT32 and not c["sparse"]),
        ours=_fastest(c for c in ours if c["dtype"] == FLOAT32 and c["sparse"]),
        ours_any=_fastest(c for c in ours if c["dtype"] != INT4),
        our_int4=_fastest(c for c in ours if c["dtype"] == INT4),
        peer=_fastest(c for c in others if c["dtype"] != INT4),
        peer_int4=_fastest(c for c in others if c["dtype"] == INT4),
        dense_int8=_fastest(dense_int8),
        onnx_int8=_fastest(c for c in dense_int8 if c["library"] == ONNX_RUNTIME),
        our_dense_int8=_fastest(c for c in our_int8 if not c["sparse"]),
        our_sparse_int8=_fastest(c for c in our_int8 if c["sparse"]),
    )


def speedup(slow: Row | None, fast: Row | None, what: str = "us") -> float | None:
    """How many times as fast one candidate is as another; None where one was not measured."""
    if slow is None or fast is None or not fast[what]["median_us"]:
        return None
    ratio: float = slow[what]["median_us"] / fast[what]["median_us"]
    return ratio


def is_ours(candidate: Row) -> bool:
    """Computed by our kernels; the dense layer in our process is PyTorch's."""
    return candidate["library"] == OURS.name and candidate["name"] != DENSE


def label(candidate: Row) -> str:
    """Library and candidate; of ours the format alone, of a plain dense layer the library alone."""
    name: str = candidate["name"]
    if is_ours(candidate):
        return name
    library = "torch" if candidate["library"] == OURS.name else candidate["library"]
    return library if name == DENSE else f"{library} {name}"


def losses(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those where a peer is faster than all of ours, the worst first."""
    lost = [(c.over_peers, c) for c in comparisons if c.over_peers is not None and c.over_peers < 1]
    return [comparison for _, comparison in sorted(lost, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Mean:
    """Geometric means of a group of layers at one sparsity; None where nothing was measured."""

    sparsity: float
    group: str
    layers: int
    over_dense: float | None
    over_peers: float | None
    over_int4: float | None
    int4_over_int4: float | None
    share_of_peak: float | None


def means(comparisons: Sequence[Comparison]) -> list[Mean]:
    """Means for every sparsity and group: all layers of 16 columns and more and K of 128 and more, then every kind.

    One row of activations and a few rows are kinds of their own, and not among all.
    """
    return [
        Mean(
            sparsity,
            group,
            len(members),
            *(
                geometric_mean(getattr(c, name) for c in members)
                for name in ("over_dense", "over_peers", "over_int4", "int4_over_int4", "share_of_peak")
            ),
        )
        for sparsity in sparsities(comparisons)
        for group in (ALL, *KINDS)
        if (members := [c for c in comparisons if c.cell["sparsity"] == sparsity and _is_in(c.layer, group)])
    ]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there and above zero."""
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


def sparsities(comparisons: Iterable[Comparison]) -> list[float]:
    """The sparsities that were measured, rising."""
    return sorted({comparison.cell["sparsity"] for comparison in comparisons})


def _is_in(layer: Row, group: str) -> bool:
    if layer["K"] < MIN_K:
        return False
    if layer["kind"] in (ONE_ROW, FEW_ROWS):
        return bool(group == layer["kind"])
    return layer["columns"] >= MIN_COLUMNS and group in (ALL, layer["kind"])


CROSSES, BELOW, NEVER = "crosses", "below", "never"


@dataclass(frozen=True)
class BreakEven:
    """From which sparsity on ours is faster.

    Attributes:
        state: ``"crosses"`` at ``sparsity``; ``"below"``: faster at all that were measured, the least of them is
            ``sparsity``; ``"never"``: slower at the highest, which is ``sparsity``.
        sparsity: See ``state``.
    """

    state: str
    sparsity: float

    def __str__(self) -> str:
        sign = {CROSSES: "", BELOW: "<= ", NEVER: "> "}[self.state]
        return f"{sign}{self.sparsity:.0%}"


def break_even(speedups: Mapping[float, float]) -> BreakEven | None:
    """Find where a speed-up reaches 1 for good.

    Args:
        speedups: Sparsity to speed-up.

    Returns:
        The place, the logarithm of the speed-up interpolated linearly between the two sparsities around it; None
        without any speed-up.
    """
    points = sorted(speedups.items())
    if not points:
        return None
    slower = [i for i, (_, speedup) in enumerate(points) if speedup < 1]
    if not slower:
        return BreakEven(BELOW, points[0][0])
    last = slower[-1]
    if last == len(points) - 1:
        return BreakEven(NEVER, points[-1][0])
    (left, low), (right, high) = points[last : last + 2]
    share = -math.log(low) / (math.log(high) - math.log(low))
    return BreakEven(CROSSES, left + share * (right - left))


def break_evens(comparisons: Sequence[Comparison]) -> dict[str, BreakEven]:
    """Break-even over dense float32 of every group's mean."""
    curves: dict[str, dict[float, float]] = {}
    for mean in means(comparisons):
        if mean.over_dense is not None:
            curves.setdefault(mean.group, {})[mean.sparsity] = mean.over_dense
    return _break_evens(curves)


def layer_break_evens(comparisons: Iterable[Comparison]) -> dict[str, BreakEven]:
    """Break-even over dense float32 of every layer."""
    curves: dict[str, dict[float, float]] = {}
    for comparison in comparisons:
        if comparison.over_dense is not None:
            curves.setdefault(comparison.layer["name"], {})[comparison.cell["sparsity"]] = comparison.over_dense
    return _break_evens(curves)


def _break_evens(curves: Mapping[str, Mapping[float, float]]) -> dict[str, BreakEven]:
    return {name: found for name, curve in curves.items() if (found := break_even(curve))}


def conclusions(cells: Iterable[Row]) -> dict[str, Any]:
    """Everything above as JSON: ``means``, and ``break_even`` of groups and layers."""
    comparisons = [compare(cell) for cell in cells]
    return {
        "means": [asdict(mean) for mean in means(comparisons)],
        "break_even": {
            "groups": _as_json(break_evens(comparisons)),
            "layers": _as_json(layer_break_evens(comparisons)),
        },
    }


def _as_json(found: Mapping[str, BreakEven]) -> dict[str, Any]:
    return {name: asdict(place) for name, place in found.items()}


def _fastest(candidates: Iterable[Row]) -> Row | None:
    return min(candidates, key=lambda candidate: candidate["us"]["median_us"], default=None)
