"""sc.compile: a whole model as a graph of fused layers, each in the format that runs fastest here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.errors import UnsupportedError
from sparsecore.graph import copy_model, observe
from sparsecore.graph.capture import Captured, capture
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.fuse import fuse
from sparsecore.graph.lower import lower
from sparsecore.graph.observe import ExampleInputs, call_model
from sparsecore.prune import fold_torch_pruning
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.choice import ATTRIBUTE
from sparsecore.tune.chooser import AllowedError, Chooser, Policy, check_settings, choosable_layers
from sparsecore.tune.convert import convert

# Fused outputs differ from the model's by rounding; more than this of their norm is another model.
MOST_CAPTURE_ERROR = 1e-3


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
    """Return a fast form of a model, for inference on the CPU.

    torch.export captures the model as a graph. In it BatchNorm is folded, activations and residual additions become a
    part of the layer before them, and every layer gets the format that is fastest on the shapes it has in the
    example; dense is always a candidate. What runs between layers stays in their memory layout. The first call with
    inputs of a shape records the kernels on buffers that are planned once; further calls only run them.

    A model that cannot be captured is converted layer by layer by ``convert()`` instead, with a warning that says why.

    Args:
        model: any module; it stays as it is. The batch size, dimension 0 of every tensor, is free afterwards if the
            model allows it.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, of the shapes that matter.
        max_error: allow int8 up to this relative error of the output; see ``convert()``.
        policy: ``"measure"``, ``"model"`` or a dict of layer names to formats or kernels; see ``convert()``.
        exclude: names of layers to leave dense.
        cache: look measured times up on disk and keep them: in SPARSECORE_CACHE_DIR, or in a file of this path.
        progress: called with the share done, from 0 to 1.

    Returns:
        A CompiledModule, called like the model; ``explain()`` shows the choices.

    Raises:
        ValueError: as ``convert()``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fast = compile(model, torch.randn(1, 3, 16, 16))
        >>> fast(torch.randn(4, 3, 16, 16)).shape
        torch.Size([4, 8, 14, 14])
    """
    settings = replace(check_settings(model, example_inputs, max_error, policy, exclude, cache), is_recorded=True)
    progress = progress or (lambda share: None)
    copied = copy_model(model).eval()
    fold_torch_pruning(copied)
    try:
        captured = _capture(copied, example_inputs)
    except UnsupportedError as error:
        warnings.warn(f"the model is converted layer by layer, it cannot be captured: {error}", stacklevel=2)
        return convert(
            model,
            example_inputs,
            max_error=max_error,
            policy=policy,
            exclude=exclude,
            cache=cache,
            progress=progress,
        )
    del copied
    inputs = tuple(leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, Tensor))
    seen = observe(captured.module, inputs, choosable_layers(captured.module))
    root = nn.Sequential(captured.module)
    allowed = None
    if settings.max_error is not None:
        reference = ReferenceOutputs(captured.module, choosable_layers(captured.module), [inputs])
        allowed = AllowedError(settings.max_error, reference)
    explanation = Chooser(root, seen, settings, allowed).run(progress)
    compiled = CompiledModule(captured)
    setattr(compiled, ATTRIBUTE, explanation)
    return compiled


def _capture(model: nn.Module, example_inputs: ExampleInputs) -> Captured:
    """Capture, lower and fuse; check that the result is still the model."""
    captured = capture(model, example_inputs)
    lower(captured.module, model)
    with torch.no_grad():
        expected = _tensors(call_model(model, example_inputs))
        fuse(captured.module)
        outputs = _tensors(captured.module(*_tensors(example_inputs)))
    for got, want in zip(outputs, expected, strict=True):
        if not _is_close(got, want):
            raise UnsupportedError("the graph computes something else than the model, which may depend on its data")
    return captured


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
