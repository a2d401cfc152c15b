"""``sparsecore prune``: language models in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsecore.cli.common import (
    INTERRUPTED,
    Finite,
    json_option,
    progress_on_stderr,
    seed_option,
    show,
    threads_option,
    write_json,
)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["sparsegpt", "wanda", "magnitude"]),
    default="sparsegpt",
    show_default=True,
    help="What decides; magnitude needs no data.",
)
@click.option(
    "--sparsity", type=Finite(0, 1, max_open=True), help="Share of zeros in every layer [default: a pattern's own]."
)
@click.option(
    "--pattern",
    default="unstructured",
    show_default=True,
    help='What is kept together: "keep:group" such as 2:4, or blocks such as 4x1.',
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Calibration text, a folder of .txt files, or token ids as .npy or .safetensors.",
)
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Windows of the data.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens in each [default: 2048, or the model's most].")
@click.option(
    "--exclude", multiple=True, help="Modules or weights to leave alone, by name or pattern; may be repeated."
)
@click.option("--damping", type=Finite(min=0), default=0.01, show_default=True, help="Of the Hessian in SparseGPT.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: the model's own].")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="New folder for the pruned model."
)
@threads_option
@seed_option
@json_option
def prune(
    model: Path,
    method: str,
    sparsity: float | None,
    pattern: str,
    data: Path | None,
    samples: int,
    length: int | None,
    exclude: tuple[str, ...],
    damping: float,
    dtype: str | None,
    out: Path,
    threads: int | None,
    seed: int,
    json_file: str | None,
) -> None:
    """Prune a language MODEL, a transformers folder, in the memory of one block of its decoder.

    Block after block is read, pruned on calibration data and written to --out, which transformers loads like MODEL. A
    run that was stopped continues where it was when the same command is given again.
    """
    from sparsecore._threads import use_threads
    from sparsecore.prune import prune_pretrained

    options: dict[str, Any] = {"data": data, "samples": samples, "length": length, "seed": seed, "dtype": dtype}
    try:
        with progress_on_stderr() as progress, use_threads(threads):
            pruned = prune_pretrained(
                model,
                out,
                sparsity,
                criterion=method,
                pattern=pattern,
                exclude=exclude,
                damping=damping,
                progress=progress,
                **options,
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped: the same command continues with the first block that is not done", err=True)
        raise SystemExit(INTERRUPTED) from None
    if write_json(pruned.to_dict(), json_file):
        show(_table(pruned.to_dict()["blocks"]), f"{pruned.sparsity:.1%} of the weights are zero, in {out.resolve()}")


def _table(blocks: list[dict[str, Any]]) -> Any:
    from sparsecore.bench.text_table import Table

    rows = [
        [block["name"], f"{block['num_entries']:,}", f"{block['sparsity']:.1%}", f"{block['seconds']:.1f} s"]
        for block in blocks
    ]
    return Table("Pruned", ["block", "weights", "zeros", "time"], rows).rich()
