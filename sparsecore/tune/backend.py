"""``torch.compile(model, backend="sparsecore")``: compile() for the graphs that Dynamo captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsecore.tune.compile import compile


def backend(module: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs; found by torch.compile under the name ``sparsecore``.

    Weights are taken as they are at compile time. While gradients are recorded the graph runs as it is: call the
    model under ``torch.no_grad()``.

    Args:
        module: takes the tensors of example_inputs, parameters and buffers of the model among them.
        example_inputs: as Dynamo gives them.
        options: those of ``compile()``, from ``torch.compile(..., options={...})``.

    Example:
        >>> import sparsecore
        >>> fast = torch.compile(nn.Linear(8, 4), backend="sparsecore")
        >>> with torch.no_grad():
        ...     fast(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    frozen, data = _freeze(module, example_inputs)
    if torch.is_grad_enabled() or not data or any(not isinstance(example_inputs[i], Tensor) for i in data):
        return module.forward  # a backward pass may come, or there are sizes that change from call to call
    compiled: list[nn.Module] = []

    @torch.compiler.disable
    def run(*inputs: Any) -> list[Any]:
        given = tuple(inputs[i] for i in data)
        if not compiled:  # not before Dynamo is done: capturing inside of it would break its guards
            compiled.append(compile(frozen, given, **options))
        return pytree.tree_leaves(compiled[0](*given))

    return run


def _freeze(module: fx.GraphModule, example_inputs: Sequence[Any]) -> tuple[nn.Module, list[int]]:
    """A copy that holds its parameters and buffers, and the numbers of the inputs that it still takes."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    root = fx.GraphModule(module, graph)
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
