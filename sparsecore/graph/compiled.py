"""The module that compile() returns: a graph of layers, and programs for the shapes that it has met."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.errors import UnsupportedError
from sparsecore.graph.capture import MAX_SIZE, Captured, Dimension, Input
from sparsecore.graph.program import Program
from sparsecore.graph.slices import SlicedProgram, Slices, are_samples_independent, plan_slices

# Each holds the activations of one pass; the least recently used one goes.
MAX_PROGRAMS = 4


class CompiledModule(nn.Module):
    """A captured model whose layers were chosen. Called like the model it came from; for inference.

    On CPU tensors without gradients it runs a recorded program per input shape, made at the first call. Otherwise,
    and under torch.compile, torch.export and in concurrent threads, it runs the graph itself, with equal outputs.

    Attributes:
        graph_module: the graph; its submodules are the layers, under the names that they had in the model.
    """

    def __init__(self, captured: Captured) -> None:
        super().__init__()
        self.graph_module = captured.module
        self.requires_grad_(False)
        self.eval()
        self._inputs = captured.inputs
        self._in_spec = captured.in_spec
        self._out_spec = captured.out_spec
        self._has_one_output = captured.out_spec.is_leaf()
        self._layout = captured.layout
        self._arrangement = _Arrangement(captured)
        self._programs: OrderedDict[Any, Program | SlicedProgram] = OrderedDict()
        self._has_independent_samples: bool | None = None  # not tried yet

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            TypeError: the arguments are not those that were compiled.
            RuntimeError: an input has another shape, dtype or device, or a constant another value.
        """
        tensors = self._tensors(args, kwargs)
        if not _can_record(tensors):
            outputs = self.graph_module(*tensors)
        elif torch.is_grad_enabled():
            with torch.no_grad():
                outputs = self.run_tensors(tensors)
        else:
            outputs = self.run_tensors(tensors)
        return outputs[0] if self._has_one_output else pytree.tree_unflatten(list(outputs), self._out_spec)

    def program_for(self, tensors: Sequence[Tensor]) -> Program | SlicedProgram:
        """The program for inputs of these shapes, recorded if it is the first time."""
        key = (torch.get_num_threads(), *(x.shape for x in tensors))
        program = self._programs.get(key)
        if program is None:
            return self._record(key, tensors)
        if len(self._programs) > 1:
            with contextlib.suppress(KeyError):  # another thread may have dropped it
                self._programs.move_to_end(key)
        return program

    def captured(self) -> Captured:
        """The graph with its layers, and how to call it."""
        return Captured(
            self.graph_module, self._inputs, self._in_spec, self._out_spec, self._layout, self._arrangement.parameters
        )

    def layers_of_nodes(self) -> dict[str, str]:
        """Name of each node that calls a layer, to the layer's name."""
        return {node.name: str(node.target) for node in self.graph_module.graph.nodes if node.op == "call_module"}

    def run_tensors(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the graph on its tensors, without gradients."""
        program = self.program_for(tensors)
        outputs = program.try_run([x if x.is_contiguous() else x.contiguous() for x in tensors])
        return self.graph_module(*tensors) if outputs is None else outputs

    def slices_for(self, tensors: Sequence[Tensor]) -> Slices | None:
        """How a batch of these shapes is cut into slices; None if it runs at once."""
        batches = {entry.shape[:1] for entry in self._inputs if entry.dtype is not None}
        sizes = {x.shape[:1] for x in tensors}
        is_free = len(batches) == 1 and all(d and isinstance(d[0].size, str) and d[0].least <= 1 for d in batches)
        if not is_free or len(sizes) != 1 or tensors[0].shape[0] < 2:
            return None
        slices = plan_slices(self.graph_module, tensors)
        if slices is not None and self._has_independent_samples is None:
            self._has_independent_samples = are_samples_independent(self.graph_module, tensors)
        return slices if self._has_independent_samples else None

    def _record(self, key: Any, tensors: Sequence[Tensor]) -> Program | SlicedProgram:
        slices = self.slices_for(tensors)
        if slices is None:
            program: Program | SlicedProgram = Program(self.graph_module, tensors)
        else:
            program = SlicedProgram(self.graph_module, tensors, slices)
        self._programs[key] = program
        while len(self._programs) > MAX_PROGRAMS:
            self._programs.popitem(last=False)
        return program

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The arguments in the order of the graph, checked."""
        leaves = self._arrangement.flatten(args, kwargs)
        sizes: dict[str, int] = {}
        for given, expected in zip(leaves, self._inputs, strict=True):
            _check_input(given, expected, sizes)
        return [given for given, expected in zip(leaves, self._inputs, strict=True) if expected.dtype is not None]

    def forget_programs(self) -> None:
        """Drop recorded programs, for after layers were changed; loading and moving weights does it."""
        self._programs.clear()

    # --- torch.nn.Module ---

    def _apply(self, fn: Any, recurse: bool = True) -> CompiledModule:
        if (dtype := fn(torch.empty(0)).dtype) != torch.float32:
            raise UnsupportedError(
                f"a compiled model keeps the dtypes of its graph, {dtype} would not fit; compile the model in that "
                "dtype: sparsecore.compile(model.to(dtype), example)"
            )
        self.forget_programs()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.forget_programs()
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_programs": OrderedDict()}

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("a compiled model cannot be pickled; save it with sparsecore.save(), or its state_dict()")

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin


class _Arrangement:
    """How the arguments of a call become the graph's inputs.

    Attributes:
        parameters: see Captured.
    """

    def __init__(self, captured: Captured) -> None:
        self.parameters = captured.parameters
        self._spec = captured.in_spec
        positional, named = _children(captured.in_spec)
        self._num_positional = positional.num_children
        self._names: tuple[str, ...] = tuple(named.context or ())
        # One argument is one input: going through a tree takes longer than to run a small model.
        self._is_flat = (
            captured.in_spec.num_nodes == 3 + self._num_positional + len(self._names) == 3 + len(captured.inputs)
        )

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """The graph's inputs. Arguments come by position or by name, as the model's own forward() takes them.

        Raises:
            TypeError: they are not those that the model was compiled with.
        """
        if kwargs or len(args) != self._num_positional:
            args, kwargs = self._as_captured(args, kwargs)
        if self._is_flat and len(args) == self._num_positional and tuple(kwargs) == self._names:
            return [*args, *kwargs.values()]
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._spec:
            raise TypeError(
                f"expected the arguments that the model was compiled with ({_describe(self._spec)}), "
                f"got {_describe(spec)}; compile it again with an example of these"
            )
        return leaves

    def _as_captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they came at capture, by position or by name and in order; others as they are."""
        positions = self.parameters[: self._num_positional]
        given = dict(zip(self.parameters, args, strict=False))
        is_once = len(args) <= len(self.parameters) and not given.keys() & kwargs.keys()
        given |= kwargs
        if is_once and len(positions) == self._num_positional and given.keys() == {*positions, *self._names}:
            return tuple(given[name] for name in positions), {name: given[name] for name in self._names}
        return args, {name: kwargs[name] for name in self._names if name in kwargs} | kwargs


def _can_record(tensors: Sequence[Tensor]) -> bool:
    """Whether there are numbers to compute with, now, and nobody asks how they came about."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if not all(type(x) in (Tensor, nn.Parameter) and x.is_cpu for x in tensors):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def _check_input(given: Any, expected: Input, sizes: dict[str, int]) -> None:
    """Compare one argument with what was compiled; sizes holds those that are free so far."""
    if expected.dtype is None:
        if isinstance(given, Tensor) or given != expected.value:
            raise RuntimeError(f"{expected.name}: expected {expected.value!r} as when compiled, got {given!r}")
        return
    if not isinstance(given, Tensor) or given.dtype != expected.dtype:
        came = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise RuntimeError(f"{expected.name}: expected a {expected.dtype} tensor, got {came}")
    if given.device.type not in ("cpu", "meta"):
        raise RuntimeError(f"{expected.name}: expected a tensor on the CPU, got one on {given.device}")
    fits = given.dim() == len(expected.shape)
    for size, dimension in zip(given.shape, expected.shape, strict=False):
        if isinstance(dimension.size, int):
            fits = fits and size == dimension.size
        else:
            fits = fits and dimension.least <= size <= dimension.most and sizes.setdefault(dimension.size, size) == size
    if not fits:
        shape = ", ".join(str(dimension.size) for dimension in expected.shape)
        free = "".join(f", {_bounds_text(d)}" for d in expected.shape if isinstance(d.size, str))
        raise RuntimeError(
            f"{expected.name}: expected shape [{shape}] as when compiled{free}, got {list(given.shape)}; "
            "compile for this shape"
        )


def _bounds_text(free: Dimension) -> str:
    return f"{free.size} free from {free.least} " + ("on" if free.most == MAX_SIZE else f"to {free.most}")


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    return spec.children() if hasattr(spec, "children") else spec.children_specs


def _describe(spec: pytree.TreeSpec) -> str:
    args, kwargs = _children(spec)
    names = list(kwargs.context) if kwargs.context else []
    return f"{args.num_children} positional" + (f" and {', '.join(names)}" if names else "")
