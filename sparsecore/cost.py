"""What a model costs, by counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsecore.calibration import evaluation_mode, every_layer_called, first_names
from sparsecore.calls import call_model

_Shape = torch.Size | tuple[int, ...]


def _vector_flops(matrix: _Shape, vector: _Shape, *args: Any, **kwargs: Any) -> int:
    """Operations of a matrix times a vector, which a linear layer does for an input of one dimension."""
    return 2 * matrix[0] * matrix[1]


def _attention_flops(query: _Shape, key: _Shape, value: _Shape, *args: Any, **kwargs: Any) -> int:
    """Operations of both products of attention, causal or not."""
    *batch_and_heads, length, width = query
    return 2 * math.prod(batch_and_heads) * length * key[-2] * (width + value[-1])


# What PyTorch's counter leaves out.
_MORE: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.addmv: lambda bias, matrix, vector, *args, **kwargs: _vector_flops(matrix, vector),
}


def count_multiply_adds(model: nn.Module, inputs: Any) -> int:
    """Count the multiply-adds of one call, of the matrix products, convolutions and attention that really run.

    Products with stored zeros count; additions of a bias, activations and normalisation do not, and neither do the
    layers of :mod:`sparsecore.nn`.

    Args:
        model: Any module of PyTorch's own layers; it runs once, in evaluation mode.
        inputs: A tensor, a tuple or list of positional or a dict of keyword arguments.

    Returns:
        Multiply-adds of the whole batch; each is two floating-point operations.

    Example:
        >>> count_multiply_adds(nn.Linear(100, 10), torch.ones(4, 100))
        4000
    """
    return _count(model, inputs, {})[""]


def count_by_layer(model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count as :func:`count_multiply_adds` does, layer by layer; nothing is computed for a model on ``meta``.

    Args:
        model: As for :func:`count_multiply_adds`.
        inputs: As for :func:`count_multiply_adds`.
        layers: Layers of the model by name, none inside another.

    Returns:
        Name -> multiply-adds of all its calls, for each layer that was called, in the order of ``layers``; of several
        names of one layer the first.

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 2))
        >>> count_by_layer(model, torch.ones(4, 100), {"0": model[0], "2": model[2]})
        {'0': 4000, '2': 80}
    """
    counts = _count(model, inputs, layers)
    return {name: counts[name] for name in first_names(layers).values() if name in counts}


@torch.no_grad()
def _count(model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module]) -> Counter[str]:
    """Multiply-adds by layer, and of the whole call under the name ``""`` if that is no layer."""
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    counts: Counter[str] = Counter()

    def before(name: str) -> None:
        counts[name] -= counter.get_total_flops() // 2

    def after(name: str) -> None:
        counts[name] += counter.get_total_flops() // 2

    with evaluation_mode(model), every_layer_called(), counter, ExitStack() as stack:
        for layer, name in first_names(layers).items():
            stack.callback(layer.register_forward_pre_hook(lambda *_, name=name: before(name)).remove)
            stack.callback(layer.register_forward_hook(lambda *_, name=name: after(name)).remove)
        call_model(model, inputs)
    if "" not in counts:
        counts[""] = counter.get_total_flops() // 2
    return counts
