"""The command line: thin, every command prints what a Python function returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparsecore.bench import probes, progress
from sparsecore.bench.report import format_bytes, format_percent, format_speedup, format_us
from sparsecore.errors import SparsecoreError


class OneLineErrors(click.Group):
    """A group whose errors are one line that names the way out, with exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.exceptions.Abort:
            _fail("stopped")
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            way_out = f"; see {context.command_path} --help" if context else ""
            _fail(error.format_message().rstrip(".") + way_out)
        except (SparsecoreError, OSError) as error:
            _fail(str(error))


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


class JsonFile(click.Path):
    """A file to write, or - for stdout; a missing folder is noticed before the work, not after."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        folder = Path(value).parent
        if not folder.is_dir():
            self.fail(f"folder {folder} does not exist", param, ctx)
        return super().convert(value, param, ctx)


json_option = click.option(
    "--json", "json_file", type=JsonFile(), help="Write the result as JSON to FILE; - is stdout."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads to compute with [default: torch's]."
)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparsecore")
def cli() -> None:
    """Prune, quantize and run sparse models, and measure what that buys."""


@cli.command()
@json_option
def info(json_file: str | None) -> None:
    """Show the build, the instruction set, and every operation's kernels."""
    facts = probes.installation()
    if not _write_json(facts, json_file):
        return
    console = Console()
    console.print(_facts_table(_installation_facts(facts)))
    console.print(_kernels_table(facts["operations"]))


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for report.json, report.html and the saved models.",
)
@threads_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@json_option
def demo(out: Path, threads: int | None, seed: int, json_file: str | None) -> None:
    """Train, prune, quantize and measure a digits net, then measure ResNet-50.

    Takes a few minutes and leaves a report that opens in any browser.
    """
    from sparsecore.bench.demo import run_demo

    with _progress_on_stderr() as report_progress:
        report = run_demo(out, threads, seed, report_progress)
    if not _write_json(report, json_file):
        return
    console = Console()
    console.print(_versions_table("Digits", report["digits"]["versions"]))
    console.print(_layers_table("ResNet-50, layer by layer", report["resnet50"]["layers"]))
    console.print(_versions_table("ResNet-50", report["resnet50"]["versions"]))
    console.print(
        "ResNet-50: largest difference to the dense masked model "
        f"{report['resnet50']['max_relative_difference']:.1e} of its largest output"
    )
    console.print(f"Report: {(out / 'report.html').resolve()}", soft_wrap=True)


def _write_json(result: Mapping[str, Any], json_file: str | None) -> bool:
    """Write the result if there is a file for it; return whether stdout is left for tables."""
    text = json.dumps(result, indent=2)
    if json_file == "-":
        click.echo(text)
    elif json_file:
        Path(json_file).write_text(f"{text}\n", encoding="utf-8")
    return json_file != "-"


@contextmanager
def _progress_on_stderr() -> Iterator[progress.Progress]:
    """Bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress.lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, share: float) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=1.0)
            bars.update(tasks[step], completed=share)

        yield report


def _installation_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    build = {
        f"built for {key}" if key == "cuda" else key: facts["build"][key] for key in facts["build"]
    }
    build.pop("version", None)  # machine has it
    return {**facts["machine"], **build, "cuda_available": facts["cuda_available"]}


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key.replace("_", " "), escape(_plain(value)))
    return table


def _kernels_table(operations: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    table = Table(
        "operation", "kernel", "isa", "", title="Kernels, best first", title_justify="left"
    )
    for operation, kernels in operations.items():
        for i, kernel in enumerate(kernels):
            state = "in use" if kernel["in_use"] else "" if kernel["available"] else "not here"
            style = "bold" if kernel["in_use"] else "" if kernel["available"] else "dim"
            table.add_row("" if i else operation, kernel["name"], kernel["isa"], state, style=style)
        table.add_section()
    return table


def _versions_table(title: str, versions: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("version", title=title, title_justify="left")
    facts = [key for key in ("accuracy", "disk_bytes", "memory_bytes") if key in versions[0]]
    for key in facts:
        table.add_column(
            {"disk_bytes": "on disk", "memory_bytes": "in memory"}.get(key, key), justify="right"
        )
    for timing in versions[0]["timings"]:
        table.add_column(f"batch {timing['batch']}", justify="right")
        table.add_column("speed-up", justify="right")
    for version in versions:
        cells = [
            format_percent(version[key]) if key == "accuracy" else format_bytes(version[key])
            for key in facts
        ]
        for timing in version["timings"]:
            cells += [format_us(timing["median_us"]), _speedup_cell(timing["speedup"])]
        table.add_row(version["name"], *cells)
    return table


def _layers_table(title: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("layer", "shape", "format", title=title, title_justify="left")
    for heading in ("sparsity", "time", "dense", "speed-up", "of peak"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            escape(layer["name"]),
            escape(layer["shape"]),
            layer["format"],
            format_percent(layer["sparsity"], 0),
            format_us(layer["time_us"]),
            format_us(layer["dense_us"]),
            _speedup_cell(layer["speedup"]),
            format_percent(layer["roofline"], 0),
        )
    return table


def _speedup_cell(ratio: float | None) -> str:
    text = format_speedup(ratio)
    return f"[red]{text}[/red]" if ratio is not None and ratio < 0.995 else text


def _plain(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
