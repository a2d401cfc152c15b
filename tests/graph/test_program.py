"""A recorded program computes what its graph does, for new inputs, on buffers that it shares between values."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from networks import NETWORKS, Residual, assert_same, image, sparse_
from torch import Tensor, nn

import sparsecore as sc
from sparsecore._native import raw
from sparsecore.graph.capture import capture
from sparsecore.graph.fuse import fuse_layers, replace_between
from sparsecore.graph.lower import lower
from sparsecore.graph.program import Program, layer_program
from sparsecore.nn import put_layer


def sparse_graph(model: nn.Module, x: Tensor) -> Any:
    """A fused graph, all convolutions and linear layers sparse."""
    captured = capture(model, x)
    lower(captured.module, model)
    fuse_layers(captured.module)
    replace_between(captured.module)
    for name, layer in list(captured.module.named_modules()):
        if isinstance(layer, sc.nn.DenseConv2d):
            make: Any = sc.nn.SparseConv2d if layer.groups > 1 else sc.nn.PanelConv2d
            put_layer(captured.module, name, make.from_dense(layer).eval())
        elif isinstance(layer, sc.nn.DenseLinear):
            put_layer(captured.module, name, sc.nn.SparseLinear.from_dense(layer).eval())
    return captured.module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_replays_compute_what_the_graph_does(name: str, batch: int) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make())
    module = sparse_graph(model, image(2, channels))
    program = Program(module, [image(batch, channels)])
    for seed in range(3):
        x = image(batch, channels, seed=10 + seed)
        got = program.try_run([x])
        assert got is not None
        with torch.no_grad():
            for a, b in zip(got, module(x), strict=True):
                assert torch.equal(a, b)
            assert_same(got, model(x), 1e-4)


@pytest.mark.parametrize("name", ["residual", "classifier", "squeeze-excite"])
def test_everything_of_ours_is_recorded(name: str) -> None:
    make, channels = NETWORKS[name]
    program = Program(sparse_graph(sparse_(make()), image(2, channels)), [image(1, channels)])
    calls = [node for node in program.module.graph.nodes if node.op.startswith("call")]
    replays = [node for node in calls if node.target is torch.ops.sparsecore.replay.default]
    assert len(replays) == 1 if name != "classifier" else len(replays) <= 2
    others = {str(node.target) for node in calls if node not in replays}
    assert others <= {"aten.clone.default", "aten._native_batch_norm_legit_no_training.default"} | {
        other for other in others if "getitem" in other
    }


def test_outputs_are_the_callers_own() -> None:
    module = sparse_graph(sparse_(NETWORKS["residual"][0]()), image(2))
    program = Program(module, [image(1)])
    first = program.try_run([image(1, seed=1)])
    assert first is not None
    kept = first[0].clone()
    program.try_run([image(1, seed=2)])
    assert torch.equal(first[0], kept)


def test_values_share_memory() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 1) for _ in range(12)))
    program = Program(sparse_graph(sparse_(model), image(2)), [image(1)])
    assert program.num_bytes <= 2.1 * 16 * 13 * 11 * 4 + 256


def test_recordings_are_freed() -> None:
    program = Program(sparse_graph(sparse_(NETWORKS["residual"][0]()), image(2)), [image(1)])
    number = program.recording.number
    del program
    gc.collect()
    with pytest.raises(RuntimeError, match="expected the number of a recording"):
        raw.replay(number, 0, 0, [])


def test_times_of_steps_are_of_that_recording() -> None:
    program = Program(sparse_graph(sparse_(Residual()), image(1)), [image(1)])
    with pytest.raises(RuntimeError, match=r"expected times \[\d+\] float64"):
        raw.replay_timed(program.recording.number, 0, 1, [image(1)], torch.zeros(1000, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"expected times \[\d+\] float64"):
        raw.replay_timed(program.recording.number, 0, 1, [image(1)], torch.zeros(len(program._steps)))


def test_replay_of_slices_checks_what_it_gets() -> None:
    x = image(1)
    graph = sparse_graph(sparse_(NETWORKS["residual"][0]()), x)
    first, second = (Program(graph, [x]).only_steps for _ in range(2))
    assert first is not None
    assert second is not None
    y = torch.empty_like(first.outputs[0])

    def run(recordings: Sequence[int], threads: Sequence[int], x: Tensor, y: Tensor) -> None:
        count = len(recordings)
        raw.replay_slices(recordings, threads, [x] * count, [first.outputs[0]] * count, [y] * count)

    run([first.recording.number], [0, 1], x, y)
    assert torch.equal(y, first.outputs[0])
    for threads in ([0], [0, 2], [1, 1], [0, 2, 1]):
        with pytest.raises(RuntimeError, match="expected the first slice of each thread"):
            run([first.recording.number], threads, x, y)
    with pytest.raises(RuntimeError, match="expected recordings of its own for every thread"):
        run([first.recording.number, second.recording.number, first.recording.number], [0, 1, 3], x, y)
    with pytest.raises(RuntimeError, match="expected outputs of the results' sizes"):
        run([first.recording.number], [0, 1], x, y[..., :-1].contiguous())
    with pytest.raises(RuntimeError, match="expected external tensors of the sizes"):
        run([first.recording.number, second.recording.number], [0, 1, 2], image(2), y)
    with pytest.raises(RuntimeError, match="expected as many externals"):
        raw.replay_slices([first.recording.number], [0, 1], [x], [y], [])


def test_profile_names_every_node() -> None:
    module = sparse_graph(sparse_(NETWORKS["residual"][0]()), image(2))
    times = Program(module, [image(1)]).profile([image(1)], 3)
    assert set(times) >= {node.name for node in module.graph.nodes if node.op == "call_module"}
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())


def int8_layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    conv, grouped, linear = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(16, 32, 3, groups=2), nn.Linear(40, 24)
    channel_scale = torch.rand(40) + 0.5
    return {
        "dynamic conv": (sc.nn.Int8Conv2d.from_dense(conv, activation="relu"), (2, 16, 9, 7)),
        "static conv": (sc.nn.SparseInt8Conv2d.from_dense(conv, x_scale=0.03, x_zero_point=5), (2, 16, 9, 7)),
        "groups": (sc.nn.SparseInt8Conv2d.from_dense(grouped, x_scale=0.03), (1, 16, 9, 7)),
        "one pixel": (sc.nn.Int8Conv2d.from_dense(nn.Conv2d(16, 8, 1)), (3, 16, 1, 1)),
        "dynamic linear": (sc.nn.SparseInt8Linear.from_dense(linear), (5, 40)),
        "few rows": (sc.nn.BitmapInt8Linear.from_dense(linear, x_scale=0.02), (2, 40)),
        "channel scale": (sc.nn.Int8Linear.from_dense(linear, x_channel_scale=channel_scale), (2, 3, 40)),
        "int8 outputs": (sc.nn.Int8Linear.from_dense(linear, y_scale=0.1), (5, 40)),
    }


# int8 outputs take no residual.
INT8_CASES = [(name, r) for name in int8_layers() for r in (False, True) if not (r and name == "int8 outputs")]


@pytest.mark.parametrize(("name", "with_residual"), INT8_CASES)
def test_int8_layers_are_recorded(name: str, with_residual: bool) -> None:
    layer, shape = int8_layers()[name]
    layer.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    inputs = [x]
    with torch.no_grad():
        if with_residual:
            inputs.append(torch.randn(layer(x).shape, generator=generator))
        program = layer_program(layer, inputs)
        assert not any(node.op == "call_module" for node in program.module.graph.nodes)
        for _ in range(3):
            inputs = [torch.randn(given.shape, generator=generator) for given in inputs]
            # Another operation's bytes in the thread's scratch must not matter.
            sc.nn.Int8Linear.from_dense(nn.Linear(500, 3)).eval()(torch.randn(4, 500))
            got = program.try_run(inputs)
            assert got is not None
            assert torch.equal(got[0], layer(*inputs))


# --- the operations behind it ---


@pytest.fixture
def recorded() -> Any:
    """A layer recorded from x to out."""
    layer = sc.nn.SparseConv2d.from_dense(nn.Conv2d(4, 4, 1)).eval()
    x, buffer = image(1, 4), torch.empty(4 * 13 * 11)
    out = buffer.view(1, 4, 13, 11)
    number = raw.recording_new(buffer)
    with torch.no_grad():
        raw.record_begin(number, out, [x])
        layer(x)
        assert raw.record_end(number) == 1
        yield number, layer, x, out
    raw.recording_free(number)


def test_replay(recorded: Any) -> None:
    number, layer, _, out = recorded
    other = image(1, 4, seed=5)
    out.fill_(float("nan"))
    raw.replay(number, 0, 1, [other])
    assert torch.equal(out, layer(other))


def test_bad_replays(recorded: Any) -> None:
    number, _, x, out = recorded
    for begin, end in ((0, 2), (-1, 1), (1, 0)):
        with pytest.raises(RuntimeError, match=r"expected steps inside of \[0, 1\]"):
            raw.replay(number, begin, end, [x])
    for externals in ([], [x[:, :2]], [x.double()[:, :1]]):
        with pytest.raises(RuntimeError, match="expected"):
            raw.replay(number, 0, 1, externals)
    with pytest.raises(RuntimeError, match="contiguous"):
        raw.replay(number, 0, 1, [x.transpose(2, 3)])
    raw.record_begin(number, out, [x])
    with pytest.raises(RuntimeError, match="one recording at a time"):
        raw.record_begin(number, out, [x])
    raw.record_end(number)
    with pytest.raises(RuntimeError, match=r"expected record_begin\(\)"):
        raw.record_end(number)
    with pytest.raises(RuntimeError, match="in the recording's buffer"):
        raw.record_begin(number, torch.empty(1, 4, 13, 11), [x])


def test_what_cannot_be_kept_is_refused(recorded: Any) -> None:
    number, layer, x, out = recorded

    def record(call: Any, *externals: Tensor) -> int:
        raw.record_begin(number, out, list(externals))
        call()
        result: int = raw.record_end(number)
        return result

    assert record(lambda: torch.relu(x), x) == -1  # no kernel of ours
    assert record(lambda: layer(x)) == -1  # x is not told
    assert record(lambda: layer(x.transpose(2, 3).contiguous().transpose(2, 3)), x) == -1  # x is copied first
    assert record(lambda: layer(image(2, 4)), x) == -1  # another shape
    assert record(lambda: layer(x), x) == 2  # after all that
    raw.replay(number, 0, 2, [x])
    assert torch.equal(out, layer(x))
