"""What a run did to its model: a row after each strategy, as text, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.atomic import replacing
from sparsecore.bench.report import format_bytes, format_us
from sparsecore.bench.text_table import Table
from sparsecore.errors import MissingExtraError
from sparsecore.nn import CompressedModule

_HEADINGS = ("after", "epoch", "metric", "parameters", "non-zeros", "multiply-adds", "on disk", "one run")


@dataclass(frozen=True)
class Row:
    """The model at one moment of a run.

    Attributes:
        after: What was done last.
        epoch: Epochs trained.
        metric: By the recipe's metric, higher is better.
        parameters: Numbers in parameters.
        nonzeros: Those of them that are not zero.
        multiply_adds: Of one run on the example, stored zeros included; None for layers that are not PyTorch's own.
        disk_bytes: Size of the file that ``save()`` makes of it.
        median_us: Median time of one run on the example, in microseconds.
        q25_us: Lower quartile of that time.
        q75_us: Upper quartile.
    """

    after: str
    epoch: int
    metric: float
    parameters: int
    nonzeros: int
    multiply_adds: int | None
    disk_bytes: int
    median_us: float
    q25_us: float
    q75_us: float


@dataclass(frozen=True)
class CompressionReport:
    """Rows in the order of the run; prints as a table.

    Attributes:
        rows: The first is the model as it was given; the last one what was saved.
        changes: Cuts and replacements that a fresh model needs before the file fits, see :func:`load_result`.
        latency: Median microseconds of one run on the example, of the model as it was given, as it is now in
            PyTorch, and compiled, all from one interleaved run at the end.
        machine: Where it was measured.
    """

    rows: tuple[Row, ...]
    changes: tuple[Mapping[str, Any], ...] = ()
    latency: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "changes": [dict(change) for change in self.changes],
            "latency": dict(self.latency),
            "machine": dict(self.machine),
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> CompressionReport:
        """Read what :meth:`to_dict` returned."""
        return CompressionReport(
            tuple(Row(**row) for row in content["rows"]),
            tuple(content["changes"]),
            content["latency"],
            content["machine"],
        )

    def table(self) -> Table:
        """Return the rows as a table."""
        return Table("Compressed", _HEADINGS, [_cells(row) for row in self.rows])

    def markdown(self) -> str:
        """Return the table and the times as Markdown."""
        return "\n\n".join([self.table().markdown(), *self.notes()]) + "\n"

    def notes(self) -> list[str]:
        """Return what else there is to say, a line each: times of one interleaved run, and the machine."""
        times = ", ".join(f"{name} {format_us(value)}" for name, value in self.latency.items())
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        return [line for line in (times and f"One run, all measured in turns: {times}.", machine) if line]

    def __str__(self) -> str:
        return self.markdown()

    def write(self, folder: Path) -> None:
        """Write report.json and report.md, and report.svg where matplotlib is installed."""
        with replacing(folder / "report.json") as new:
            new.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        with replacing(folder / "report.md") as new:
            new.write_text(self.markdown(), encoding="utf-8")
        try:
            with replacing(folder / "report.svg") as new:
                _draw(self.rows, new)
        except MissingExtraError:
            pass


def counts(model: nn.Module) -> dict[str, int]:
    """Return how many weights and biases a model has, and how many of them are not zero."""
    weights: list[Tensor] = list(model.parameters())
    for module in model.modules():
        if isinstance(module, CompressedModule):
            tensors = module.tensors()
            weights += [tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8 or name == "bias"]
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "nonzeros": sum(int(torch.count_nonzero(weight)) for weight in weights),
    }


def _cells(row: Row) -> list[str]:
    return [
        row.after,
        str(row.epoch),
        f"{row.metric:.4f}",
        f"{row.parameters:,}",
        f"{row.nonzeros:,}",
        "-" if row.multiply_adds is None else f"{row.multiply_adds:,}",
        format_bytes(row.disk_bytes),
        format_us(row.median_us),
    ]


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Bars side by side: the metric, non-zeros, bytes and time after each strategy."""
    from sparsecore.bench.report import BLUE
    from sparsecore.bench.svg import new_figure, save

    panels = [
        ("metric", [row.metric for row in rows]),
        ("non-zeros, thousands", [row.nonzeros / 1e3 for row in rows]),
        ("on disk, kB", [row.disk_bytes / 1e3 for row in rows]),
        ("one run, us", [row.median_us for row in rows]),
    ]
    with new_figure(11, 1.2 + 0.28 * len(rows)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, values) in zip(axes, panels, strict=True):
            axis.barh(range(len(rows)), values, color=BLUE)
            axis.set_title(title)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_yticks(range(len(rows)), [row.after for row in rows])
        axes[0].invert_yaxis()
        save(figure, path)
