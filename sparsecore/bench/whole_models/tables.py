"""Reports as tables: the same for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsecore.bench.report import format_percent, format_speedup, format_us
from sparsecore.bench.text_table import Table, count_threads
from sparsecore.bench.whole_models.compare import Comparison, compare, label

Row = Mapping[str, Any]

METHOD = """\
One process per library, stopped while it is not its turn; every round gives each candidate one turn, in another order:
a first call, then calls for a fixed time, of which the median counts. Times are medians over the rounds. All libraries
run the same weights, zeros included; compiling, packing and exporting are not timed. "Over dense" is the speed-up over
the fastest float32 of all other libraries in the same cell, PyTorch eager in both memory formats and with BatchNorm
folded among them. "Error" is ||y - y_dense|| / ||y_dense||, y_dense by dense PyTorch in float64."""


def tables(report: Row) -> list[Table]:
    """One table per number of threads and batch: a row per candidate, three columns per share of zeros."""
    groups: dict[tuple[int, int], list[Comparison]] = {}
    for cell in report["cells"]:
        groups.setdefault((cell["threads"], cell["batch"]), []).append(compare(cell))
    return [_table(report["model"], *key, group) for key, group in groups.items()]


def _table(model: str, threads: int, batch: int, group: Sequence[Comparison]) -> Table:
    names = list(dict.fromkeys(label(row) for comparison in group for row in comparison.rows))
    rows = []
    for name in names:
        cells = [name]
        for comparison in group:
            row = next((row for row in comparison.rows if label(row) == name), None)
            cells += _cells(comparison, row)
        rows.append(cells)
    headings = [heading for c in group for heading in (f"{zeros(c.cell)} zeros", "over dense", "error")]
    title = f"{model}, batch {batch}, {count_threads(threads)}"
    return Table(title, ["", *headings], rows)


def _cells(comparison: Comparison, row: Row | None) -> list[str]:
    if row is None:
        return ["-", "-", "-"]
    return [
        format_us(row["us"]["median_us"]),
        format_speedup(comparison.over_dense(row)),
        f"{row['error']:.1e}",
    ]


def zeros(cell: Row) -> str:
    """The share of zeros in the pruned weights."""
    return format_percent(cell["zeros"], 0)


def notes(report: Row) -> list[str]:
    """What was pruned, who was missing, and what went wrong."""
    pruned = dict.fromkeys(f"{zeros(cell)} zeros: {cell['pruned']}." for cell in report["cells"])
    failures = [
        f"batch {cell['batch']}, {zeros(cell)} zeros, {count_threads(cell['threads'])}: {failure}"
        for cell in report["cells"]
        for failure in cell["failures"]
    ]
    return [*pruned, *report["missing"], *failures]


def markdown(report: Row) -> str:
    """The whole report."""
    machine = report["machine"]
    facts = ", ".join(f"{key} {machine[key]}" for key in ("cpu", "isa", "threads", "commit", "date"))
    found = {name: version for versions in report["versions"].values() for name, version in (versions or {}).items()}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    pattern = report.get("pattern", "unstructured")
    command = f"sparsecore bench {report['model']}" + (f" --pattern {pattern}" if pattern != "unstructured" else "")
    parts = [
        f"# {report['model']}",
        f"`{command}`: {facts}; {report['parameters']:,} parameters, {report['rounds']} rounds. {versions}.",
        METHOD,
        *(f"## {table.title}\n\n{table.markdown()}" for table in tables(report)),
        "\n".join(f"- {note}" for note in notes(report)),
    ]
    return "\n\n".join(parts) + "\n"
