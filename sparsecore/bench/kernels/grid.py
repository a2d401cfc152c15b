"""Which of our formats wins, as an SVG: layers down, shares of zeros across, a color per format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecore.bench.kernels.compare import Row, compare
from sparsecore.bench.kernels.formats import Group, LayerWins, Win, is_conv, winners
from sparsecore.bench.svg import INK, new_figure, save, title_of
from sparsecore.errors import require_extra

# Cold colors compute in float32, warm ones in int8; all dark enough for white figures on them.
COLORS = {
    "jit": "#7b3fa0",
    "panel": "#2f6db3",
    "4x1": "#5f6fd0",
    "8x1": "#8456b8",
    "bitmap": "#1f8a84",
    "csr": "#4d8a3f",
    "int8": "#b0681a",
    "lookup int8": "#c2403a",
    "bitmap int8": "#bb4a86",
}
WIDTH_INCHES = 10.4  # 1000 pixels
ROW_INCHES = 0.2
MARGIN_INCHES = 0.75  # above and below the rows of a report
LEGEND_INCHES = 0.6
GAP = 0.06  # between cells, in cells
NOTE = (
    "color: our fastest format; figure: how many times as fast as the best dense int8 of the peers "
    "(f: as the best dense float32, no int8 was measured); framed: slower than that"
)


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw reports below each other, linear layers by M on the left and convolutions on the right.

    Args:
        reports: Of `run.measure`, at least one.
        path: The SVG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: There is no speed-up in any report.
    """
    reports = [report for report in reports if is_drawable(report)]
    if not reports:
        raise ValueError("expected a layer that ours and a dense peer were measured on, got none")
    grouped = [{group.title: group for group in _groups(report)} for report in reports]
    titles = list(dict.fromkeys(title for groups in grouped for title in groups))
    lengths = [max(len(group.layers) for group in groups.values()) for groups in grouped]
    heights = [length * ROW_INCHES + MARGIN_INCHES for length in lengths]
    with new_figure(WIDTH_INCHES, sum(heights) + LEGEND_INCHES) as figure:
        panels = figure.subplots(len(reports), len(titles), squeeze=False, gridspec_kw={"height_ratios": [*lengths]})
        for row, report, groups, length in zip(panels, reports, grouped, lengths, strict=True):
            for axes, title in zip(row, titles, strict=True):
                if title in groups:
                    _draw_panel(axes, groups[title], length)
                    axes.set_title(f"{title}, {title_of(report['machine'])}", color=INK, fontsize=9)
                else:
                    axes.set_axis_off()
        _draw_legend(figure, grouped)
        save(figure, path)


def is_drawable(report: Mapping[str, Any]) -> bool:
    """Whether there is a speed-up in a report."""
    return any(
        speedup is not None
        for group in _groups(report)
        for wins in group.layers
        for win in wins.fastest.values()
        for speedup in (win.over_int8, win.over_float32)
    )


def _groups(report: Mapping[str, Any]) -> list[Group]:
    return winners([compare(cell) for cell in report["cells"]])


def _draw_panel(axes: Any, group: Group, length: int) -> None:
    """One cell per layer and share of zeros; ``length`` rows high, however many layers there are."""
    for y, wins in enumerate(group.layers):
        for x, share in enumerate(group.sparsities):
            if share in wins.fastest:
                _draw_cell(axes, x, y, wins.fastest[share])
    for y in _steps(group.layers):
        axes.axhline(y, color=INK, linewidth=0.8)
    axes.set_xlim(0, len(group.sparsities))
    axes.set_ylim(length, 0)
    axes.set_xticks([x + 0.5 for x in range(len(group.sparsities))], [f"{share:.0%}" for share in group.sparsities])
    axes.set_yticks([y + 0.5 for y in range(len(group.layers))], [_name(wins.layer) for wins in group.layers])
    axes.tick_params(length=0, labelsize=8, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: Any, x: int, y: int, win: Win) -> None:
    patches = require_extra("matplotlib.patches", "bench")
    speedup = win.over_float32 if win.over_int8 is None else win.over_int8
    is_slower = speedup is not None and round(speedup, 2) < 1  # as it is written
    color = COLORS.get(win.format, INK)
    axes.add_patch(
        patches.Rectangle(
            (x + GAP / 2, y + GAP),
            1 - GAP,
            1 - 2 * GAP,
            facecolor="none" if is_slower else color,
            edgecolor=color,
            linewidth=1,
        )
    )
    text = "-" if speedup is None else f"{speedup:.2f}{' f' if win.over_int8 is None else ''}"
    ink = color if is_slower else "white"
    axes.text(x + 0.5, y + 0.5, text, color=ink, fontsize=8, ha="center", va="center_baseline")


def _steps(layers: Sequence[LayerWins]) -> list[int]:
    """Between which rows the number of rows of activations changes."""
    sizes = [None if is_conv(wins.layer) else wins.layer["columns"] for wins in layers]
    return [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]]


def _name(layer: Row) -> str:
    """Its name without what the title of the panel says."""
    if is_conv(layer):
        return str(layer["name"]).removeprefix("conv ")
    return f"{layer['N']}x{layer['C']}, M = {layer['columns']}"


def _draw_legend(figure: Any, grouped: Sequence[Mapping[str, Group]]) -> None:
    patches = require_extra("matplotlib.patches", "bench")
    present = {
        win.format
        for groups in grouped
        for group in groups.values()
        for wins in group.layers
        for win in wins.fastest.values()
    }
    names = [*(name for name in COLORS if name in present), *sorted(present - COLORS.keys())]
    figure.legend(
        handles=[patches.Patch(color=COLORS.get(name, INK), label=name) for name in names],
        title=NOTE,
        title_fontsize=8,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
        labelcolor=INK,
        fontsize=8,
    )
