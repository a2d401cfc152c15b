"""``sparsecore bench`` and ``sparsecore explain``: whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsecore.bench import progress
from sparsecore.cli.common import (
    Finite,
    json_option,
    progress_on_stderr,
    seed_option,
    show,
    stop_incomplete,
    threads_option,
    write_json,
)
from sparsecore.errors import require_extra


class Lists(click.Command):
    """A command whose options may be followed by several numbers: ``--sparsity 0 0.7 0.9``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        repeated: list[str] = []
        last = ""
        has_value = False
        for argument in args:
            if has_value and _is_number(argument):
                repeated.append(last)
            elif argument.startswith("-"):
                last, has_value = (argument, False) if argument in several else ("", False)
                repeated.append(argument)
                continue
            repeated.append(argument)
            has_value = bool(last) and _is_number(argument)
        return super().parse_args(ctx, repeated)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Shape(click.ParamType[tuple[int, ...]]):
    """Sizes with x between them: 1x3x224x224."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        sizes = tuple(int(size) if size.isdecimal() else 0 for size in value.split("x"))
        if min(sizes) < 1:
            self.fail(f"expected sizes such as 1x3x224x224, got {value!r}", param, ctx)
        return sizes


shape_option = click.option(
    "--input", "shape", type=Shape(), default=(), help="Shape of the input, such as 1x3x224x224 [default: the model's]."
)
_SPARSITY = Finite(0, 1, max_open=True)


class _Pattern(click.ParamType[str]):
    """The name of a pattern that `sparsecore.prune` knows."""

    name = "pattern"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from sparsecore.prune.patterns import parse_pattern

        try:
            parse_pattern(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


_pattern_option = click.option(
    "--pattern",
    type=_Pattern(),
    default="unstructured",
    show_default=True,
    help='Which zeros: "keep:group" such as 4:16, which has a share of its own, or blocks such as 4x1.',
)


def _check_shares(pattern: str, *, are_given: bool, has_default: bool) -> None:
    from sparsecore.prune.patterns import parse_pattern

    own = parse_pattern(pattern).sparsity
    if own is not None and are_given:
        raise click.UsageError(f"pattern {pattern} has {own:.0%} zeros; leave out --sparsity")
    if own is None and pattern != "unstructured" and not (are_given or has_default):
        raise click.UsageError(f"pattern {pattern} has no share of zeros of its own; give --sparsity")


@click.command(cls=Lists)
@click.argument("model")
@click.option(
    "--sparsity",
    "sparsities",
    type=_SPARSITY,
    multiple=True,
    help="Shares of zeros [default: 0 0.7 0.9, or the zeros that a model with weights has].",
)
@_pattern_option
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Samples [default: the input's, 1]."
)
@shape_option
@click.option(
    "--threads", "thread_counts", type=click.IntRange(min=1), multiple=True, help="Threads [default: torch's number]."
)
@click.option("--peers/--no-peers", default=True, help="Measure PyTorch, ONNX Runtime and OpenVINO beside sparsecore.")
@click.option("--torch-compile", is_flag=True, help="torch.compile too, which takes minutes for each model.")
@click.option(
    "--int8",
    "max_error",
    type=Finite(0, min_open=True),
    metavar="ERROR",
    help="int8 too, ours within this relative error of the output, such as 0.05.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of every library.")
@click.option(
    "--time",
    "seconds",
    type=Finite(min=0),
    default=0.2,
    show_default=True,
    help="Seconds of a turn; 2 calls at least.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for .json, .md and .svg.")
@seed_option
@json_option
def bench(
    model: str,
    sparsities: tuple[float, ...],
    pattern: str,
    batches: tuple[int, ...],
    shape: tuple[int, ...],
    thread_counts: tuple[int, ...],
    peers: bool,
    torch_compile: bool,
    max_error: float | None,
    rounds: int,
    seconds: float,
    out: Path | None,
    seed: int,
    json_file: str | None,
) -> None:
    """Measure how fast a whole MODEL is at several shares of zeros, beside other libraries.

    MODEL is a name such as resnet50 or mobilenet_v2; torchvision:NAME, timm:NAME or transformers:CONFIG; a folder with
    a config.json; or MODULE:FUNCTION that returns a model. With @FILE behind it its weights come from a file.

    Weights are pruned by magnitude, layer by layer, except the first convolution, depthwise ones, the classifier and
    what the pattern does not fit; accuracy is not looked at. Every library runs the same weights in a process of its
    own, in turns with the others, and its output is compared with the dense model's.
    """
    import torch

    from sparsecore.bench.models import find_model
    from sparsecore.bench.whole_models import files
    from sparsecore.bench.whole_models import tables as model_tables
    from sparsecore.bench.whole_models.libraries import PEERS, TORCH_COMPILE
    from sparsecore.bench.whole_models.run import Plan, measure

    _check_shares(pattern, are_given=bool(sparsities), has_default=True)
    if out is not None:
        require_extra("matplotlib", "bench")  # now, not after the work
        out.mkdir(parents=True, exist_ok=True)
    wanted = [*(PEERS if peers else ()), *((TORCH_COMPILE,) if torch_compile else ())]
    plan = Plan(
        find_model(model),
        shape,
        batches,
        sparsities,
        thread_counts or (torch.get_num_threads(),),
        wanted,
        max_error,
        rounds,
        seconds,
        seed,
        pattern,
    )
    report = measure(plan, progress.lines())  # a bar that is redrawn would disturb what is measured
    if out is not None:
        files.write(report, out)
    if write_json(report, json_file):
        show(*(table.rich() for table in model_tables.tables(report)), *model_tables.notes(report))
        if out is not None:
            show(f"Written to {out.resolve()}")
    if not report["complete"]:
        stop_incomplete()


@click.command()
@click.argument("model")
@click.option("--sparsity", type=_SPARSITY, help="Prune to this share of zeros [default: the model as it is].")
@_pattern_option
@click.option("--batch", type=click.IntRange(min=1), help="Samples of the input [default: the input's, 1].")
@shape_option
@click.option("--int8", "max_error", type=Finite(0, min_open=True), metavar="ERROR", help="Allow int8, as in bench.")
@threads_option
@seed_option
@json_option
def explain(
    model: str,
    sparsity: float | None,
    pattern: str,
    batch: int | None,
    shape: tuple[int, ...],
    max_error: float | None,
    threads: int | None,
    seed: int,
    json_file: str | None,
) -> None:
    """Compile a MODEL for this machine, and show what every layer runs as, how fast, and why.

    MODEL and what is pruned: as in `sparsecore bench`.
    """
    import sparsecore
    from sparsecore._threads import use_threads
    from sparsecore.bench.models import find_model, load_model
    from sparsecore.bench.whole_models.fast import make_fast
    from sparsecore.bench.whole_models.pruning import prune_model

    _check_shares(pattern, are_given=sparsity is not None, has_default=False)
    source = find_model(model)
    dense, (x,) = load_model(source, batch=batch, shape=shape, seed=seed)
    with progress_on_stderr() as report_progress, use_threads(threads):
        pruned = prune_model(source, dense, x, sparsity, seed, pattern)
        with progress.stage(report_progress, "compile, measuring every layer") as share:
            fast = make_fast(pruned.model, (x,), max_error=max_error, progress=share)
    explanation = sparsecore.explain(fast)
    result = {"model": model, "input": list(x.shape), "zeros": pruned.sparsity, "pruned": pruned.what}
    result |= explanation.to_dict()
    if write_json(result, json_file):
        show(str(explanation), pruned.what)
