"""``sparsecore kernels``: what kernels there are, and how fast they are beside every peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sparsecore.bench import probes, tables
from sparsecore.cli.common import Finite, JsonFile, json_option, show, stop_incomplete, write_json
from sparsecore.errors import require_extra

Value = TypeVar("Value")


@click.group()
def kernels() -> None:
    """List kernels, and measure them on single layers."""


@kernels.command("list")
@json_option
def list_kernels(json_file: str | None) -> None:
    """List every operation's kernels, best first."""
    operations = probes.operations()
    if write_json(operations, json_file):
        show(tables.kernels(operations))


def _parse(read: Callable[[str], Value]) -> Callable[[click.Context, click.Parameter, str], Value]:
    """An option's callback; a ValueError is the option's error."""

    def callback(context: click.Context, parameter: click.Parameter, text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from None

    return callback


def _select(shapes: str) -> Any:
    from sparsecore.bench.kernels.layers import select

    return select(shapes)


def _find_peers(names: str) -> Any:
    from sparsecore.bench.kernels.run import find_peers

    return find_peers(names)


@kernels.command("bench")
@click.option(
    "--threads",
    "thread_counts",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Threads of every library; several times for several runs.",
)
@click.option(
    "--sparsity",
    "sparsities",
    type=Finite(0, 1, max_open=True),
    multiple=True,
    help="Share of zeros; several times for several [default: 0.5 0.7 0.8 0.9 0.95, or the only one of the mask].",
)
@click.option(
    "--shapes",
    "layers",
    default="quick",
    show_default=True,
    callback=_parse(_select),
    help="quick, all, or a part of a layer's or network's name.",
)
@click.option(
    "--mask",
    type=click.Choice(["magnitude", "random", "4x1", "8x1", "8:16", "4:16"]),
    default="magnitude",
    show_default=True,
    help="Zeros where a trained layer would have them, anywhere, in blocks of rows, or 8 or 4 values left of 16.",
)
@click.option(
    "--peers",
    default="auto",
    show_default=True,
    callback=_parse(_find_peers),
    help="auto (all that are installed), none, or names: torch,onnxruntime,openvino,mkl,scipy,ggml.",
)
@click.option(
    "--time",
    "seconds",
    type=Finite(min=0, min_open=True),
    default=0.14,
    show_default=True,
    help="Seconds for each candidate of a layer, all its turns together; 4 calls a turn are always made.",
)
@json_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for .json, .md, .svg and -formats.svg, one of each per number of threads.",
)
def bench_kernels(
    thread_counts: tuple[int, ...],
    sparsities: tuple[float, ...],
    layers: Any,
    mask: str,
    peers: Any,
    seconds: float,
    json_file: str | None,
    out: Path | None,
) -> None:
    """Measure every kernel on single layers, against every peer, in turns.

    Each library runs in a process of its own. Errors of results are measured too, and a float32 result that is wrong
    does not count.
    """
    from sparsecore.bench.kernels import files
    from sparsecore.bench.kernels.run import Plan, fit_mask, measure

    if out is not None:
        require_extra("matplotlib", "bench")  # now, not after the work
        out.mkdir(parents=True, exist_ok=True)
    libraries, missing = peers
    try:
        fitting, shares = fit_mask(mask, layers, sparsities)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    unfit = [f"mask {mask} does not fit {layer.name}" for layer in layers if layer not in fitting]
    for line in (*missing, *unfit):
        click.echo(line, err=True)
    reports = []
    with _live(len(thread_counts)) as report_cell:
        for threads in dict.fromkeys(thread_counts):
            plan = Plan(fitting, shares, threads, mask, libraries, seconds)
            reports.append(measure(plan, report_cell))
            if out is not None:
                files.write(reports[-1], out)
            if not reports[-1]["complete"]:
                break
    if write_json({"reports": reports}, json_file):
        for report in reports:
            _show(report)
        if out is not None:
            show(f"Written to {out.resolve()}")
    if not reports[-1]["complete"]:
        stop_incomplete()


def _show(report: Mapping[str, Any]) -> None:
    from sparsecore.bench.kernels import tables as layer_tables

    parts: list[Any] = [table.rich() for table in layer_tables.layer_tables(report)]
    below = (
        layer_tables.mean_table(report),
        *layer_tables.format_tables(report),
        *layer_tables.int8_tables(report),
    )
    parts += [table.rich() for table in below]
    for title, lines in layer_tables.sections(report):
        parts += [f"{title}:", *(f"  {line}" for line in lines)]
    show(*parts)


@kernels.command("plot")
@click.argument("json_files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=JsonFile(), required=True, help="The SVG to write.")
def plot_kernels(json_files: tuple[Path, ...], out: str) -> None:
    """Draw JSON files of `kernels bench` again, as one SVG, and which format wins as one that ends in -formats.svg."""
    from sparsecore.bench.kernels import files, grid, plot

    if Path(out).suffix != ".svg":
        raise click.BadParameter(f"expected a file that ends in .svg, got {out!r}", param_hint="--out")
    reports = [report for path in json_files for report in files.read(path)]
    svg = Path(out).resolve()
    formats_svg = files.with_ending(svg.with_suffix(""), files.FORMATS_ENDING)
    try:
        plot.draw(reports, svg)
        grid.draw(reports, formats_svg)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    show(f"Written to {svg} and {formats_svg}")


@kernels.command("merge")
@click.argument("json_files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder as in bench.")
def merge_kernels(json_files: tuple[Path, ...], out: Path) -> None:
    """Make one report of several runs of `kernels bench`: the medians of all, since a shared machine has slow minutes.

    FILES are their JSON files, oldest first.
    """
    from sparsecore.bench.kernels import files
    from sparsecore.bench.kernels.merge import merge

    require_extra("matplotlib", "bench")
    try:
        report = merge([report for path in json_files for report in files.read(path)])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    files.write(report, out)
    _show(report)
    show(f"Written to {out.resolve()}")


@contextmanager
def _live(runs: int) -> Iterator[Callable[[int, int, Any], None]]:
    """A line on stderr for every layer, and a bar on a terminal.

    The bar is redrawn between layers only: a thread that draws would disturb what is measured.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    started = time.monotonic()
    finished = 0

    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, left="")

        def report(done: int, total: int, cell: Any) -> None:
            nonlocal finished
            left = ""
            if cell is not None:
                finished += 1
                seconds = (time.monotonic() - started) / finished * (total * runs - finished)
                left = f"{_duration(seconds)} left"
                line = f"{_summary(cell)}  [{finished}/{total * runs}, {left}]"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            bar.update(task, total=total * runs, completed=finished, left=left)
            bar.refresh()

        yield report


def _summary(cell: Mapping[str, Any]) -> str:
    from sparsecore.bench.kernels.compare import compare, label
    from sparsecore.bench.report import format_percent, format_speedup

    comparison = compare(cell)
    parts = [f"{format_percent(cell['sparsity'], 0)} {cell['layer']['name']}:"]
    if comparison.over_dense:
        parts.append(f"{format_speedup(comparison.over_dense)} over {label(comparison.dense or {})},")
    if comparison.over_peers:
        parts.append(f"{format_speedup(comparison.over_peers)} over {label(comparison.peer or {})}")
    return " ".join([*parts, *(f"({failure})" for failure in cell["failures"])]).rstrip(",:")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"
