"""The command line: thin, every command prints what a Python function returns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sparsecore.bench import probes, tables
from sparsecore.cli.common import (
    OneLineErrors,
    json_option,
    progress_on_stderr,
    seed_option,
    show,
    threads_option,
    write_json,
)
from sparsecore.cli.kernels import kernels


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
    if write_json(installation, json_file):
        show(tables.facts(description), tables.kernels(installation["operations"]))


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

    with progress_on_stderr() as report_progress:
        report = run_demo(out, threads, seed, report_progress)
    if write_json(report, json_file):
        resnet = report["resnet50"]
        show(
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
    with progress_on_stderr() as report_progress, use_threads(threads):
        report = benchmark(
            factory(),
            torch.randn(shape),
            sparsities or SPARSITIES,
            exclude=exclude,
            progress=report_progress,
        )
    if write_json(report, json_file):
        show(tables.versions(f"Speed-up over {report['baseline']}", report["versions"]))


cli.add_command(kernels)
