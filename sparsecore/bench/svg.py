"""Figures as SVG files that read on white and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsecore.bench.text_table import count_threads
from sparsecore.errors import require_extra

# A mid tone that reads on a light and on a dark page alike.
INK = "#808891"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sparsecore",  # the same data gives the same file
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of this size in inches, in our style while the block lasts.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require_extra("matplotlib", "bench")
    figure_module = require_extra("matplotlib.figure", "bench")
    with matplotlib.rc_context(STYLE):
        yield figure_module.Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a figure; the same figure gives the same file."""
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def title_of(machine: Mapping[str, Any]) -> str:
    """CPU, instruction set and threads."""
    return f"{machine['cpu']}, {machine['isa']}, {count_threads(machine['threads'])}"
