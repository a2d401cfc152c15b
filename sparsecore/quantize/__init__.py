"""Post-training quantization to int8: weights per channel, activations dynamic or calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.weights import Selector
from sparsecore.quantize.affine import affine_range
from sparsecore.quantize.calibrate import OBSERVERS, observe

__all__ = ["OBSERVERS", "quantize"]


def quantize(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    activations: Literal["dynamic", "static"] = "dynamic",
    exclude: Selector | Iterable[Selector] = (),
    observer: str = "minmax",
    progress: bool = True,
) -> nn.Module:
    """Replace the linear layers and 2-D convolutions of a model by int8 ones, in place.

    nn.Linear and nn.Conv2d become Int8Linear and Int8Conv2d, SparseLinear and SparseConv2d their
    SparseInt8 forms; subclasses stay as they are. Weights are symmetric per output channel, and
    zeros stay exactly zero. Layers are replaced only after everything else went well.

    Args:
        model: any module that contains such layers.
        batches: calibration data for static activations: tensors, tuples of positional or dicts of
            keyword arguments of the model, which runs in evaluation mode.
        activations: ``"dynamic"`` scales each row of activations by its own maximum when it comes;
            ``"static"`` takes one scale and zero point per layer from the calibration batches.
        exclude: what to leave alone: names of modules, fnmatch patterns (``"blocks.0.*"``) or
            module types. A module stands for all that is inside.
        observer: how the static range is chosen from what was seen: a row of OBSERVERS.
        progress: write a line to stderr while a long calibration runs.

    Returns:
        The same model.

    Raises:
        ValueError: an argument is out of range, batches are missing or empty, or an activation is
            NaN or infinite.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: there is nothing to quantize, or a layer that the int8 kernels cannot run.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> quantize(model, [torch.rand(16, 8)], activations="static")[0].x_zero_point
        -128

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, CVPR 2018.
    """
    if activations not in ("dynamic", "static"):
        raise ValueError(f'expected activations "dynamic" or "static", got {activations!r}')
    if isinstance(batches, Tensor):
        raise ValueError("expected batches as an iterable of inputs, got one tensor; put it in a list")
    if (activations == "static") != (batches is not None):
        raise ValueError('expected calibration batches exactly with activations="static"')
    layers = _layers(model, exclude)
    inputs: dict[nn.Module, dict[str, Any]] = {}
    if batches is not None:
        ranges = observe(model, layers, batches, observer=observer, progress=progress)
        inputs = {
            layer: dict(zip(("x_scale", "x_zero_point"), affine_range(*seen), strict=True))
            for layer, seen in ranges.items()
        }
    builders = _builders()
    quantized: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        try:
            quantized[layer] = builders[type(layer)](layer, **inputs.get(layer, {}))
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{name}: {error}; exclude={name!r} leaves it out") from error
        quantized[layer].train(layer.training)
    from sparsecore.nn import put_layer

    for name, layer in layers.items():
        put_layer(model, name, quantized[layer])
    return model


def _builders() -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """What each class of layer becomes; imported late, for sparsecore.nn builds on this package."""
    from sparsecore import nn as compressed

    return {
        nn.Linear: compressed.Int8Linear.from_dense,
        nn.Conv2d: compressed.Int8Conv2d.from_dense,
        compressed.SparseLinear: compressed.SparseInt8Linear.from_sparse,
        compressed.SparseConv2d: compressed.SparseInt8Conv2d.from_sparse,
    }


def _layers(model: nn.Module, exclude: Selector | Iterable[Selector]) -> dict[str, nn.Module]:
    """The layers to replace, under each of their names."""
    selectors = (exclude,) if isinstance(exclude, str | type) else tuple(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    for selector in selectors:
        if isinstance(selector, str) and not any(fnmatchcase(name, selector) for name in modules):
            raise ValueError(f"exclude: nothing in the model is called {selector!r}")

    def is_excluded(name: str) -> bool:
        parts = name.split(".")
        owners = [".".join(parts[:end]) for end in range(len(parts) + 1)]
        return any(
            fnmatchcase(owner, selector) if isinstance(selector, str) else isinstance(modules[owner], selector)
            for selector in selectors
            for owner in owners
        )

    kinds = _builders().keys()
    layers = {name: module for name, module in modules.items() if type(module) in kinds and not is_excluded(name)}
    kind = type(model).__name__
    if "" in layers:
        raise UnsupportedError(f"a single {kind} cannot be replaced in place; use nn.Sequential()")
    if not layers:
        raise UnsupportedError(f"nothing to quantize in {kind}: no Linear or Conv2d is left")
    return layers
