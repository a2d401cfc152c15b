"""Which channels of a model go together; the only module that knows torch-pruning.

torch-pruning traces a model and says which layers depend on which. Here its dependencies are followed channel by
channel: two channels belong to one unit if one cannot go without the other. What it takes on trust, such as that an
operation it does not know acts on every element by itself, is checked later by running the model, see ``verify.py``.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, call_model
from sparsecore.errors import ModelError, UnsupportedError, require_extra, require_module
from sparsecore.graph.compiled import CompiledModule
from sparsecore.prune.structured.copies import copy_to, first_line, inputs_to
from sparsecore.prune.structured.layers import (
    BOTH,
    IN,
    OUT,
    channel_tensors,
    is_conv1d_of_transformers,
    is_producer,
    num_channels,
    tied_channels,
)

Indices = tuple[int, ...]

# Why a layer is in no unit.
UNSEEN = "no output depends on it in a run on the example inputs"


@dataclass(frozen=True)
class Unit:
    """Channels that can only go together.

    Attributes:
        channels: Layer -> its output channels in the unit; layers that make channels only (convolutions, linear).
        inputs: Layer -> its input channels in the unit, of the same kinds of layer.
        others: Layer of another kind, such as BatchNorm -> its channels in the unit.
        slices: (parameter or buffer, dimension) -> indices that go with the unit.
        reason: Why it cannot be cut; empty if nothing is known against it.
        doubt: Why it can hardly go alone, though perhaps with others, as a whole attention head can.
    """

    channels: Mapping[str, Indices]
    inputs: Mapping[str, Indices]
    others: Mapping[str, Indices]
    slices: Mapping[tuple[str, int], Indices]
    reason: str = ""
    doubt: str = ""


class _Place(NamedTuple):
    """A channel of a node of the graph."""

    node: Any
    space: str
    channel: int


class _Index(NamedTuple):
    """What torch-pruning's index mappings take and give: an index, and the one it came from."""

    idx: int
    root_idx: int | None


class _TransposedLinear:
    """transformers' Conv1D for torch-pruning, which asks for sizes and tells the two sides apart by these methods."""

    pruning_dim = -1

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        raise NotImplementedError  # Edits cut, not torch-pruning

    def prune_in_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        raise NotImplementedError

    def get_out_channels(self, layer: nn.Module) -> int:
        return int(layer.get_parameter("weight").shape[1])

    def get_in_channels(self, layer: nn.Module) -> int:
        return int(layer.get_parameter("weight").shape[0])


def find_units(model: nn.Module, example_inputs: ExampleInputs) -> list[Unit]:
    """Trace a model and list the units of all its channels, in the order of the model.

    Args:
        model: Any module that runs on the inputs; it is not changed.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ModelError: The model has no values, or does not run on the inputs.
        TypeError: It is no module.
        UnsupportedError: It is compiled, or torch-pruning cannot follow what it does.
    """
    _require_values(model)
    torch_pruning = require_extra("torch_pruning", "prune")
    traced, graph = _trace(torch_pruning, model, example_inputs)
    order = {name: number for number, name in enumerate(dict(model.named_modules()))}
    namer = _Namer(model, traced)
    units = [namer.unit(places) for places in _Links(graph).components()]
    return sorted(units, key=lambda unit: _first(unit, order))


def _require_values(model: nn.Module) -> None:
    require_module(model)
    for name, module in model.named_modules():
        if isinstance(module, CompiledModule):
            raise UnsupportedError(f"{name or 'the model'} is compiled: cut first, then compile")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"{name} has no shape yet: run the model once, so that lazy layers get theirs")
        if parameter.is_meta:
            raise ModelError(f"{name} is on the meta device and has no values: load the weights first")


def _first(unit: Unit, order: Mapping[str, int]) -> tuple[int, Indices]:
    return min(((order[name], indices) for name, indices in unit.channels.items()), default=(len(order), ()))


def _trace(torch_pruning: ModuleType, model: nn.Module, example_inputs: ExampleInputs) -> tuple[nn.Module, Any]:
    """Build torch-pruning's graph of a copy, without memory or arithmetic if the model runs on shapes alone."""
    for device in ("meta", None):
        traced, inputs = copy_to(model, device), inputs_to(example_inputs, device)
        try:
            with torch.no_grad():
                call_model(traced, inputs)
        except Exception as error:  # any error of anybody's code
            failed = error
            continue
        try:
            return traced, _dependencies(torch_pruning, traced, inputs)
        except Exception as error:  # any error of torch-pruning's, none of which has a type of its own
            raise UnsupportedError(
                f"torch-pruning cannot follow the channels of {type(model).__name__}: {first_line(error)}; "
                "cut a part of the model, or call it without what is not needed, such as a cache"
            ) from error
    raise ModelError(
        f"{type(model).__name__} does not run on the example inputs: {first_line(failed)}; give others"
    ) from failed


def _dependencies(torch_pruning: ModuleType, traced: nn.Module, inputs: ExampleInputs) -> Any:
    graph = torch_pruning.DependencyGraph()
    for kind in {type(module) for module in traced.modules() if is_conv1d_of_transformers(module)}:
        graph.register_customized_layer(kind, _TransposedLinear())
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.build_dependency(
            traced, inputs, forward_fn=call_model, output_transform=_tensors_with_history, verbose=False
        )
    _correct_mappings(torch_pruning, graph)
    return graph


def _correct_mappings(torch_pruning: ModuleType, graph: Any) -> None:
    """Mend what torch-pruning guesses of splits and concatenations."""
    # It takes any parameter of three dimensions before one for the class token of a vision transformer.
    has_tokens = any(
        parameter.dim() == 3 and parameter.shape[1:] != (1, 1)
        for parameter in graph.module2node
        if isinstance(parameter, nn.Parameter)
    )
    for node in graph.module2node.values():
        node.enable_index_mapping |= not has_tokens
        if sizes := _split_sizes(node.grad_fn):
            node.module.split_sizes, node.module.offsets = sizes, [0, *accumulate(sizes)]
    torch_pruning.dependency.index_mapping.update_index_mapping(graph)


def _split_sizes(grad_fn: Any) -> list[int]:
    """Return the sizes that a tensor is split into, which torch-pruning guesses by what reads the parts."""
    if not hasattr(grad_fn, "_saved_split_size"):
        return []
    sizes, size = grad_fn._saved_self_sym_sizes, grad_fn._saved_split_size
    dim = (grad_fn._saved_dim + 2**63) % 2**64 - 2**63  # a negative one is saved as unsigned
    return [min(size, sizes[dim] - begin) for begin in range(0, sizes[dim], size)]


def _tensors_with_history(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Return the names of parameters that several modules hold -> all the names."""
    names = defaultdict(list)
    for owner, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            names[id(parameter)].append(f"{owner}.{leaf}" if owner else leaf)
    return {name: " and ".join(several) for several in names.values() if len(several) > 1 for name in several}


class _Links:
    """Union-find over the channels of all nodes of torch-pruning's graph."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        # Asked for once per channel, and slow in torch-pruning.
        self._functions = {node: _functions(graph, node) for node in graph.module2node.values()}
        self._counts = {node: _counts(graph, node) for node in graph.module2node.values()}
        # No layer has more: mappings that disagree would count upwards for ever around a cycle.
        self._most = max((count for counts in self._counts.values() for count in counts.values() if count), default=0)
        self._parent: dict[_Place, _Place] = {}
        roots = [node for node in graph.module2node.values() if _is_root(node)]
        self._follow([(node, self._space(node, OUT), range(num_channels(node.module))) for node in roots])

    def components(self) -> Iterator[list[_Place]]:
        """Yield the channels that go together."""
        found = defaultdict(list)
        for place in list(self._parent):
            found[self._find(place)].append(place)
        yield from found.values()

    def _follow(self, stack: list[tuple[Any, str, Iterable[int]]]) -> None:
        seen: dict[tuple[Any, str], set[int]] = defaultdict(set)
        while stack:
            node, space, indices = stack.pop()
            new = [index for index in indices if index not in seen[node, space] and self._exists(node, space, index)]
            if not new:
                continue
            seen[node, space].update(new)
            for index in new:
                self._parent.setdefault(_Place(node, space, index), _Place(node, space, index))
            stack += [*self._tied(node, space, new), *self._neighbours(node, space, new)]

    def _tied(self, node: Any, space: str, indices: list[int]) -> Iterator[tuple[Any, str, range]]:
        """Join channels that a layer ties together by itself."""
        if isinstance(node.module, nn.Parameter):
            return
        for index in indices:
            for side, begin, end in tied_channels(node.module, space, index):
                for other in range(begin, end):
                    self._join(_Place(node, space, index), _Place(node, side, other))
                yield node, side, range(begin, end)

    def _neighbours(self, node: Any, space: str, indices: list[int]) -> Iterator[tuple[Any, str, list[int]]]:
        """Join the channels with those of the nodes before or behind."""
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(self._function(node, space)):
                continue
            mapped: list[Any] = [_Index(index, index) for index in indices]
            for mapping in dependency.index_mapping:
                mapped = mapping(mapped) if mapping is not None else mapped
            target = dependency.target
            side = OUT if dependency.handler == self._function(target, OUT) else IN
            side = self._space(target, side)
            for entry in mapped:
                if self._exists(target, side, entry.idx):
                    # A mapping that does not say where an index came from ties all of them.
                    origins = indices if entry.root_idx is None else [entry.root_idx]
                    for origin in origins:
                        self._join(_Place(node, space, origin), _Place(target, side, entry.idx))
            yield target, side, [entry.idx for entry in mapped]

    def _function(self, node: Any, space: str) -> Any:
        return self._functions[node][IN if space == IN else OUT]

    def _space(self, node: Any, space: str) -> str:
        functions = self._functions[node]
        return BOTH if functions[OUT] == functions[IN] else space

    def _exists(self, node: Any, space: str, index: int) -> bool:
        """Whether a node has a channel; one that is broadcast over many has only the first."""
        count = self._counts[node][IN if space == IN else OUT]
        return 0 <= index < (self._most if count is None else count)

    def _join(self, a: _Place, b: _Place) -> None:
        self._parent[self._find(a)] = self._find(b)

    def _find(self, place: _Place) -> _Place:
        parent = self._parent.setdefault(place, place)
        while parent is not place:
            # Path halving keeps the trees flat.
            self._parent[place] = grandparent = self._parent[parent]
            place, parent = grandparent, self._parent[grandparent]
        return place


def _functions(graph: Any, node: Any) -> dict[str, Any]:
    """What torch-pruning tells the sides of a node apart by; the same where both have the same channels."""
    pruner = graph.get_pruner_of_module(node.module)
    return {OUT: pruner.prune_out_channels, IN: pruner.prune_in_channels}


def _counts(graph: Any, node: Any) -> dict[str, int | None]:
    """Channels on the sides of a node, None if it takes as many as come."""
    return {OUT: graph.get_out_channels(node), IN: graph.get_in_channels(node)}


def _is_root(node: Any) -> bool:
    return is_producer(node.module) or isinstance(node.module, nn.Embedding)


class _Side(NamedTuple):
    """What a unit needs to know of one side of a node."""

    layer: str | None
    tensors: list[tuple[str, int]]
    reason: str
    doubt: str = ""


class _Namer:
    """Turns places in the graph into names of layers and tensors."""

    def __init__(self, model: nn.Module, traced: nn.Module) -> None:
        self._names: dict[Any, str] = {module: name for name, module in reversed(list(traced.named_modules()))}
        self._names.update({parameter: name for name, parameter in reversed(list(traced.named_parameters()))})
        self._shared = _shared_parameters(model)
        self._sides: dict[tuple[Any, str], _Side] = {}

    def unit(self, places: list[_Place]) -> Unit:
        """Describe channels that go together."""
        layers: dict[str, dict[str, set[int]]] = {kind: defaultdict(set) for kind in (OUT, IN, BOTH)}
        slices: dict[tuple[str, int], set[int]] = defaultdict(set)
        reason = doubt = ""
        for node, space, index in places:
            side = self._side(node, space)
            reason = reason or side.reason
            doubt = doubt or side.doubt
            for tensor in side.tensors:
                slices[tensor].add(index)
            if side.layer is not None and is_producer(node.module):
                for kind in (OUT, IN) if space == BOTH else (space,):
                    layers[kind][side.layer].add(index)
            elif side.layer is not None:
                layers[BOTH][side.layer].add(index)
        outputs, inputs, others = (_frozen(layers[kind]) for kind in (OUT, IN, BOTH))
        return Unit(outputs, inputs, others, _frozen(slices), reason, doubt)

    def _side(self, node: Any, space: str) -> _Side:
        if (node, space) not in self._sides:
            self._sides[node, space] = self._describe(node, space)
        return self._sides[node, space]

    def _describe(self, node: Any, space: str) -> _Side:
        name = self._names.get(node.module)
        reason = _reason(node, space, name or "")
        if name is None:
            return _Side(None, [], reason, _doubt(node))
        if isinstance(node.module, nn.Parameter):
            tensors = [(name, node.pruning_dim)]
        else:
            tensors = [
                (f"{name}.{tensor}" if name else tensor, dim) for tensor, dim in channel_tensors(node.module, space)
            ]
        several = [self._shared[tensor] for tensor, _ in tensors if tensor in self._shared]
        reason = reason or (f"{several[0]} are one parameter" if several else "")
        return _Side(None if isinstance(node.module, nn.Parameter) else name, tensors, reason)


def _frozen(found: Mapping[Any, set[int]]) -> dict[Any, Indices]:
    return {key: tuple(sorted(indices)) for key, indices in sorted(found.items())}


def _reason(node: Any, space: str, name: str) -> str:
    """Say what in a node forbids to cut its channels."""
    module = node.module
    if not node.outputs and space != IN:
        return "they are an output of the model"
    if isinstance(module, nn.LayerNorm) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1):
        return f"{type(module).__name__} {name} normalises over all of them together"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return f"{type(module).__name__} {name} is cut by no rule here"
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1:
        return "" if module.in_channels == module.groups else f"{name} takes several inputs per group"
    if getattr(module, "parametrizations", None):
        return f"the weight of {name} is computed from other parameters"
    return ""


def _doubt(node: Any) -> str:
    """Say whether an operation multiplies activations with each other, as attention does."""
    name = node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""
    if any(product in name for product in ("Bmm", "Baddbmm", "ScaledDotProduct", "Softmax")):
        return "a product of activations or a softmax mixes them, as in attention; cut() can remove whole heads"
    return ""
