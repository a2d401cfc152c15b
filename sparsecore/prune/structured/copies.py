"""Copies of a model to try something on: with its values, or with shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs


def copy_to(model: nn.Module, device: str | None) -> nn.Module:
    """Copy a model in evaluation mode, with gradients for all floating-point parameters.

    Args:
        model: Any module.
        device: Where the copy's tensors are: ``"meta"`` takes no memory; None is where the model's are.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        value = torch.empty_like(parameter, device=device) if device else parameter.detach().clone()
        memo[id(parameter)] = nn.Parameter(value, value.is_floating_point())
    if device:
        memo.update({id(buffer): torch.empty_like(buffer, device=device) for buffer in model.buffers()})
    return copy.deepcopy(model, memo).eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and every module back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def inputs_to(example_inputs: ExampleInputs, device: str | None) -> ExampleInputs:
    """Move inputs to a device; None leaves them where they are."""
    if device is None:
        return example_inputs
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example_inputs)


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
