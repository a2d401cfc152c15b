"""Reports as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sparsecore.bench.report import (
    format_bytes,
    format_percent,
    format_speedup,
    format_us,
    verdict,
)

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str | Text]]
LEFT = ("", "version", "layer", "op", "format", "operation", "kernel", "isa")


def facts(pairs: Row) -> Table:
    """Two columns, name and value; what is None is left out."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in pairs.items():
        if value is not None:
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            table.add_row(key.replace("_", " "), Text(text))
    return table


def kernels(operations: Mapping[str, Sequence[Row]]) -> Table:
    """Every operation's kernels, the one in use in bold."""
    table = _table("Kernels, best first", ("operation", "kernel", "isa", ""))
    for operation, rows in operations.items():
        for i, row in enumerate(rows):
            state = "in use" if row["in_use"] else "" if row["available"] else "not on this CPU"
            style = "bold" if row["in_use"] else "" if row["available"] else "dim"
            table.add_row("" if i else operation, row["name"], row["isa"], state, style=style)
        table.add_section()
    return table


def versions(title: str, rows: Sequence[Row]) -> Table:
    """One row per version of a model; columns that the report does not have are left out."""
    first = rows[0]
    columns: list[Column] = [("version", lambda row: Text(row["name"]))]
    if "accuracy" in first:
        columns.append(("accuracy", lambda row: format_percent(row["accuracy"])))
    if "disk_bytes" in first:
        columns.append(("on disk", lambda row: format_bytes(row["disk_bytes"])))
    if "memory_bytes" in first:
        columns.append(("in memory", lambda row: format_bytes(row["memory_bytes"])))
    for i, timing in enumerate(first["timings"]):
        columns += _timing_columns(i, timing["batch"])
    return _filled(title, columns, rows)


def layers(title: str, rows: Sequence[Row]) -> Table:
    """One row per layer of a converted model."""
    columns: list[Column] = [
        ("layer", lambda row: Text(row["name"])),
        ("op", lambda row: Text(row["op"])),
        ("format", lambda row: row["format"]),
        ("zeros", lambda row: format_percent(row["sparsity"], 0)),
        ("time", lambda row: format_us(row["time_us"])),
        ("dense", lambda row: format_us(row["dense_us"])),
        ("speed-up", lambda row: _speedup(row["speedup"])),
        ("of peak", lambda row: format_percent(row["roofline"], 0)),
    ]
    return _filled(title, columns, rows)


def _timing_columns(i: int, batch: int) -> list[Column]:
    return [
        (f"batch {batch}", lambda row: format_us(row["timings"][i]["median_us"])),
        ("speed-up", lambda row: _speedup(row["timings"][i]["speedup"])),
    ]


def _speedup(ratio: float | None) -> Text:
    style = {"loss": "red", "win": "green", "": ""}[verdict(ratio)]
    return Text(format_speedup(ratio), style=style)


def _filled(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = _table(title, [heading for heading, _ in columns])
    for row in rows:
        table.add_row(*(render(row) for _, render in columns))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        justify = "left" if heading in LEFT else "right"
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table
