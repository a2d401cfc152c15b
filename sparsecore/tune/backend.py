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

    Weights are taken as they are at the first call; when they change, the graph runs as it is. So it does, with a
    warning, where it cannot be captured, such as one that changes a buffer, and while gradients are recorded: call
    the model under ``torch.no_grad()``.

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
    weights = [i for i, x in enumerate(example_inputs) if isinstance(x, nn.Parameter) or _is_static(x)]
    data = [i for i in range(len(example_inputs)) if i not in weights]
    if torch.is_grad_enabled() or not data or any(not isinstance(example_inputs[i], Tensor) for i in data):
        return module.forward  # a backward pass may come, or there are sizes that change from call to call
    compiled: dict[tuple[int, ...], _Compiled] = {}

    @torch.compiler.disable
    def run(*inputs: Any) -> Any:
        # Dynamo runs one graph for all modules of a class, each with its own weights.
        held = [inputs[i] for i in weights]
        key = tuple(map(id, held))
        entry = compiled.get(key)
        if entry is None and len(compiled) < MOST_MODULES:
            # Not before Dynamo is done: capturing inside of it would break its guards.
            fast = _compile(_freeze(module, inputs, weights), tuple(inputs[i] for i in data), options)
            entry = compiled[key] = _Compiled(fast, held)
        if entry is None or entry.module is None or not entry.is_current():
            return module.forward(*inputs)
        return pytree.tree_leaves(entry.module(*(inputs[i] for i in data)))

    return run


# Modules that one graph is compiled for; further ones run as they are.
MOST_MODULES = 64


class _Compiled:
    """A graph compiled with some weights; the module is None if it runs as it is."""

    def __init__(self, module: CompiledModule | None, weights: Sequence[Tensor]) -> None:
        self.module = module
        self.weights = weights  # alive, so that their ids stay theirs
        self.versions = [weight._version for weight in weights]

    def is_current(self) -> bool:
        """Whether the weights are what was compiled; if not, this entry is given up, with a warning."""
        if [weight._version for weight in self.weights] == self.versions:
            return True
        self.module = None
        warnings.warn(
            "weights changed since they were compiled: the graph runs as it is from now on; "
            "torch.compiler.reset() compiles it again",
            stacklevel=4,
        )
        return False


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


def _freeze(module: fx.GraphModule, inputs: Sequence[Any], weights: Sequence[int]) -> nn.Module:
    """A copy that holds its weights, and takes the other inputs."""
    root = copy_graph(module)
    graph = root.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for i in weights:
        name, value = f"frozen_{i}", inputs[i]
        if isinstance(value, nn.Parameter):
            root.register_parameter(name, value)
        else:
            root.register_buffer(name, value)
        with graph.inserting_before(placeholders[i]):
            placeholders[i].replace_all_uses_with(graph.get_attr(name))
        graph.erase_node(placeholders[i])
    root.recompile()
    return root.eval()


def _is_static(value: Any) -> bool:
    """Whether Dynamo knows a tensor for one that stays, such as a module's buffer."""
    return isinstance(value, Tensor) and getattr(value, "_dynamo_static_input_type", None) is not None
