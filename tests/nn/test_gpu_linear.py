"""Layers for GPUs without one: what they store, what SparseLinear becomes, and that they refuse to run."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsecore as sc
from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn import BlockLinear, DeltaLinear, FragmentInt4Linear, FragmentLinear, PanelLinear, SparseLinear
from sparsecore.ops import cuda as cuda_ops

GpuLayer = FragmentLinear | DeltaLinear | FragmentInt4Linear
CLASSES = [FragmentLinear, DeltaLinear]
each_class = pytest.mark.parametrize("cls", CLASSES)
NARROW = (torch.float16, torch.bfloat16)


def pruned(dtype: torch.dtype = torch.float16, sparsity: float = 0.6) -> nn.Linear:
    layer = nn.Linear(100, 70)
    with torch.no_grad():
        layer.weight *= torch.rand(70, 100) >= sparsity
    return layer.to(dtype)


@each_class
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_weight_comes_back(cls: type[FragmentLinear] | type[DeltaLinear], dtype: torch.dtype) -> None:
    dense = pruned(dtype)
    layer = cls.from_dense(dense)
    assert torch.equal(layer.weight, dense.weight)
    assert layer.count_nonzero() == int(dense.weight.count_nonzero())
    assert f"nnz={layer.count_nonzero()}" in repr(layer)
    other = cls.from_dense(pruned(dtype))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, dense.weight)
    assert torch.equal(copy.deepcopy(other).weight, dense.weight)
    stored = SparseLinear.from_dense(dense).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in layer.state_dict().items())


@each_class
def test_files_hold_csr(cls: type[FragmentLinear] | type[DeltaLinear], tmp_path: Path) -> None:
    dense = pruned()
    sc.save(nn.Sequential(cls.from_dense(dense, activation="relu")), tmp_path / "gpu.safetensors")
    loaded = sc.load(tmp_path / "gpu.safetensors", lambda: nn.Sequential(nn.Linear(100, 70).half()))[0]
    assert type(loaded) is SparseLinear
    assert loaded.activation == "relu"
    assert torch.equal(loaded.weight, dense.weight)


def test_int4_holds_rounded_values(tmp_path: Path) -> None:
    dense = pruned()
    layer = FragmentInt4Linear.from_dense(dense, activation="relu")
    error = float((layer.weight - dense.weight).norm() / dense.weight.norm())
    assert 0 < error < 0.1
    assert layer.count_nonzero() == int(layer.weight.count_nonzero()) <= int(dense.weight.count_nonzero())
    other = FragmentInt4Linear.from_dense(pruned())
    other.load_state_dict(layer.state_dict())
    packed, again = layer.packed_weight, copy.deepcopy(other).packed_weight
    assert all(torch.equal(a, b) for a, b in zip(packed.tensors, again.tensors, strict=True)), "rounded once"
    sc.save(nn.Sequential(layer), tmp_path / "gpu.safetensors")
    loaded = sc.load(tmp_path / "gpu.safetensors", lambda: nn.Sequential(nn.Linear(100, 70).half()))[0]
    assert type(loaded) is SparseLinear
    assert loaded.activation == "relu"
    assert torch.equal(loaded.weight, layer.weight)


@each_class
def test_float32_is_refused(cls: type[FragmentLinear] | type[DeltaLinear]) -> None:
    with pytest.raises(FormatError, match="float16, bfloat16 or int8"):
        cls.from_dense(pruned(torch.float32))


@pytest.mark.parametrize("cls", [*CLASSES, FragmentInt4Linear])
@pytest.mark.parametrize("rows", [2, 1000])
def test_the_cpu_is_refused(cls: type[SparseLinear], rows: int) -> None:
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        cls.from_dense(pruned())(torch.ones(rows, 100, dtype=torch.float16))


@pytest.mark.parametrize("cls", [*CLASSES, FragmentInt4Linear])
@pytest.mark.parametrize("rows", [0, 2, 1000])
def test_operations_have_fakes(cls: type[GpuLayer], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ops, "check_cuda", lambda device, what: None)
    layer = cls.from_dense(pruned(), activation="relu").to("meta")
    y = layer(torch.empty(3, rows, 100, dtype=torch.float16, device="meta"))
    assert (y.shape, y.dtype, y.device.type) == ((3, rows, 70), torch.float16, "meta")
    expand = raw.expand_delta if cls is DeltaLinear else raw.expand_fragment
    weight = layer.packed_weight
    assert expand(y, list(weight.tensors), weight.sizes).shape == (70, 100)


class _Moved:
    """What a move to a GPU hands to a layer: a function that says where a tensor goes. Here tensors stay.

    An empty tensor is the question where to, unless it is one of ``own``.
    """

    def __init__(self, dtype: torch.dtype | None = None, own: Iterable[torch.Tensor] = ()) -> None:
        self.dtype = dtype
        self.own = {id(tensor) for tensor in own}
        self.moved = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self.moved += 1
        is_question = tensor.numel() == 0 and id(tensor) not in self.own
        tensor = tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor
        return tensor if not is_question else _OnCuda(tensor.dtype)  # type: ignore[return-value]


class _OnCuda:
    device = torch.device("cuda", 0)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU and its kernels, for what packs and moves."""
    monkeypatch.setattr(sc.nn.base, "check_cuda", lambda device, what: None)


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(("sparsity", "cls"), [(0.6, FragmentLinear), (0.95, DeltaLinear)])
def test_moving_packs_and_unpacks(sparsity: float, cls: type, dtype: torch.dtype) -> None:
    dense = pruned(dtype, sparsity)
    layer = SparseLinear.from_dense(dense, activation="relu")
    state = layer.state_dict()
    layer._apply(_Moved())
    assert type(layer) is cls
    assert layer.activation == "relu"
    assert not {"row_ptr", "col_idx", "values"} & set(layer._buffers)
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    layer.to("cpu")
    assert type(layer) is SparseLinear
    assert set(layer._buffers) == {"row_ptr", "col_idx", "values"}
    assert torch.equal(layer.weight, dense.weight)
    x = torch.randn(3, 100).to(dtype)
    assert torch.equal(layer(x), SparseLinear.from_dense(dense, activation="relu")(x))


@pytest.mark.usefixtures("with_gpu")
def test_moving_with_another_dtype() -> None:
    dense = pruned(torch.float32)
    layer = SparseLinear.from_dense(dense)
    layer._apply(_Moved())
    assert type(layer) is SparseLinear  # float32 has CSR kernels alone
    layer._apply(_Moved(torch.float16))
    assert type(layer) is FragmentLinear
    assert torch.equal(layer.weight, dense.weight.half())
    layer._apply(_Moved(torch.bfloat16))
    assert type(layer) is FragmentLinear
    assert torch.equal(layer.weight, dense.weight.half().bfloat16())
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16


@pytest.mark.usefixtures("with_gpu")
def test_moving_int4() -> None:
    layer = FragmentInt4Linear.from_dense(pruned(), activation="relu")
    packed, weight = layer.packed_weight, layer.weight
    for dtype in (None, torch.float16, torch.bfloat16):
        layer._apply(_Moved(dtype, layer.buffers()))
        assert type(layer) is FragmentInt4Linear
        assert all(torch.equal(a, b) for a, b in zip(layer.packed_weight.tensors, packed.tensors, strict=True))
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    layer.to("cpu")
    assert type(layer) is SparseLinear
    assert torch.equal(layer.weight, weight)
    x = torch.randn(3, 100)
    expected = torch.relu(x @ weight.T + layer.bias.float())
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("cls", [SparseLinear, FragmentLinear])
def test_without_a_gpu_nothing_changes(cls: type[SparseLinear]) -> None:
    dense = pruned()
    layer = cls.from_dense(dense)
    names = list(layer._buffers)
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):  # PyTorch's own
        layer.to("cuda")
    assert type(layer) is cls
    assert list(layer._buffers) == names
    assert torch.equal(layer.weight, dense.weight)


@pytest.mark.parametrize("cls", [PanelLinear, BlockLinear])
def test_layers_without_cuda_kernels_refuse_to_move(cls: type) -> None:
    layer = cls.from_dense(nn.Linear(8, 8))
    move = _Moved()
    with pytest.raises(UnsupportedError, match=f"kernels for {cls.__name__}, got cuda:0"):
        layer._apply(move)
    assert move.moved == 1  # nothing but the question where to


@pytest.mark.parametrize(("capability", "is_refused"), [((7, 5), True), ((8, 0), False), ((10, 0), False)])
def test_older_gpus_are_refused(capability: tuple[int, int], is_refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ops, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    cuda_ops._check_capability.cache_clear()
    move = SparseLinear.from_dense(pruned())._check_device
    if is_refused:
        with pytest.raises(UnsupportedError, match=r"capability 8\.0 or later, got 7\.5 \(Old GPU\)"):
            move(torch.device("cuda", 0))
    else:
        move(torch.device("cuda", 0))
    cuda_ops._check_capability.cache_clear()


@pytest.mark.skipif(torch.version.cuda is not None, reason="for builds without CUDA kernels")
def test_builds_without_cuda_kernels_refuse_to_move() -> None:
    with pytest.raises(UnsupportedError, match="SPARSECORE_BUILD_CUDA=1"):
        SparseLinear.from_dense(nn.Linear(8, 8))._apply(_Moved())
