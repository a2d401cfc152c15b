"""Int8 layers for GPUs without one: what they store, what int8 layers become, and what they hand to the kernels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import PackedInt8Weight
from sparsecore.formats.packed_int8 import GPU_FORMATS, Shape
from sparsecore.nn import (
    BitmapInt8Linear,
    DeltaWeightOnlyLinear,
    FragmentInt8Linear,
    FragmentWeightOnlyLinear,
    Int8Linear,
    RowsInt8Linear,
    SparseInt8Linear,
    int8_linear,
)
from sparsecore.nn.int8_linear import QuantizedLinear, WeightOnlyLinear
from sparsecore.ops.cuda import GpuWeight

N, K = 70, 100
WEIGHT_ONLY = [FragmentWeightOnlyLinear, DeltaWeightOnlyLinear]
CLASSES = [RowsInt8Linear, FragmentInt8Linear, *WEIGHT_ONLY]
each_class = pytest.mark.parametrize("cls", CLASSES)
MOVES = [(Int8Linear, RowsInt8Linear), (SparseInt8Linear, FragmentInt8Linear), (BitmapInt8Linear, FragmentInt8Linear)]
each_move = pytest.mark.parametrize(("on_cpu", "on_gpu"), MOVES)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"x_scale": 0.02, "x_zero_point": -5},
    {"x_scale": 0.02, "y_scale": 0.1, "y_zero_point": 3},
    {"x_channel_scale": torch.linspace(0.5, 2.0, K)},
]


def pruned(sparsity: float = 0.6) -> nn.Linear:
    layer = nn.Linear(K, N)
    with torch.no_grad():
        layer.weight *= torch.rand(N, K) >= sparsity
    return layer


class ToGpu:
    """What a move to a GPU hands to a layer: where tensors go. Here they stay."""

    def __call__(self, tensor: Tensor) -> Any:
        return tensor if tensor.numel() else type("OnCuda", (), {"device": torch.device("cuda", 0)})


class CpuKernels:
    """The operations of GPUs on the CPU: by the weight that the arguments stand for."""

    def linear_int8(
        self, x: Tensor, tensors: list[Tensor], sizes: list[int], format: str, scale: Tensor, weight_sum: Tensor,
        *rest: Any
    ) -> Tensor:  # fmt: skip
        assert format in GPU_FORMATS
        shape = Shape(*sizes[:2], 1, 1, 1, 1, 1, tile_bytes=sizes[3] if format == "fragment" else 0)
        weight = PackedInt8Weight(format, tuple(tensors), shape, scale, weight_sum).unpack()
        packed = PackedInt8Weight.pack(weight)
        assert torch.equal(packed.weight_sum, weight_sum)
        return raw.linear_int8(x, list(packed.tensors), packed.shape.sizes, "int8", scale, weight_sum, *rest)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU and its kernels."""
    monkeypatch.setattr(sc.nn.base, "check_cuda", lambda device, what: None)
    monkeypatch.setattr(int8_linear, "check_cuda", lambda device, what: None)
    monkeypatch.setattr(int8_linear, "raw", CpuKernels())


@pytest.mark.usefixtures("with_gpu")
@each_move
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_moving_keeps_every_output(
    on_cpu: type[QuantizedLinear], on_gpu: type[QuantizedLinear], settings: dict[str, Any]
) -> None:
    layer = on_cpu.from_dense(pruned(), activation="relu", **settings)
    state, x = layer.state_dict(), torch.randn(2, 3, K)
    integers, residual = layer._int8_weight(), None if "y_scale" in settings else torch.randn(2, 3, N)
    y = raw.linear_int8(x, *layer._arguments(residual), *layer._output_arguments())
    layer._apply(ToGpu())
    assert type(layer) is on_gpu
    assert torch.equal(layer._int8_weight().q, integers.q)
    assert torch.equal(layer(x, residual), y)
    moved_state = layer.state_dict()
    assert moved_state.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in moved_state.items())
    layer.to("cpu")
    assert type(layer) is (Int8Linear if on_cpu is Int8Linear else SparseInt8Linear)
    assert torch.equal(layer._int8_weight().q, integers.q)
    assert torch.equal(raw.linear_int8(x, *layer._arguments(residual), *layer._output_arguments()), y)


@pytest.mark.usefixtures("with_gpu")
def test_packing_for_few_rows_comes_back() -> None:
    layer = SparseInt8Linear.from_dense(pruned(), few_rows=True)
    layer._apply(ToGpu())
    layer.to("cpu")
    assert isinstance(layer, SparseInt8Linear)
    assert layer.few_rows


@pytest.mark.usefixtures("with_gpu")
def test_moving_half_leaves_the_scales() -> None:
    layer = Int8Linear.from_dense(pruned())
    weight = layer.weight
    layer._apply(ToGpu())
    super(QuantizedLinear, layer)._apply(lambda t: t.half() if t.is_floating_point() else t)
    assert torch.equal(layer.weight, weight)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.float16


@each_class
def test_the_weight_comes_back(cls: type[QuantizedLinear]) -> None:
    dense = pruned()
    layer, expected = cls.from_dense(dense), Int8Linear.from_dense(dense).weight
    assert torch.equal(layer.weight, expected)
    other = cls.from_dense(pruned())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(other).weight, expected)
    assert layer.count_nonzero() == int(expected.count_nonzero())


@each_class
def test_files_hold_what_runs_anywhere(cls: type[QuantizedLinear], tmp_path: Path) -> None:
    layer = cls.from_dense(pruned(), activation="relu", x_scale=0.05)
    sc.save(nn.Sequential(layer), tmp_path / "gpu.safetensors")
    loaded = sc.load(tmp_path / "gpu.safetensors", lambda: nn.Sequential(nn.Linear(K, N)))[0]
    assert type(loaded) is (Int8Linear if cls is RowsInt8Linear else SparseInt8Linear)
    assert (loaded.activation, loaded.x_scale) == ("relu", 0.05)
    assert torch.equal(loaded.weight, layer.weight)


@each_class
def test_the_cpu_is_refused(cls: type[QuantizedLinear]) -> None:
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        cls.from_dense(pruned())(torch.ones(2, K, dtype=torch.float16))


def test_operations_of_the_cpu_refuse_weights_for_gpus() -> None:
    layer = RowsInt8Linear.from_dense(pruned())
    with pytest.raises(RuntimeError, match="got 'rows'; move the layer"):
        raw.linear_int8(torch.ones(2, K), *layer._arguments(None), *layer._output_arguments())


@each_class
@pytest.mark.parametrize("rows", [0, 2])
def test_layers_have_fakes(cls: type[QuantizedLinear], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (int8_linear, sc.ops.cuda):
        monkeypatch.setattr(module, "check_cuda", lambda device, what: None)
    layer = cls.from_dense(pruned()).to("meta")
    y = layer(torch.empty(3, rows, K, dtype=torch.float16, device="meta"))
    assert (y.shape, y.dtype, y.device.type) == ((3, rows, N), torch.float16, "meta")


@pytest.mark.parametrize("cls", WEIGHT_ONLY)
@pytest.mark.parametrize("channel_scale", [None, torch.tensor([0.5, 2.0]).repeat(K // 2)])
def test_weight_only_layers_leave_activations_alone(
    cls: type[WeightOnlyLinear], channel_scale: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(x: Tensor, weight: GpuWeight, bias: Tensor, *, residual: Tensor | None, activation: str) -> Tensor:
        assert activation == "relu"
        return torch.relu(x.double() @ weight.unpack().to_dense().double().T + bias).to(x.dtype)

    monkeypatch.setattr(int8_linear, "spmm_packed", multiply)
    layer = cls.from_dense(pruned(), activation="relu", x_scale=0.5, x_channel_scale=channel_scale)
    x = torch.randn(3, K).half()
    dense = layer.to_dense_module().double()
    expected = torch.relu(dense(x.double()))
    assert bool(((layer(x).double() - expected).abs() <= 2**-10 * expected.abs() + 1e-6).all())


@pytest.mark.parametrize("cls", WEIGHT_ONLY)
def test_weight_only_layers_have_no_int8_outputs(cls: type[WeightOnlyLinear]) -> None:
    with pytest.raises(UnsupportedError, match=r"expected no y_scale, got 0\.5"):
        cls.from_dense(pruned(), x_scale=0.5, y_scale=0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("cls", [Int8Linear, SparseInt8Linear, RowsInt8Linear])
def test_without_a_gpu_nothing_changes(cls: type[QuantizedLinear]) -> None:
    layer = cls.from_dense(pruned())
    names, weight = list(layer._buffers), layer.weight
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):  # PyTorch's own
        layer.to("cuda")
    assert type(layer) is cls
    assert list(layer._buffers) == names
    assert torch.equal(layer.weight, weight)
