"""How a model is called on example inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: A tensor, positional arguments (tuple or list), or keyword arguments (mapping).
ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def as_arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, positional (tuple or list) or keyword arguments (mapping)."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise TypeError(
        "expected example_inputs as a tensor, a tuple of positional or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}"
    )


def cloned(example_inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs in memory of their own, since a model may change them."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, example_inputs)


def call_model(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Run a model on a tensor, on positional arguments (tuple or list) or on keyword arguments (mapping)."""
    args, kwargs = as_arguments(example_inputs)
    return model(*args, **kwargs)
