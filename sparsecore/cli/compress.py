"""``sparsecore compress``: a recipe, from training to the compiled model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from sparsecore.bench.progress import silent
from sparsecore.cli.common import INTERRUPTED, json_option, progress_on_stderr, show, threads_option, write_json


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the output folder.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for model, report and checkpoints [default: the recipe's].",
)
@click.option("--dry-run", is_flag=True, help="Try every strategy on a copy of the model; train and write nothing.")
@threads_option
@json_option
def compress(
    recipe: Path, resume: bool, output: Path | None, dry_run: bool, threads: int | None, json_file: str | None
) -> None:
    """Train and compress a model as the YAML file RECIPE says.

    docs/recipes.md lists what it may hold. A run that was stopped goes on with --resume, to the same weights. Under
    torchrun several processes share the work.
    """
    from sparsecore._threads import use_threads
    from sparsecore.train.compressor import Compressor

    compressor: Compressor | None = None
    try:
        with _processes() as is_first, progress_on_stderr() as progress, use_threads(threads):
            compressor = Compressor(None, recipe, output=output, progress=progress if is_first else silent)
            if dry_run:
                events = compressor.dry_run()
                if is_first and write_json({"events": events}, json_file):
                    show(_plan(events))
                return
            compressed = compressor.run(resume=resume)
    except KeyboardInterrupt:
        _stop(compressor.newest_checkpoint() if compressor and not dry_run else None)
    if is_first and write_json(compressed.report.to_dict(), json_file):
        show(compressed.report.table().rich(), *compressed.report.notes(), f"Saved: {compressed.path.resolve()}")


def _stop(checkpoint: Path | None) -> NoReturn:
    """End a run that was interrupted, and say what it left."""
    if os.environ.get("RANK", "0") == "0":
        kept = f"the same command with --resume goes on from {checkpoint}" if checkpoint else "nothing was kept"
        click.echo(f"stopped: {kept}", err=True)
    raise SystemExit(INTERRUPTED)


def _plan(events: list[dict[str, object]]) -> object:
    from sparsecore.bench.text_table import Table

    rows = [
        [str(event["event"]), str(event["epoch"]), f"{event['parameters']:,}", f"{event['nonzeros']:,}"]
        for event in events
    ]
    return Table("Untrained, the strategies would leave", ["event", "epoch", "parameters", "non-zeros"], rows).rich()


@contextmanager
def _processes() -> Iterator[bool]:
    """Join the processes that torchrun started, if it did; yields whether this is the first one."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield True
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
