"""The command line: thin, every command prints what a Python function returns."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sparsecore.bench import probes, progress, tables
from sparsecore.errors import SparsecoreError

# For output that goes into a file or a pipe, where nothing tells a width.
PIPE_COLUMNS = 120


class OneLineErrors(click.Group):
    """A group whose errors are one line that names the way out, with exit code 2."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        options["standalone_mode"] = False
        try:
            sys.exit(super().main(arguments, *rest, **options) or 0)
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


def parse_factory(text: str) -> Callable[[], Any]:
    """Import MODULE:FUNCTION, with the current folder on the path."""
    module, _, function = text.partition(":")
    sys.path.insert(0, "")
    try:
        factory: Callable[[], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(f"expected MODULE:FUNCTION, got {text!r}: {error}") from error
    finally:
        sys.path.remove("")
    return factory


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes with commas between them: 1,3,224,224."""
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split(","))
    if min(sizes) < 1:
        raise click.BadParameter(f"expected sizes such as 1,3,224,224, got {text!r}")
    return sizes


json_option = click.option(
    "--json", "json_file", type=JsonFile(), help="Write the result as JSON to FILE; - is stdout."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads to compute with [default: torch's]."
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all randomness."
)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparsecore")
def cli() -> None:
    """Prune, quantize and run sparse models, and measure what that buys."""


@cli.command()
@json_option
def info(json_file: str | None) -> None:
    """Show the build, the instruction set, and every operation's kernels."""
    installation = probes.installation()
    build = installation["build"]
    description = {
        **installation["machine"],
        "compiler": build["compiler"],
        "built for CUDA": build["cuda"],
        "CUDA available": installation["cuda_available"],
    }
    if _write_json(installation, json_file):
        _print(tables.facts(description), tables.kernels(installation["operations"]))


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for report.json, report.html and the saved models.",
)
@threads_option
@seed_option
@json_option
def demo(out: Path, threads: int | None, seed: int, json_file: str | None) -> None:
    """Train, prune, quantize and measure a digits net, then measure ResNet-50.

    Takes a few minutes and leaves a report that opens in any browser.
    """
    from sparsecore.bench.demo import run_demo
    from sparsecore.bench.report import busy_warning

    with _progress_on_stderr() as report_progress:
        report = run_demo(out, threads, seed, report_progress)
    if _write_json(report, json_file):
        resnet = report["resnet50"]
        _print(
            tables.versions("Digits", report["digits"]["versions"]),
            tables.layers("ResNet-50, layer by layer", resnet["layers"]),
            tables.versions("ResNet-50", resnet["versions"]),
            f"ResNet-50, sparsecore against the dense masked model: outputs differ by at most "
            f"{resnet['max_relative_difference']:.1e} of the largest",
            *filter(None, [busy_warning(report)]),
            f"Report: {(out / 'report.html').resolve()}",
        )


@cli.command()
@click.argument("factory", type=parse_factory)
@click.option(
    "--input",
    "shape",
    type=parse_shape,
    metavar="SIZES",
    required=True,
    help="Shape of the input: 1,3,224,224.",
)
@click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    help="Share of zeros; may be given several times [default: 0.5 to 0.95].",
)
@click.option("--exclude", multiple=True, help="Layer to leave dense; several times or a pattern.")
@threads_option
@seed_option
@json_option
def bench(
    factory: Callable[[], Any],
    shape: tuple[int, ...],
    sparsities: tuple[float, ...],
    exclude: tuple[str, ...],
    threads: int | None,
    seed: int,
    json_file: str | None,
) -> None:
    """Measure how fast the model that FACTORY (MODULE:FUNCTION) makes would be if it were sparse.

    Its input is one float32 tensor. Weights are pruned by magnitude; accuracy is not looked at.
    """
    import torch

    from sparsecore.bench.sweep import SPARSITIES, benchmark
    from sparsecore.bench.versions import use_threads

    torch.manual_seed(seed)
    with _progress_on_stderr() as report_progress, use_threads(threads):
        report = benchmark(
            factory(),
            torch.randn(shape),
            sparsities or SPARSITIES,
            exclude=exclude,
            progress=report_progress,
        )
    if _write_json(report, json_file):
        _print(tables.versions(f"Speed-up over {report['baseline']}", report["versions"]))


def _write_json(result: Mapping[str, Any], json_file: str | None) -> bool:
    """Write the result if there is a file for it; return whether stdout is left for tables."""
    text = json.dumps(result, indent=2)
    if json_file == "-":
        click.echo(text)
    elif json_file:
        Path(json_file).write_text(f"{text}\n", encoding="utf-8")
    return json_file != "-"


def _print(*parts: Any) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)


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
