"""What a run leaves: measured, compiled, saved, and loaded again."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.bench import probes
from sparsecore.bench.timing import Timing, interleave
from sparsecore.calibration import call_model, evaluation_mode
from sparsecore.cost import count_multiply_adds
from sparsecore.errors import BundleError
from sparsecore.io import built, load, save, write_as_it_is
from sparsecore.nn import CompressedModule
from sparsecore.train.compressor.report import CompressionReport, Row, counts
from sparsecore.train.compressor.run import Run
from sparsecore.train.compressor.structure import Change, apply_change, cuts_alone
from sparsecore.tune import compile

MODEL = "model.safetensors"
REPORT = "report.json"
# Of timing one model, at least.
_MIN_TIME_S = 0.2
_MACHINE = ("cpu", "isa", "threads", "torch", "sparsecore")


def measured(run: Run, after: str, epoch: int, metric: float) -> Row:
    """Measure the model of a run as it is."""
    model = run.model
    timing = _timed({"model": model}, run.example_inputs)["model"]
    has_own_layers = any(isinstance(module, CompressedModule) for module in model.modules())
    multiply_adds = None if has_own_layers else count_multiply_adds(model, run.example_inputs)
    return _row(model, after, epoch, metric, multiply_adds, _file_size(model), timing)


def compiled_and_saved(
    run: Run,
    dense: nn.Module,
    options: Mapping[str, Any] | bool,
    rows: Sequence[Row],
    changes: Sequence[Change],
    folder: Path,
) -> tuple[nn.Module, CompressionReport]:
    """Compile the model of a run, save it and its report.

    Args:
        run: When all training is over.
        dense: The model as it was given.
        options: Of ``compile()``, or whether to compile at all.
        rows: What was measured before.
        changes: What was cut and replaced.
        folder: Where files go.

    Returns:
        The model that was saved, and the report with its row.
    """
    model = run.model.eval().cpu()
    inputs = pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, run.example_inputs)
    fast = model
    if options is not False:
        fast = compile(model, inputs, **(dict(options) if isinstance(options, Mapping) else {}))
    path = folder / MODEL
    save(fast, path, edits=cuts_alone(changes))
    candidates = {"as given, PyTorch": dense.eval().cpu(), "compressed, PyTorch": model}
    if fast is not model:
        candidates["compressed, compiled"] = fast
    timings = _timed(candidates, inputs)
    name, last = ("compiled", "compressed, compiled") if fast is not model else ("saved", "compressed, PyTorch")
    metric, size = run.evaluate_here(fast), path.stat().st_size
    row = _row(model, name, rows[-1].epoch, metric, rows[-1].multiply_adds, size, timings[last])
    machine = probes.machine()
    report = CompressionReport(
        (*rows, row),
        tuple(changes),
        {name: timing.median_us for name, timing in timings.items()},
        {name: machine[name] for name in _MACHINE if name in machine},
    )
    report.write(folder)
    return fast, report


def load_result(folder: str | os.PathLike[str], model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Load the model that a run saved.

    ``sparsecore.load()`` does so too where all that changed the architecture are cuts of channels.

    Args:
        folder: The run's output folder.
        model_fn: Builds the model as it was given to the run, with any weights.

    Returns:
        As ``sparsecore.load()``.

    Raises:
        BundleError: A file is damaged, or of another model.
    """
    folder = Path(folder)
    try:
        changes = json.loads((folder / REPORT).read_text(encoding="utf-8"))["changes"]
        kinds = [change["kind"] for change in changes]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / REPORT}: expected the report of a run") from error
    if cuts_alone(changes) is not None or not changes:
        return load(folder / MODEL, model_fn)
    own = [change for change, kind in zip(changes, kinds, strict=True) if kind != "fold_batchnorm"]

    def changed() -> nn.Module:
        model = built(model_fn)
        for change in own:
            apply_change(model, change, ())
        return model

    return load(folder / MODEL, changed)


def _timed(models: Mapping[str, nn.Module], inputs: Any) -> dict[str, Timing]:
    """Time a run of each model on the example, in turns."""
    calls = {name: partial(_inference, model, inputs) for name, model in models.items()}
    if len(models) == 1:
        (model,) = models.values()
        with evaluation_mode(model):
            return interleave(calls, min_time_s=_MIN_TIME_S)
    return interleave(calls, min_time_s=_MIN_TIME_S * len(models))


@torch.inference_mode()
def _inference(model: nn.Module, inputs: Any) -> Any:
    return call_model(model, inputs)


def _row(
    model: nn.Module, after: str, epoch: int, metric: float, multiply_adds: int | None, size: int, timing: Timing
) -> Row:
    return Row(
        after,
        epoch,
        metric,
        **counts(model),
        multiply_adds=multiply_adds,
        disk_bytes=size,
        median_us=timing.median_us,
        q25_us=timing.q25_us,
        q75_us=timing.q75_us,
    )


def _file_size(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        write_as_it_is(copy.deepcopy(model).cpu(), path)
        return path.stat().st_size
