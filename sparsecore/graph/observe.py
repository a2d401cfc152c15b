"""Watches one run of a model: which layers ran on what shapes, and who read their outputs.

A model that cannot be captured as a graph can still be run once. What is seen then holds for that run: a model whose
control flow depends on its data may do something else on other data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sparsecore.calls import ExampleInputs, call_model


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what runs change in a model, such as counters."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in before:
                if buffer._version != version:
                    buffer.copy_(value)


@dataclass(frozen=True)
class Call:
    """One call of a layer: shape and type of its input, and whether it also got a residual."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    has_residual: bool = False


@dataclass
class Observation:
    """What one run showed.

    Attributes:
        calls: layer to its calls, in order.
        readers: layer to the functions that read its output, for layers that were called once; reading its
            shape does not count.
    """

    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    readers: dict[nn.Module, list[Callable[..., Any]]] = field(default_factory=dict)
    _inputs: dict[nn.Module, list[int]] = field(default_factory=dict)
    _outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def source(self, module: nn.Module) -> nn.Module | None:
        """The layer whose output, as it is, was the input of a module that ran once; else None."""
        inputs = self._inputs.get(module, [])
        if len(inputs) != 1:
            return None
        makers = [m for m, made in self._outputs.items() if any(id(y) == inputs[0] for y in made)]
        return makers[0] if len(makers) == 1 and len(self._outputs[makers[0]]) == 1 else None

    def cut_batches(self, layers: Iterable[nn.Module], sizes: Sequence[int]) -> None:
        """Take every call of these layers for one call per slice of its batch, of so many samples each."""
        for layer in layers:
            calls = self.calls.get(layer, [])
            self.calls[layer] = [replace(call, shape=(size, *call.shape[1:])) for call in calls for size in sizes]


def observe(model: nn.Module, example_inputs: ExampleInputs, layers: Mapping[str, nn.Module]) -> Observation:
    """Run the model once and record the calls of the layers.

    Args:
        model: in eval mode, unless its training behaviour is what matters.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        layers: name to module, those to watch.

    Returns:
        The calls, and who read each output.
    """
    seen = Observation()
    uses: dict[int, list[Callable[..., Any]]] = {}

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        tensors = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
        if 1 <= len(tensors) <= 2 and isinstance(output, Tensor):
            call = Call(tuple(tensors[0].shape), tensors[0].dtype, has_residual=len(tensors) == 2)
            seen.calls.setdefault(module, []).append(call)
            seen._inputs.setdefault(module, []).append(id(tensors[0]))
            seen._outputs.setdefault(module, []).append(output)  # kept alive, so that ids stay unique

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers.values()):
            stack.callback(layer.register_forward_hook(record, with_kwargs=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Readers(uses))
        result = call_model(model, example_inputs)

    returned = Counter(id(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
    for layer, outputs in seen._outputs.items():
        if len(outputs) == 1:
            escapes = [_model_output] * returned[id(outputs[0])]
            seen.readers[layer] = uses.get(id(outputs[0]), []) + escapes
    return seen


def _model_output() -> None:
    """Stands among the readers of a tensor that the model returns."""


# Questions about a tensor that do not read its numbers.
_METADATA = {
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
}


class _Readers(TorchFunctionMode):
    """Records for every tensor which functions took it as an argument."""

    def __init__(self, uses: dict[int, list[Callable[..., Any]]]) -> None:
        super().__init__()
        self.uses = uses
        self._alive: list[Tensor] = []  # a freed tensor's id would be given to another one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _METADATA:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._alive.append(leaf)
                    self.uses.setdefault(id(leaf), []).append(func)
        return func(*args, **kwargs)
