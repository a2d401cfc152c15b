"""Speed-up against sparsity as an SVG that reads on white and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecore.bench.kernels.compare import CROSSES, Comparison, Mean, break_evens, compare, means, sparsities
from sparsecore.bench.kernels.layers import FEW_ROWS, KINDS, LINEAR, ONE_ROW, POINTWISE, SPATIAL
from sparsecore.bench.svg import INK, new_figure, save, title_of

# Mid tones that read on a light and on a dark page alike.
COLORS = {LINEAR: "#3b82c4", POINTWISE: "#e08a2e", SPATIAL: "#2f9e6e", ONE_ROW: "#b565b8", FEW_ROWS: "#c4564a"}
PANEL_INCHES = (5.2, 3.8)
# Points of the kinds side by side, not on top of each other.
OFFSET = 0.004
TICKS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw reports side by side: geometric mean of every kind of layer, and each layer as a point.

    Args:
        reports: Of `run.measure`, at least one.
        path: The SVG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: There is no speed-up in any report.
    """
    if not any(map(is_drawable, reports)):
        raise ValueError("expected a layer that ours and a dense float32 were measured on, got none")
    compared = [[compare(cell) for cell in report["cells"]] for report in reports]
    width, height = PANEL_INCHES
    with new_figure(width * len(reports), height) as figure:
        panels = figure.subplots(1, len(reports), sharey=True, squeeze=False)[0]
        for axes, report, comparisons in zip(panels, reports, compared, strict=True):
            _draw_panel(axes, comparisons)
            axes.set_title(title_of(report["machine"]), color=INK, fontsize=9)
        panels[0].set_ylabel("speed-up over the best dense float32")
        save(figure, path)


def is_drawable(report: Mapping[str, Any]) -> bool:
    """Whether there is a speed-up in a report."""
    return any(compare(cell).over_dense for cell in report["cells"])


def _draw_panel(axes: Any, comparisons: Sequence[Comparison]) -> None:
    crossings = break_evens(comparisons)
    for i, kind in enumerate(KINDS):
        curve = [mean for mean in means(comparisons) if mean.group == kind and mean.over_dense]
        if curve:
            crossing = crossings[kind]
            _draw_kind(axes, kind, curve, f"{kind}, from {crossing}")
            _draw_points(axes, kind, comparisons, (i - (len(KINDS) - 1) / 2) * OFFSET)
            if crossing.state == CROSSES:
                axes.plot(crossing.sparsity, 1, "o", color=COLORS[kind], markerfacecolor="none", markersize=8)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    places = sparsities(comparisons)
    axes.set_xticks(places, [f"{place:.0%}" for place in places])
    axes.set_xlabel("zeros in the weight")
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _draw_kind(axes: Any, kind: str, curve: Sequence[Mean], text: str) -> None:
    axes.plot(
        [mean.sparsity for mean in curve],
        [mean.over_dense for mean in curve],
        color=COLORS[kind],
        linewidth=1.8,
        marker=".",
        label=text,
    )


def _draw_points(axes: Any, kind: str, comparisons: Sequence[Comparison], offset: float) -> None:
    points = [
        (c.cell["sparsity"] + offset, c.over_dense)
        for c in comparisons
        if c.layer["kind"] == kind and c.over_dense is not None
    ]
    axes.scatter(*zip(*points, strict=True), s=7, color=COLORS[kind], alpha=0.4, linewidths=0)
