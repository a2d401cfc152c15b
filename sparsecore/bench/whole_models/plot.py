"""Times as bars, one panel per number of threads and batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecore.bench.report import format_speedup
from sparsecore.bench.svg import INK, new_figure, save, title_of
from sparsecore.bench.whole_models.compare import Comparison, compare, is_ours, label
from sparsecore.bench.whole_models.tables import zeros

OURS_COLOR, OTHERS_COLOR = "#3b82c4", "#8a939e"
WIDTH_INCHES, BAR_INCHES, MARGIN_INCHES = 9.0, 0.22, 0.9


def is_drawable(report: Mapping[str, Any]) -> bool:
    """Whether anything was timed."""
    return any(compare(cell).rows for cell in report["cells"])


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw milliseconds of every candidate, one panel per cell, with the speed-up over the best dense peer.

    Args:
        report: Of `run.measure`.
        path: The SVG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: Nothing was timed.
    """
    if not is_drawable(report):
        raise ValueError("expected a report with times, got none")
    comparisons = [comparison for cell in report["cells"] if (comparison := compare(cell)).rows]
    lengths = [len(comparison.rows) for comparison in comparisons]
    height = sum(length * BAR_INCHES + MARGIN_INCHES for length in lengths)
    with new_figure(WIDTH_INCHES, height) as figure:
        panels = figure.subplots(len(comparisons), 1, squeeze=False, gridspec_kw={"height_ratios": lengths})[:, 0]
        for axes, comparison in zip(panels, comparisons, strict=True):
            _draw_panel(axes, comparison)
            cell = comparison.cell
            machine = title_of(report["machine"] | {"threads": cell["threads"]})
            title = f"{report['model']}, batch {cell['batch']}, {zeros(cell)} zeros; {machine}"
            axes.set_title(title, color=INK, fontsize=9)
        save(figure, path)


def _draw_panel(axes: Any, comparison: Comparison) -> None:
    rows = comparison.rows
    times = [row["us"]["median_us"] / 1e3 for row in rows]
    colors = [OURS_COLOR if is_ours(row) else OTHERS_COLOR for row in rows]
    bars = axes.barh([label(row) for row in rows], times, color=colors)
    speedups = [format_speedup(comparison.over_dense(row)) for row in rows]
    texts = [f"{time:.3g} ms, {speedup}" for time, speedup in zip(times, speedups, strict=True)]
    axes.bar_label(bars, texts, padding=3, color=INK, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("milliseconds, and speed-up over the best dense peer")
    axes.spines[["top", "right"]].set_visible(False)
