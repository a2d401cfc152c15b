"""``torch.compile(model, backend="sparsecore")``: compile() for the graphs that Dynamo captures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.copy import copy_graph
from sparsecore.tune.choice import explain
from sparsecore.tune.compile import compile

# Keyword arguments of compile(), which are the options.
_OPTIONS = frozenset(name for name, p in signature(compile).parameters.items() if p.kind is p.KEYWORD_ONLY)


def backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs; found by torch.compile under the name ``sparsecore``.

    Weights are taken as they are at compile time. While gradients are recorded the graph runs as it is: call the
    model under ``torch.no_grad()``. So does, with a warning, a graph that cannot be captured, such as one that
    changes a buffer.

    Args:
        module: takes the tensors of example_inputs, parameters and buffers of the model among them.
        example_inputs: as Dynamo gives them.
        options: those of ``compile()``, from ``torch.compile(..., options={...})``.

    Raises:
        ValueError: there is no such option.

    Example:
        >>> import sparsecore
        >>> fast = torch.compile(nn.Linear(8, 4), backend="sparsecore")
        >>> with torch.no_grad():
        ...     fast(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    options = dict(options or {})
    if unknown := options.keys() - _OPTIONS:
        raise ValueError(f"expected options of sparsecore.compile(), {sorted(_OPTIONS)}, got {sorted(unknown)}")
    frozen, data = _freeze(module, example_inputs)
    if torch.is_grad_enabled() or not data or any(not isinstance(example_inputs[i], Tensor) for i in data):
        return module.forward  # a backward pass may come, or there are sizes that change from call to call
    compiled: list[CompiledModule | None] = []

    @torch.compiler.disable
    def run(*inputs: Any) -> Any:
        given = tuple(inputs[i] for i in data)
        if not compiled:  # not before Dynamo is done: capturing inside of it would break its guards
            compiled.append(_compile(frozen, given, options))
        if compiled[0] is None:
            return module.forward(*inputs)
        return pytree.tree_leaves(compiled[0](*given))

    return run


def _compile(frozen: nn.Module, given: tuple[Any, ...], options: Mapping[str, Any]) -> CompiledModule | None:
    """The compiled graph; None, with a warning, if it must run as it is.

    A graph that was converted layer by layer instead would change its own copies of what the model's one changes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model is converted layer by layer")
        compiled = compile(frozen, given, **options)
    if isinstance(compiled, CompiledModule):
        return compiled
    reason = explain(compiled).note.partition(": ")[2]
    warnings.warn(f"a graph of the model runs as it is, since it cannot be captured: {reason}", stacklevel=3)
    return None


def _freeze(module: fx.GraphModule, example_inputs: Sequence[Any]) -> tuple[nn.Module, list[int]]:
    """A copy that holds its parameters and buffers, and the numbers of the inputs that it still takes."""
    root = copy_graph(module)
    graph = root.graph
    data = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for i, (node, value) in enumerate(zip(placeholders, example_inputs, strict=True)):
        if not isinstance(value, nn.Parameter) and not _is_static(value):
            data.append(i)
            continue
        name = f"frozen_{i}"
        if isinstance(value, nn.Parameter):
            root.register_parameter(name, value)
        else:
            root.register_buffer(name, value)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
        graph.erase_node(node)
    root.recompile()
    return root.eval(), data


def _is_static(value: Any) -> bool:
    """Whether Dynamo knows a tensor for one that stays, such as a module's buffer."""
    return isinstance(value, Tensor) and getattr(value, "_dynamo_static_input_type", None) is not None
