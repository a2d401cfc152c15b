"""Reports as tables: the same columns for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecore.bench.kernels.compare import (
    BreakEven,
    Comparison,
    Mean,
    break_evens,
    compare,
    label,
    losses,
    means,
    sparsities,
)
from sparsecore.bench.report import format_percent, format_speedup, format_us

Row = Mapping[str, Any]

METHOD = """\
One process per library, stopped while it is not its turn. Every round gives each candidate one turn, in another
order: a first call, then calls for 20 ms, of which the median counts; times are medians over the rounds. Packing
weights is not timed; packing and quantizing activations is, unless the note of a candidate in the JSON says
otherwise. All processes run with glibc's MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set so
that memory stays with the process: fresh pages for outputs would cost more than many layers.

"Best dense" is the fastest dense float32 of all libraries and "ours" the fastest sparse float32 format; "over
dense" is the speed-up between them, "cold" that of the first calls of the turns. "Over peers" is our fastest
format, int8 included, over the fastest of all others, dense and int8 included; "over 4-bit" that over the fastest
with 4-bit weights, which lose far more accuracy and are not among "peers". "Of peak" is ours' share of the
float32 multiply-add peak of the same rounds, counting non-zeros."""


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first columns are names, the others figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    def markdown(self) -> str:
        """The table without its title."""
        rule = ["---"] * self.names + ["---:"] * (len(self.headings) - self.names)
        lines = (self.headings, rule, *self.rows)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> Any:
        """A table for ``rich``."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if i < self.names else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def _timed(candidate: Row | None) -> str:
    return "-" if candidate is None else f"{format_us(candidate['us']['median_us'])} {label(candidate)}"


def _over(c: Comparison, peer: Row | None, speedup: float | None) -> str:
    """The speed-up, over whom, and with which format where it is another one than that of ``ours``."""
    if peer is None or c.ours_any is None:
        return "-"
    by = "" if c.ours_any is c.ours else f" by {label(c.ours_any)}"
    return f"{format_speedup(speedup)} {label(peer)}{by}"


LAYER_COLUMNS: tuple[tuple[str, Callable[[Comparison], str]], ...] = (
    ("layer", lambda c: c.layer["name"]),
    ("best dense", lambda c: _timed(c.dense)),
    ("ours", lambda c: _timed(c.ours)),
    ("over dense", lambda c: format_speedup(c.over_dense)),
    ("cold", lambda c: format_speedup(c.cold_over_dense)),
    ("of peak", lambda c: format_percent(c.share_of_peak, 0)),
    ("over peers", lambda c: _over(c, c.peer, c.over_peers)),
)
# For reports with a peer of 4-bit weights.
INT4_LAYER_COLUMNS = (*LAYER_COLUMNS, ("over 4-bit", lambda c: _over(c, c.peer_int4, c.over_int4)))
MEAN_COLUMNS: tuple[tuple[str, Callable[[Mean], str]], ...] = (
    ("zeros", lambda mean: format_percent(mean.sparsity, 0)),
    ("layers", lambda mean: mean.group),
    ("number", lambda mean: str(mean.layers)),
    ("over dense", lambda mean: format_speedup(mean.over_dense)),
    ("over peers", lambda mean: format_speedup(mean.over_peers)),
    ("of peak", lambda mean: format_percent(mean.share_of_peak, 0)),
)
INT4_MEAN_COLUMNS = (*MEAN_COLUMNS, ("over 4-bit", lambda mean: format_speedup(mean.over_int4)))


def layer_tables(report: Row) -> list[Table]:
    """One table per sparsity, one row per layer."""
    comparisons = _compared(report)
    columns = INT4_LAYER_COLUMNS if any(c.peer_int4 for c in comparisons) else LAYER_COLUMNS
    headings = [heading for heading, _ in columns]
    return [
        Table(
            f"{format_percent(sparsity, 0)} zeros, {_threads(report)}",
            headings,
            [[text(c) for _, text in columns] for c in comparisons if c.cell["sparsity"] == sparsity],
        )
        for sparsity in sparsities(comparisons)
    ]


def mean_table(report: Row) -> Table:
    """Geometric means."""
    found = means(_compared(report))
    columns = INT4_MEAN_COLUMNS if any(mean.over_int4 for mean in found) else MEAN_COLUMNS
    rows = [[text(mean) for _, text in columns] for mean in found]
    return Table(
        f"Geometric means over layers with K of 128 and more, {_threads(report)}",
        [heading for heading, _ in columns],
        rows,
        names=2,
    )


def loss_lines(report: Row) -> list[str]:
    """Every cell where a peer is faster, the worst first."""
    return [
        f"{format_percent(c.cell['sparsity'], 0)} {c.layer['name']}: {_timed(c.peer)}, ours {_timed(c.ours_any)} "
        f"({format_speedup(c.over_peers)})"
        for c in losses(_compared(report))
    ]


def failure_lines(report: Row) -> list[str]:
    """What went wrong, with the cell it happened in."""
    return [
        f"{format_percent(cell['sparsity'], 0)} {cell['layer']['name']}: {failure}"
        for cell in report["cells"]
        for failure in cell["failures"]
    ]


def break_even_lines(report: Row) -> list[str]:
    """From which sparsity on ours is faster than dense float32."""
    found: Mapping[str, BreakEven] = break_evens(_compared(report))
    return [f"{group}: {place}" for group, place in found.items()]


def sections(report: Row) -> list[tuple[str, list[str]]]:
    """The lists below the tables, each with its title; empty ones are left out."""
    lists = [
        ("Faster than dense float32 from this share of zeros on", break_even_lines(report)),
        ("A peer is faster", loss_lines(report)),
        ("What went wrong", failure_lines(report)),
    ]
    return [(title, lines) for title, lines in lists if lines]


def markdown(report: Row) -> str:
    """The whole report of one run."""
    machine = report["machine"]
    facts = ", ".join(f"{key} {machine[key]}" for key in ("cpu", "isa", "threads", "torch", "commit", "date"))
    versions = ", ".join(
        f"{name} {version}" for found in report["versions"].values() for name, version in (found or {}).items()
    )
    parts = [
        "# Single layers",
        f"`sparsecore kernels bench`: {facts}; mask {report['mask']}, {report['rounds']} rounds. {versions}.",
        METHOD,
        *_titled(layer_tables(report)),
        *_titled([mean_table(report)]),
        *(f"## {title}\n\n" + _bullets(lines) for title, lines in sections(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _titled(tables: Iterable[Table]) -> list[str]:
    return [f"## {table.title}\n\n{table.markdown()}" for table in tables]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _compared(report: Row) -> list[Comparison]:
    return [compare(cell) for cell in report["cells"]]


def _threads(report: Row) -> str:
    threads: int = report["machine"]["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}"
