"""The command line: thin, every command prints what a Python function returns."""

from __future__ import annotations

from pathlib import Path

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
from sparsecore.cli.compress import compress
from sparsecore.cli.kernels import kernels
from sparsecore.cli.methods import methods
from sparsecore.cli.models import bench, explain
from sparsecore.cli.prune import prune


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


cli.add_command(bench)
cli.add_command(compress)
cli.add_command(explain)
cli.add_command(kernels)
cli.add_command(methods)
cli.add_command(prune)
