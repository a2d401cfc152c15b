"""How far the outputs of two models are apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, call_model, cloned


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, example_inputs: ExampleInputs) -> float:
    """Compare two models on the same inputs.

    Args:
        one: Any module, with floating-point tensors among its outputs.
        other: As ``one``, with outputs of the same shapes.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        The largest absolute difference of the outputs over the largest absolute output of ``one``.

    Example:
        >>> largest_difference(nn.ReLU(), nn.Identity(), torch.tensor([2.0, -1.0]))
        0.5
    """
    expected, got = (_outputs(model, example_inputs) for model in (one, other))
    largest = max((float(output.abs().max()) for output in expected), default=0.0)
    difference = max((float((a - b).abs().max()) for a, b in zip(expected, got, strict=True)), default=0.0)
    return difference / largest if largest else difference


def _outputs(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    leaves = pytree.tree_leaves(call_model(model, cloned(inputs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
