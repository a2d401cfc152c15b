"""sc.compile: a whole model as a graph of fused layers, each in the format that runs fastest here."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.errors import UnsupportedError
from sparsecore.graph import copy_model, observe
from sparsecore.graph.capture import Captured
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.prepare import Prepared, prepare
from sparsecore.graph.requantize import pass_int8_on
from sparsecore.prune import fold_torch_pruning
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.choice import ATTRIBUTE
from sparsecore.tune.chooser import AllowedError, Chooser, choosable_layers
from sparsecore.tune.convert import convert
from sparsecore.tune.gpu import is_on_gpu
from sparsecore.tune.settings import Policy, Settings, check_settings
from sparsecore.tune.whole import faster_of, with_pass_times

# Fused outputs differ from the model's by rounding; more than this of their norm is another model.
MOST_CAPTURE_ERROR = 1e-3
# torch.export traces for the whole process, and layers that are timed side by side slow each other down.
_ONE_AT_A_TIME = threading.RLock()


def compile(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    max_error: float | None = None,
    policy: Policy | None = None,
    exclude: Iterable[str] = (),
    cache: bool | str | os.PathLike[str] = True,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """Return a fast form of a model, for inference.

    torch.export captures the model as a graph. In it BatchNorm is folded, activations and residual additions become a
    part of the layer before them, and every layer gets the format that is fastest on the shapes it has in the
    example; dense is always a candidate. What runs between layers stays in their memory layout. The first call with
    inputs of a shape records the kernels on buffers that are planned once; further calls only run them.

    A layer of an int8 model (``quantize()``, ``convert_qat()``) may run in float too, where that is faster: it is then
    neither rounded nor limited to its static range, and its output is that of the float model with int8's weights.
    ``policy={layer: "int8"}`` keeps it in int8.

    A model on a GPU is converted layer by layer by ``convert()``; torch.compile() fuses what is between the layers.
    A model that cannot be captured is converted layer by layer by ``convert()`` instead, with a warning that says why.

    Args:
        model: any module; it stays as it is. The batch size, dimension 0 of every tensor, is free afterwards if the
            model allows it.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, of the shapes that matter.
        max_error: allow integers up to this relative error of the output; see ``convert()``.
        policy: ``"measure"``, ``"model"`` or a dict of layer names to formats or kernels; see ``convert()``.
        exclude: names of layers to leave dense.
        cache: look measured times up on disk and keep them: in SPARSECORE_CACHE_DIR, or in a file of this path.
        progress: called with the share done, from 0 to 1.

    Returns:
        A CompiledModule, called like the model; ``explain()`` shows the choices.

    Raises:
        ValueError: as ``convert()``; or the model is compiled already.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fast = compile(model, torch.randn(1, 3, 16, 16))
        >>> fast(torch.randn(4, 3, 16, 16)).shape
        torch.Size([4, 8, 14, 14])
    """
    options = {"max_error": max_error, "policy": policy, "exclude": exclude, "cache": cache}
    if isinstance(model, CompiledModule):
        raise ValueError("expected a model, got one that compile() made; compile the original again")
    settings = replace(check_settings(model, example_inputs, max_error, policy, exclude, cache), is_recorded=True)
    progress = progress or (lambda share: None)
    if is_on_gpu(model):
        reason = "converted layer by layer: a model on a GPU stays a torch module, which torch.compile() can fuse"
        return _with_note(convert(model, example_inputs, **options, progress=progress), reason)  # type: ignore[arg-type]
    with _ONE_AT_A_TIME:
        return _compile(model, example_inputs, settings, options, progress)


def _compile(
    model: nn.Module,
    example_inputs: ExampleInputs,
    settings: Settings,
    options: Mapping[str, Any],
    progress: Callable[[float], None],
) -> nn.Module:
    if isinstance(example_inputs, Mapping):  # any mapping, such as a tokenizer's, is then one that pytree knows
        example_inputs = dict(example_inputs)
    given, example_inputs = example_inputs, cloned(example_inputs)
    copied = copy_model(model).eval()
    fold_torch_pruning(copied)
    try:
        prepared = _prepare(copied, example_inputs)
    except UnsupportedError as error:
        reason = f"converted layer by layer, since it cannot be captured: {error}"
        warnings.warn(f"the model is {reason}", stacklevel=3)
        return _with_note(convert(model, given, **options, progress=progress), reason)
    captured, inputs = prepared.own, tuple(_tensors(example_inputs))
    layers = choosable_layers(captured.module)
    seen = observe(captured.module, inputs, layers)
    if (slices := CompiledModule(captured).slices_for(inputs)) is not None:
        in_front = {layer for name, layer in layers.items() if name in slices.layers}
        seen.cut_batches(in_front, slices.sizes)
    allowed = None
    if settings.max_error is not None:
        reference = ReferenceOutputs(captured.module, layers, [inputs])
        allowed = AllowedError(settings.max_error, reference)
    explanation = Chooser(nn.Sequential(captured.module), seen, settings, allowed).run(progress)
    pass_int8_on(captured.module)
    compiled = CompiledModule(captured)
    if settings.is_measured:
        if allowed is None and not settings.fixed and not settings.excluded:
            compiled, explanation = faster_of(compiled, prepared.dense, inputs, explanation)
        explanation = with_pass_times(compiled, inputs, explanation)
    setattr(compiled, ATTRIBUTE, explanation)
    return compiled


def _with_note(converted: nn.Module, note: str) -> nn.Module:
    setattr(converted, ATTRIBUTE, replace(getattr(converted, ATTRIBUTE), note=note))
    return converted


def _prepare(model: nn.Module, example_inputs: ExampleInputs) -> Prepared:
    """Capture and fuse; check that the result is still the model."""
    one = pytree.tree_map(_first_sample, example_inputs)
    with torch.no_grad():
        # Both now: layers that the model has packed already are fused in their places.
        expected, expected_of_one = _tensors(call_model(model, example_inputs)), _outputs_of_one(model, one)
        prepared = prepare(model, example_inputs)
        try:
            outputs = _tensors(prepared.own.module(*_tensors(example_inputs)))
        except RuntimeError as error:
            raise UnsupportedError(f"the graph does not run on the example: {error}") from error
    if not _are_close(outputs, expected):
        raise UnsupportedError("the graph computes something else than the model, which may depend on its data")
    if expected_of_one is None or not _computes(prepared.own, one, expected_of_one):
        return prepared
    inputs = tuple(
        replace(entry, shape=tuple(replace(d, least=1) if d.least == 2 else d for d in entry.shape))
        for entry in prepared.own.inputs
    )
    return Prepared(replace(prepared.own, inputs=inputs), replace(prepared.dense, inputs=inputs))


def _first_sample(leaf: object) -> object:
    return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf


def _outputs_of_one(model: nn.Module, one: ExampleInputs) -> list[Tensor] | None:
    """What the model makes of a single sample; None if it takes none."""
    try:
        return _tensors(call_model(model, one))
    except Exception:  # any error of any model's own code
        return None


def _computes(captured: Captured, inputs: ExampleInputs, expected: Sequence[Tensor]) -> bool:
    with torch.no_grad():
        try:
            return _are_close(_tensors(captured.module(*_tensors(inputs))), expected)
        except RuntimeError:
            return False


def _are_close(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    return len(got) == len(want) and all(map(_is_close, got, want))


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _is_close(got: Tensor, want: Tensor) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if not want.is_floating_point():
        return torch.equal(got, want)
    difference, size = (got.double() - want.double()).norm(), want.double().norm()
    limit = MOST_CAPTURE_ERROR if want.dtype == torch.float32 else 30 * MOST_CAPTURE_ERROR
    return bool(difference <= limit * size) or not bool(want.isfinite().all())
