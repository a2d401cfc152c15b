"""How a model is called on its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Call(NamedTuple):
    """Positional and keyword arguments, for inputs that are both."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


#: A tensor, positional arguments (tuple or list), keyword arguments (mapping), or Call.
ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def as_arguments(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that inputs stand for.

    Raises:
        TypeError: they are not a tensor, tuple, list or mapping.
    """
    if isinstance(inputs, Call):
        return inputs.args, dict(inputs.kwargs)
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    raise TypeError(
        "expected the model's inputs as a tensor, a tuple of positional or a dict of keyword arguments, "
        f"got {type(inputs).__name__}"
    )


def cloned(example_inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs in memory of their own, since a model may change them."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, example_inputs)


def call_model(model: nn.Module, inputs: ExampleInputs) -> Any:
    """Run a model on a tensor, on positional arguments (tuple or list), on keyword arguments (mapping), or on Call."""
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)
