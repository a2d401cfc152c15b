"""Which of our formats is the fastest: for every layer at every share of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsecore.bench.kernels.compare import Comparison, Row, label, sparsities, speedup


@dataclass(frozen=True)
class Win:
    """The fastest of our formats for one layer at one share of zeros.

    Attributes:
        format: Its name.
        over_float32: Speed-up over the fastest dense float32 of all libraries, None if none was measured.
        over_int8: The same over the fastest dense int8 of the peers.
    """

    format: str
    over_float32: float | None
    over_int8: float | None


@dataclass(frozen=True)
class LayerWins:
    """The winners of one layer.

    Attributes:
        layer: Of a report.
        fastest: Share of zeros to the fastest of all our formats.
        fastest_float32: The same among the formats that compute in float32.
    """

    layer: Row
    fastest: dict[float, Win]
    fastest_float32: dict[float, Win]


@dataclass(frozen=True)
class Group:
    """Layers that are shown together.

    Attributes:
        title: What they are.
        sparsities: Shares of zeros that were measured, rising.
        layers: The layers, at least one.
    """

    title: str
    sparsities: Sequence[float]
    layers: Sequence[LayerWins]


def winners(comparisons: Sequence[Comparison]) -> list[Group]:
    """Find the winners of every layer.

    Args:
        comparisons: Of one report.

    Returns:
        Linear layers by their rows of activations M, then convolutions, each in the order of the report; a group
        without layers, and a layer that none of our formats was measured on, are left out.
    """
    by_layer: dict[str, LayerWins] = {}
    for comparison in comparisons:
        name = comparison.layer["name"]
        wins = by_layer.setdefault(name, LayerWins(comparison.layer, {}, {}))
        for found, ours in ((wins.fastest, comparison.ours_any), (wins.fastest_float32, comparison.ours)):
            if ours is not None:
                found[comparison.cell["sparsity"]] = _win(comparison, ours)
    layers = [wins for wins in by_layer.values() if wins.fastest]
    linear = sorted((wins for wins in layers if not is_conv(wins.layer)), key=lambda wins: wins.layer["columns"])
    convolutions = [wins for wins in layers if is_conv(wins.layer)]
    shares = sparsities(comparisons)
    titled = (("linear layers", linear), ("convolutions", convolutions))
    return [Group(title, shares, members) for title, members in titled if members]


def is_conv(layer: Row) -> bool:
    """Whether a layer of a report is a convolution."""
    return bool(layer["kernel"])


def _win(comparison: Comparison, ours: Row) -> Win:
    return Win(label(ours), speedup(comparison.dense, ours), speedup(comparison.dense_int8, ours))
