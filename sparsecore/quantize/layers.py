"""Which layers of a model are quantized, and what each becomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from sparsecore.errors import FormatError, UnsupportedError, require_module
from sparsecore.prune.weights import Selector, as_selectors


def find_layers(
    model: nn.Module,
    exclude: Selector | Iterable[Selector],
    kinds: Collection[type[nn.Module]] | None = None,
) -> dict[str, nn.Module]:
    """Return the layers to replace, under each of their names.

    Args:
        model: any module.
        exclude: names, fnmatch patterns or types of modules to leave alone with all that is inside.
        kinds: classes of layers, without their subclasses; None for all that have an int8 form.

    Raises:
        TypeError: the model is no module, or ``exclude`` holds something else.
        ValueError: a name means nothing in the model.
        UnsupportedError: there is nothing to quantize, or the model is itself a layer.
    """
    require_module(model)
    selectors = as_selectors(exclude)
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

    kinds = _builders().keys() if kinds is None else kinds
    layers = {name: module for name, module in modules.items() if type(module) in kinds and not is_excluded(name)}
    kind = type(model).__name__
    if "" in layers:
        raise UnsupportedError(f"a single {kind} cannot be replaced in place; use nn.Sequential()")
    if not layers:
        others = (
            name for name, module in modules.items() if isinstance(module, tuple(kinds)) and not is_excluded(name)
        )
        other = next(others, None)
        why = f"; {other} is a {type(modules[other]).__name__}, a class of its own" if other else ""
        raise UnsupportedError(f"nothing to quantize or replace in {kind}: no Linear or Conv2d is left{why}")
    return layers


def quantize_layer(name: str, layer: nn.Module, settings: dict[str, Any], group_size: int | None = None) -> nn.Module:
    """Return the int8 or 4-bit form of a layer.

    Args:
        name: for errors.
        layer: one that find_layers() found.
        settings: x_scale, x_zero_point, x_channel_scale, as far as there are any.
        group_size: columns that share a scale in linear layers of 4 bits; None makes all int8.

    Raises:
        FormatError: the weight is NaN or infinite.
        UnsupportedError: a setting of the layer that the int8 kernels lack.
    """
    try:
        of_4_bits = {} if group_size is None else _builders_of_4_bits(group_size)
        quantized = (_builders() | of_4_bits)[type(layer)](layer, **settings)
    except (FormatError, UnsupportedError) as error:
        raise type(error)(f"{name}: {error}; exclude={name!r} leaves it out") from error
    return quantized.train(layer.training)


def _builders() -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """What each class of layer becomes; imported late, for sparsecore.nn builds on this package."""
    from sparsecore import nn as compressed

    def from_sparse(kind: Any) -> Callable[..., nn.Module]:
        def build(layer: Any, **settings: Any) -> nn.Module:
            if "x_channel_scale" in settings:  # the weight is multiplied on its way from dense
                return kind.from_dense(layer.to_dense_module(), activation=layer.activation, **settings)
            return kind.from_sparse(layer, **settings)

        return build

    return {
        nn.Linear: compressed.Int8Linear.from_dense,
        nn.Conv2d: compressed.Int8Conv2d.from_dense,
        compressed.SparseLinear: from_sparse(compressed.SparseInt8Linear),
        compressed.SparseConv2d: from_sparse(compressed.SparseInt8Conv2d),
    }


def _builders_of_4_bits(group_size: int) -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """What a class of layer becomes instead where weights have 4 bits."""
    from sparsecore import nn as compressed

    def from_sparse(layer: Any, **settings: Any) -> nn.Module:
        dense = layer.to_dense_module()
        return from_dense(dense, activation=layer.activation, **settings)

    from_dense = partial(compressed.SparseInt4Linear.from_dense, group_size=group_size)
    return {nn.Linear: from_dense, compressed.SparseLinear: from_sparse}
