"""Reports as tables: the same columns for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sparsecore.bench.kernels.compare import (
    BreakEven,
    Comparison,
    Mean,
    break_evens,
    compare,
    geometric_mean,
    label,
    losses,
    means,
    sparsities,
)
from sparsecore.bench.kernels.formats import LayerWins, Win, winners
from sparsecore.bench.kernels.int8 import VNNI_ISAS, LayerInt8, goals, int8_layers, weight_reads
from sparsecore.bench.report import format_percent, format_speedup, format_us
from sparsecore.bench.text_table import Table, count_threads

Row = Mapping[str, Any]

METHOD = """\
One process per library, stopped while it is not its turn. Every round gives each candidate one turn, in another
order: a first call, then calls for 20 ms, of which the median counts; times are medians over the rounds. Packing
weights is not timed; packing and quantizing activations is, unless the note of a candidate in the JSON says
otherwise. All processes run with glibc's MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set so
that memory stays with the process: fresh pages for outputs would cost more than many layers. Formats of ours write
into memory that was planned before, as in a compiled model; so do ONNX Runtime and OpenVINO.

Every output is compared with float64 first: float32 may be off by its roundings, int8 by what rounding weights and
activations to 8 bits explains. What is further off is named below, is not timed and counts in no ratio.

"Best dense" is the fastest dense float32 of all libraries and "ours" the fastest sparse float32 format; "over
dense" is the speed-up between them, "cold" that of the first calls of the turns. "Over peers" is our fastest
format, int8 included, over the fastest of all others, dense and int8 included; "over 4-bit" that over the fastest
with 4-bit weights, which lose far more accuracy and are not among "peers", and "4-bit over 4-bit" compares our own
4-bit weights with those. "Of peak" is ours' share of the float32 multiply-add peak of the same rounds, counting
non-zeros.

"Which format wins" shows our fastest format and two speed-ups: over the fastest dense float32 of all libraries,
then over the fastest dense int8 of the peers. The table of int8 compares dense int8 with dense int8, "ours" with the
best peer's and with ONNX Runtime's fastest. Dense int8 does not depend on the zeros: times are medians and speed-ups
geometric means over the shares of zeros. "Sparse" is our fastest sparse int8 over the best peer's dense int8, and
"slower at" are the shares of zeros at which that is ahead of all our formats. The peers' int8 may take and give
uint8, ours takes and gives float32."""
INT8_PEAK = "The int8 peak is 4 times the float32 multiply-add peak of the same rounds: this machine runs VNNI kernels."


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
INT4_LAYER_COLUMNS = (
    *LAYER_COLUMNS,
    ("over 4-bit", lambda c: _over(c, c.peer_int4, c.over_int4)),
    ("4-bit over 4-bit", lambda c: format_speedup(c.int4_over_int4)),
)
MEAN_COLUMNS: tuple[tuple[str, Callable[[Mean], str]], ...] = (
    ("zeros", lambda mean: format_percent(mean.sparsity, 0)),
    ("layers", lambda mean: mean.group),
    ("number", lambda mean: str(mean.layers)),
    ("over dense", lambda mean: format_speedup(mean.over_dense)),
    ("over peers", lambda mean: format_speedup(mean.over_peers)),
    ("of peak", lambda mean: format_percent(mean.share_of_peak, 0)),
)
INT4_MEAN_COLUMNS = (
    *MEAN_COLUMNS,
    ("over 4-bit", lambda mean: format_speedup(mean.over_int4)),
    ("4-bit over 4-bit", lambda mean: format_speedup(mean.int4_over_int4)),
)


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


def format_tables(report: Row) -> list[Table]:
    """Our fastest format of all, and the fastest in float32: one row per layer, one column per share of zeros."""
    comparisons = _compared(report)
    shares = sparsities(comparisons)
    layers = [wins for group in winners(comparisons) for wins in group.layers]
    choices: tuple[tuple[str, Callable[[LayerWins], Mapping[float, Win]]], ...] = (
        ("Which format wins", lambda wins: wins.fastest),
        ("Which float32 format wins", lambda wins: wins.fastest_float32),
    )
    headings = ["layer", *(format_percent(share, 0) for share in shares)]
    return [
        Table(
            f"{title}, {_threads(report)}",
            headings,
            [[wins.layer["name"], *(_win(choose(wins).get(share)) for share in shares)] for wins in layers],
        )
        for title, choose in choices
        if any(map(choose, layers))
    ]


def _win(win: Win | None) -> str:
    if win is None:
        return "-"
    return f"{win.format} {format_speedup(win.over_float32)} / {format_speedup(win.over_int8)}"


def int8_tables(report: Row) -> list[Table]:
    """int8 of every layer beside the peers', and how fast layers of few rows go through their weights."""
    return [table for table in (_int8_table(report), _weight_read_table(report)) if table.rows]


def _int8_table(report: Row) -> Table:
    comparisons = _compared(report)
    isa = report["machine"]["isa"]
    layers = int8_layers(comparisons, isa)
    figures = _int8_figures(sparsities(comparisons), isa in VNNI_ISAS)
    rows = [
        [
            found.layer["name"],
            "-" if found.peer is None else f"{format_us(found.peer_us)} {found.peer}",
            format_us(found.ours_us),
            *(text(figure(found)) for _, figure, text in figures),
            ", ".join(format_percent(share, 0) for share in found.behind) or "-",
        ]
        for found in layers
    ]
    for title, summary in (("geometric mean", geometric_mean), ("worst", _least)) if layers else ():
        sums = (text(summary(figure(found) for found in layers)) for _, figure, text in figures)
        rows.append([title, "", "", *sums, ""])
    return Table(
        f"int8, {_threads(report)}",
        [
            "layer",
            "best peer",
            "ours",
            *(name for name, *_ in figures),
            "slower at",
        ],
        rows,
    )


Figure = tuple[str, Callable[[LayerInt8], float | None], Callable[[float | None], str]]


def _int8_figures(shares: Sequence[float], has_vnni: bool) -> list[Figure]:
    """Heading, figure of a layer, and how it is written."""

    def sparse(share: float) -> Figure:
        return f"sparse, {format_percent(share, 0)}", lambda found: found.sparse_over_peer.get(share), format_speedup

    peak: Figure = ("of int8 peak (4x FMA)", lambda found: found.share_of_peak, lambda share: format_percent(share, 0))
    return [
        ("over it", lambda found: found.dense_over_peer, format_speedup),
        ("over ONNX Runtime", lambda found: found.dense_over_onnx, format_speedup),
        *([peak] if has_vnni else []),
        *map(sparse, shares),
    ]


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _weight_read_table(report: Row) -> Table:
    found = [(c, reads) for c in _compared(report) if (reads := weight_reads(c))]
    formats = list(dict.fromkeys(name for _, reads in found for name in reads))
    rows = [
        [
            c.layer["name"],
            format_percent(c.cell["sparsity"], 0),
            *(f"{reads[name].gbps:.1f} ({reads[name].bits:.1f})" if name in reads else "-" for name in formats),
        ]
        for c, reads in found
    ]
    title = "Layers of few rows: GB/s of the packed weight, and its bits per entry of the dense one"
    return Table(f"{title}, {_threads(report)}", ["layer", "zeros", *formats], rows, names=2)


def goal_lines(report: Row) -> list[str]:
    """Every goal with what was measured."""
    return [
        f"{goal.title}: {format_speedup(goal.reached)}{f' ({goal.where})' if goal.where else ''}, "
        f"goal {format_speedup(goal.least)}: {'met' if goal.is_met else 'missed'}"
        for goal in goals(int8_layers(_compared(report), report["machine"]["isa"]))
    ]


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
        ("Goals of int8", goal_lines(report)),
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
    runs = f" in {report['runs']} runs, medians over the runs" if report.get("runs", 1) > 1 else ""
    parts = [
        "# Single layers",
        f"`sparsecore kernels bench`: {facts}; mask {report['mask']}, {report['rounds']} rounds{runs}. {versions}.",
        METHOD,
        *([INT8_PEAK] if machine["isa"] in VNNI_ISAS else []),
        *_titled(layer_tables(report)),
        *_titled([mean_table(report), *format_tables(report), *int8_tables(report)]),
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
    return count_threads(report["machine"]["threads"])
