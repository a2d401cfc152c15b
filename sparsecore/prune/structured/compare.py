"""How far the outputs of two models are apart, in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, call_model, cloned


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, example_inputs: ExampleInputs) -> float:
    """Compare two models on the same inputs.

    Args:
        one: Any module in evaluation mode, with floating-point tensors among its outputs; it is not changed.
        other: As ``one``, with outputs of the same shapes.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        The largest absolute difference of the outputs over the largest absolute output of ``one``.

    Example:
        >>> largest_difference(nn.ReLU(), nn.Identity(), torch.tensor([2.0, -1.0]))
        0.5
    """
    inputs = to_double(example_inputs)
    expected, got = (_outputs(copy.deepcopy(model).double(), inputs) for model in (one, other))
    largest = max((float(output.abs().max()) for output in expected), default=0.0)
    difference = max((float((a - b).abs().max()) for a, b in zip(expected, got, strict=True)), default=0.0)
    return difference / largest if largest else difference


def to_double(example_inputs: ExampleInputs) -> ExampleInputs:
    """Return inputs whose floating-point tensors are float64."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, example_inputs
    )


def _outputs(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    leaves = pytree.tree_leaves(call_model(model, cloned(inputs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
