"""A graph for inputs of one shape: its kernels recorded on buffers that are planned once, and then only run.

    graph      conv1 -> pool -> conv2 -> flatten -> softmax -> ...
    program    replay(steps 0..3)                   softmax -> ...

Operations of ours are recorded (csrc/torch/recording.h), views of their outputs are made once, everything else stays a
call of PyTorch. What is left is a graph again, of few nodes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsecore._native import raw, release
from sparsecore.graph.memory import Lifetime, new_buffer, plan_memory

_replay = torch.ops.sparsecore.replay.default
replay_slices = torch.ops.sparsecore.replay_slices.default
_copy = torch.ops.aten.clone.default


@dataclass(frozen=True)
class _Value:
    """What a node gave in a run.

    Attributes:
        owner: the node whose memory it shares; itself if it has its own.
        tensor: its form on the meta device; None for several tensors.
    """

    owner: fx.Node
    tensor: Tensor | None

    @property
    def num_bytes(self) -> int:
        return 0 if self.tensor is None else self.tensor.numel() * self.tensor.element_size()


class Recording:
    """Steps that run on a buffer (csrc/torch/recording.h); freed with this object.

    Attributes:
        number: what operations know it by.
    """

    def __init__(self, buffer: Tensor) -> None:
        self.number: int = raw.recording_new(buffer)

    def __del__(self) -> None:
        if (number := self.__dict__.get("number")) is not None:
            release(raw.recording_free, number)


@dataclass(frozen=True)
class RecordedSteps:
    """A program that is recorded steps alone.

    Attributes:
        recording: of the steps.
        count: how many there are.
        outputs: in the buffer, of the last run; contiguous.
    """

    recording: Recording
    count: int
    outputs: tuple[Tensor, ...]

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Run on contiguous inputs of the recorded shapes."""
        _replay(self.recording.number, 0, self.count, inputs)

    def compute(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run, and return the outputs in memory of their own.

        One call instead of one for each copy and the graph's own code: in a pass, whose weights evict all of that, 75
        to 90 us instead of 200 to 300 (MobileNetV2 of 3.6 ms, ResNet-18 of 9.3 ms; Zen 4).
        """
        results = tuple(torch.empty_like(y) for y in self.outputs)
        replay_slices([self.recording.number], [0, 1], inputs, self.outputs, results)
        return results


class Program:
    """A graph, ready to run on inputs of one shape.

    Args:
        module: its nodes have no side effects; layers must not change afterwards.
        inputs: tensors for its placeholders, of the shapes that the program is for.

    A program runs once at a time: ``try_run()`` gives None while another thread is in it.

    Attributes:
        module: what is left of the graph.
        num_bytes: of the buffer.
        recording: its steps.
        only_steps: these, if there is nothing else beside copies of the outputs; otherwise None.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        inputs = [x.contiguous() for x in inputs]
        recorder = _Recorder(module, inputs)
        self.module = recorder.record(inputs)
        self._steps = recorder.steps
        self.num_bytes = recorder.buffer.numel()
        self.recording = recorder.recording
        self.only_steps = self._find_only_steps()
        self._lock = threading.Lock()

    def try_run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Run on contiguous inputs, without gradients; None if another thread runs it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self.module.forward(*inputs) if self.only_steps is None else self.only_steps.compute(inputs)
        finally:
            self._lock.release()

    def profile(self, inputs: Sequence[Tensor], passes: int) -> dict[str, list[float]]:
        """Time every node of the graph that does something, in its place in a pass.

        Args:
            inputs: of the shapes that the program is for.
            passes: how often to run it.

        Returns:
            Name of the node to microseconds, one for each pass.
        """
        times: dict[str, list[float]] = {}
        inputs = [x.contiguous() for x in inputs]
        with self._lock, torch.no_grad():
            for _ in range(passes):
                _Profiler(self.module, self._steps, times).run(*inputs, enable_io_processing=False)
        return times

    def _find_only_steps(self) -> RecordedSteps | None:
        nodes = list(self.module.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        calls = [node for node in nodes if node.op.startswith("call") and not _is_copy(node)]
        copies = nodes[-1].args[0]
        if [node.target for node in calls] != [_replay] or not all(map(_is_copy, copies)):
            return None
        outputs = tuple(getattr(self.module, copy.args[0].target) for copy in copies)
        count = len(self._steps)
        if calls[0].args != (self.recording.number, 0, count, inputs) or not all(y.is_contiguous() for y in outputs):
            return None
        return RecordedSteps(self.recording, count, outputs)


def _is_copy(node: Any) -> bool:
    """Whether a node of a program hands out what lies in the buffer."""
    return isinstance(node, fx.Node) and node.target is _copy and node.args[0].op == "get_attr"  # type: ignore[union-attr]


def layer_program(layer: nn.Module, inputs: Sequence[Tensor]) -> Program:
    """The program of a graph that is one layer."""
    root = nn.Module()
    root.layer = layer
    graph = fx.Graph(root)  # type: ignore[arg-type]
    args = tuple(graph.placeholder(f"x{i}") for i in range(len(inputs)))
    graph.output((graph.call_module("layer", args),))
    return Program(fx.GraphModule(root, graph), inputs)


def record_layer(layer: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """A call of one layer on these inputs, as a program makes it."""
    steps = layer_program(layer, inputs).only_steps
    return partial(layer, *inputs) if steps is None else partial(steps.run, inputs)


class Plan:
    """Where a program keeps its values. Runs the graph once to see them.

    Attributes:
        values: by the node that gives them.
        offsets: in the buffer, of the values that operations of ours make.
        num_bytes: of the buffer.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self.values = _Observer(module).observe(inputs)
        order = {node: i for i, node in enumerate(module.graph.nodes)}
        uses = self._last_uses(order)
        made = [
            node
            for node, value in self.values.items()
            if value.owner is node and value.tensor is not None and _may_record(module, node)
        ]
        lifetimes = [Lifetime(self.values[node].num_bytes, order[node], uses[node]) for node in made]
        offsets, self.num_bytes = plan_memory(lifetimes)
        self.offsets = dict(zip(made, offsets, strict=True))

    def _last_uses(self, order: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
        """Owner of memory -> the last node that reads it, by itself or through a view."""
        last = dict(order)
        for node, i in order.items():
            for source in node.all_input_nodes:
                owner = self.values[source].owner if source in self.values else source
                last[owner] = max(last[owner], i)
        return last


class _Recorder(fx.Interpreter):
    """Runs the graph of a plan, and records it."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        super().__init__(module)
        self.graph = module.graph
        plan = Plan(module, inputs)
        self.values = plan.values
        self.offsets = plan.offsets
        self.buffer = new_buffer(plan.num_bytes)
        self.recording = Recording(self.buffer)
        # The program, and what its nodes are in it: a node, or a tensor that stays where it is.
        self.new_graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.constants: dict[str, Tensor] = {}
        self.externals: dict[fx.Node, Tensor] = {}
        self.segment: fx.Node | None = None  # the open one
        self.segment_externals: list[fx.Node] = []
        self.steps: list[str] = []  # of each recorded step, the node that it belongs to

    def record(self, inputs: Sequence[Tensor]) -> fx.GraphModule:
        """Run the graph, recording; return the program."""
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        for node in [node for node in self.new_graph.nodes if node.op == "get_attr" and not node.users]:
            self.new_graph.erase_node(node)  # what only recorded steps read
        return fx.GraphModule(dict(self.submodules) | self.constants, self.new_graph)

    # --- fx.Interpreter ---

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            result = super().run_node(n)
            self.nodes[n] = self.new_graph.placeholder(n.name)
            self.externals[n] = result
            return result
        if n.op == "get_attr":
            result = super().run_node(n)
            self._add_constant(n, result)
            return result
        if n.op == "output":
            return self._finish(n)
        if n in self.offsets:
            result = self._try_record(n)
            if result is not None:
                return result
        result = super().run_node(n)
        if isinstance(result, int | float | bool):  # a size: shapes are those of the recording
            self.nodes[n] = result
        elif self._is_static_view(n):
            self._add_constant(n, result)
        else:
            self._add_call(n, result)
        return result

    def _is_static_view(self, node: fx.Node) -> bool:
        """Whether a node shares memory of the buffer or of a constant, so that it is the same in every run."""
        value = self.values.get(node)
        return value is not None and value.owner is not node and self.nodes[value.owner].op == "get_attr"

    def _try_record(self, node: fx.Node) -> Tensor | None:
        """Run an operation of ours and keep its steps; None if it cannot be kept."""
        form, begin = self.values[node].tensor, self.offsets[node]
        assert form is not None
        memory = self.buffer[begin : begin + self.values[node].num_bytes].view(form.dtype)
        # Outputs of int8 convolutions may be channels-last: the operation makes them in the order of memory.
        order = sorted(range(form.dim()), key=form.stride, reverse=True)
        memory = memory.view([form.shape[axis] for axis in order])
        out = memory.permute([order.index(axis) for axis in range(form.dim())])
        externals = self._external_nodes()
        raw.record_begin(self.recording.number, memory, [self.externals[external] for external in externals])
        try:
            result: Tensor = super().run_node(node)
        finally:
            end: int = raw.record_end(self.recording.number)
        if end < 0 or result.data_ptr() != out.data_ptr():
            return None
        if self.segment is None:
            arguments = [self.nodes[external] for external in externals]
            self.segment_externals = externals
            self.segment = self.new_graph.call_function(
                _replay, (self.recording.number, len(self.steps), end, arguments)
            )
        self.segment.update_arg(2, end)
        self.steps += [node.name] * (end - len(self.steps))
        self._add_constant(node, out)
        return out

    def _external_nodes(self) -> list[fx.Node]:
        """What the steps of the open segment may read besides the buffer; of a new one, all that is there."""
        if self.segment is not None:
            return self.segment_externals
        return [node for node, tensor in self.externals.items() if tensor.is_contiguous() and node in self.env]

    def _add_constant(self, node: fx.Node, tensor: Any) -> None:
        name = f"_{node.name}"
        self.constants[name] = tensor
        self.nodes[node] = self.new_graph.get_attr(name)

    def _add_call(self, node: fx.Node, result: Any) -> None:
        """Keep a node as it is; what it makes comes anew in every run."""
        self.segment = None
        self.nodes[node] = self.new_graph.node_copy(node, lambda source: self.nodes[source])
        if isinstance(result, Tensor):
            self.externals[node] = result

    def _finish(self, output: fx.Node) -> tuple[Any, ...]:
        """Hand out copies of what lies in the buffer."""
        results = []
        for node in output.args[0]:  # type: ignore[union-attr]
            new: Any = self.nodes[node] if isinstance(node, fx.Node) else node
            if isinstance(new, fx.Node) and new.op == "get_attr":
                new = self.new_graph.call_function(_copy, (new,))
            results.append(new)
        self.new_graph.output(tuple(results))
        return ()


class _Profiler(fx.Interpreter):
    """Runs a program, its steps one by one, and notes times under the names of the graph's nodes."""

    def __init__(self, module: fx.GraphModule, steps: Sequence[str], times: dict[str, list[float]]) -> None:
        super().__init__(module)
        self.steps = steps
        self.times = times
        self.done: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "call_module"):
            result = super().run_node(n)
        elif n.target is _replay:
            recording, begin, end, externals = self.fetch_args_kwargs_from_env(n)[0]
            times_us = torch.zeros(len(self.steps), dtype=torch.float64)
            raw.replay_timed(recording, begin, end, externals, times_us)
            for i in range(begin, end):
                self._add(self.steps[i], float(times_us[i]))
            result = None
        else:
            result = self._time(n.name, partial(super().run_node, n))
        if n.op == "output":
            for name, time_us in self.done.items():
                self.times.setdefault(name, []).append(time_us)
        return result

    def _time(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter_ns()
        result = call()
        self._add(name, (time.perf_counter_ns() - start) / 1e3)
        return result

    def _add(self, name: str, time_us: float) -> None:
        self.done[name] = self.done.get(name, 0.0) + time_us


class _Observer(fx.Interpreter):
    """Notes the form of every value, and who shares memory with whom."""

    def observe(self, inputs: Sequence[Tensor]) -> Mapping[fx.Node, _Value]:
        self.values: dict[fx.Node, _Value] = {}
        self.run(*inputs, enable_io_processing=False)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        storages = _storages(result)
        if not storages or n.op == "output":
            return result
        owner = n
        for source in n.all_input_nodes:
            if storages & _storages(self.env[source]):
                owner = self.values[source].owner
        form = torch.empty_like(result, device="meta") if isinstance(result, Tensor) else None
        self.values[n] = _Value(owner, form)
        return result


def _storages(value: Any) -> set[int]:
    """Addresses of the memory of all tensors in a value."""
    return {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)}


def _may_record(module: Any, node: fx.Node) -> bool:
    """Whether a node may be one operation of ours."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__module__.startswith("sparsecore.")
    if getattr(node.target, "namespace", "") != "sparsecore":
        return False
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return all(
        name in _CHANGING or getattr(argument, "op", "get_attr") == "get_attr"
        for name, argument in zip(names, node.args, strict=False)
    )


# Tensor arguments of operations that may be new in every run; others are weights.
_CHANGING = ("x", "scale", "residual")
