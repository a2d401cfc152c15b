"""A model as a graph of operations: torch.export, without what only export needs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, as_arguments
from sparsecore.errors import UnsupportedError

aten = torch.ops.aten

MAX_SIZE = 2**63 - 1
Layout = Literal["own", "channels_last"]


@dataclass(frozen=True)
class Dimension:
    """What an input's dimension may be.

    Attributes:
        size: the only size, or the name of one that is free: equal names are equal sizes.
        least: smallest size, where it is free. torch.export never says less than 2, since a size of 1 could mean
            broadcasting.
        most: largest size, where it is free.
        example: size at capture, where it is free.
    """

    size: int | str
    least: int = 0
    most: int = MAX_SIZE
    example: int = 0


@dataclass(frozen=True)
class Input:
    """What the graph takes in one place: a tensor, or a constant that is part of the graph.

    Attributes:
        name: of the placeholder.
        dtype: of the tensor; None if it is a constant.
        shape: of the tensor.
        value: the constant.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[Dimension, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class Captured:
    """A model's graph and how to call it.

    Attributes:
        module: takes the tensors of ``inputs`` in order, one argument for each, and returns a tuple of tensors; its
            nodes are operations without side effects.
        inputs: what came in at capture, flattened.
        in_spec: how ``(args, kwargs)`` are flattened.
        out_spec: how outputs are put together.
        layout: of images between layers: that of our kernels, or the one of PyTorch's dense kernels.
        parameters: names of the parameters of forward() that take positional arguments, in order.
    """

    module: fx.GraphModule
    inputs: tuple[Input, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    layout: Layout = "own"
    parameters: tuple[str, ...] = ()


def capture(model: nn.Module, example_inputs: ExampleInputs) -> Captured:
    """Capture an eval model by torch.export, for any batch size if it allows that.

    The first dimension of every tensor is taken for the batch. Where it cannot be free (the model computes with it, or
    it is none), the sizes of the example are the only ones.

    Args:
        model: in eval mode; it shares its parameters with the graph.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        UnsupportedError: the model cannot be captured; the text has torch.export's reason.
    """
    args, kwargs = as_arguments(example_inputs)
    with _quiet():
        try:
            program = _export(model, *_with_batch(args, kwargs), torch.export.Dim.AUTO)
        except Exception:  # any error of any model's own code
            try:
                program = _export(model, args, kwargs, None)
            except Exception as error:
                raise UnsupportedError(f"torch.export: {_first_line(error)}") from error
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise UnsupportedError(f"the model changes {', '.join(map(str, changed))} when it runs")
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None
    assert out_spec is not None
    inputs = tuple(_inputs(program))
    return Captured(_plain_graph(program), inputs, in_spec, out_spec, parameters=_positional_parameters(model))


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any) -> Any:
    shapes = None
    if batch is not None:
        shapes = pytree.tree_map(
            lambda leaf: {0: batch} if _has_batch(leaf) and len(leaf) > 1 else None, (args, kwargs)
        )
        shapes = {**_by_name(model, shapes[0]), **shapes[1]}
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        return program.run_decompositions(decomp_table={})


def _positional_parameters(model: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)


def _by_name(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments under the names of forward()'s parameters, as torch.export wants them."""
    names: dict[str, Any] = {}
    parameters = list(inspect.signature(model.forward).parameters.values())
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            names[parameter.name] = args[i:]
            break
        if i < len(args):
            names[parameter.name] = args[i]
    return names


def _has_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _with_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with a batch of two instead of one: export takes a size of one for a constant.

    Beside larger batches a one is meant: it broadcasts.
    """

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if _has_batch(leaf) and len(leaf) == 1 else leaf

    if any(_has_batch(leaf) and len(leaf) > 1 for leaf in pytree.tree_leaves((args, kwargs))):
        return args, kwargs
    return pytree.tree_map(double, (args, kwargs))


def _inputs(program: Any) -> Iterator[Input]:
    bounds = {str(symbol): found for symbol, found in program.range_constraints.items()}
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    free: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            yield Input(str(spec.arg.value), None, value=spec.arg.value)
            continue
        value = by_name[spec.arg.name].meta["val"]
        if isinstance(value, Tensor):
            yield Input(spec.arg.name, value.dtype, tuple(_dimension(size, bounds, free) for size in value.shape))
        else:
            yield Input(spec.arg.name, None, value=value)


def _dimension(size: int | torch.SymInt, bounds: Mapping[str, Any], free: dict[str, str]) -> Dimension:
    """One dimension; free holds what symbols are called: batch, batch2, ..."""
    name = str(size)  # a number, or torch's name of a symbol
    if name.isdecimal():
        return Dimension(int(name))
    assert isinstance(size, torch.SymInt)
    least, most = (bounds[name].lower, bounds[name].upper) if name in bounds else (0, MAX_SIZE)
    # Without an upper bound it is an infinity, or the largest size.
    called = free.setdefault(name, "batch" if not free else f"batch{len(free) + 1}")
    return Dimension(called, max(int(least), 0), int(min(most, MAX_SIZE)), size.node.hint)


def _plain_graph(program: Any) -> fx.GraphModule:
    """The graph as a module of its own: a placeholder per tensor, parameters by their names in the model."""
    module: fx.GraphModule = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.nodes):
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            if node.users:
                node.replace_all_uses_with(node.meta.get("val"))
            graph.erase_node(node)
        elif node.op == "output":
            node.args = (tuple(pytree.tree_leaves(node.args[0])),)
    graph.eliminate_dead_code()
    plain = fx.GraphModule(module, graph)
    plain.training = False
    return plain


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without export's log of what failed, which becomes an error or another try, and torch's warning of itself."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
