"""FragmentLinear without a GPU: what it stores, and that it refuses to run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn import BlockLinear, FragmentLinear, Int8Linear, SparseLinear


def pruned(dtype: torch.dtype = torch.float16) -> nn.Linear:
    layer = nn.Linear(100, 70)
    with torch.no_grad():
        layer.weight *= torch.rand(70, 100) < 0.4
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_weight_comes_back(dtype: torch.dtype) -> None:
    dense = pruned(dtype)
    layer = FragmentLinear.from_dense(dense)
    assert torch.equal(layer.weight, dense.weight)
    assert layer.count_nonzero() == int(dense.weight.count_nonzero())
    other = FragmentLinear.from_dense(pruned(dtype))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, dense.weight)
    assert torch.equal(copy.deepcopy(other).weight, dense.weight)
    stored = SparseLinear.from_dense(dense).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in layer.state_dict().items())


def test_float32_is_refused() -> None:
    with pytest.raises(FormatError, match="float16, bfloat16 or int8"):
        FragmentLinear.from_dense(pruned(torch.float32))


def test_the_cpu_is_refused() -> None:
    layer = FragmentLinear.from_dense(pruned())
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        layer(torch.ones(2, 100, dtype=torch.float16))


def test_the_operation_has_a_fake() -> None:
    layer = FragmentLinear.from_dense(pruned())
    weight = layer._packed_weight().to("meta")
    x = torch.empty(2, 3, 100, dtype=torch.float16, device="meta")
    y = raw.spmm_fragment(x, list(weight.tensors), weight.sizes, None, None, "none")
    assert y.shape == (2, 3, 70)
    assert y.dtype == torch.float16
    assert raw.expand_fragment(x, list(weight.tensors), weight.sizes).shape == (70, 100)


class _Moved:
    """What a move to a GPU hands to a layer: a function that says where a tensor goes."""

    def __init__(self) -> None:
        self.moved = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self.moved += 1
        return _OnCuda() if tensor.numel() == 0 else tensor  # type: ignore[return-value]


class _OnCuda:
    device = torch.device("cuda", 0)


@pytest.mark.parametrize("cls", [Int8Linear, BlockLinear])
def test_layers_without_cuda_kernels_refuse_to_move(cls: type) -> None:
    layer = cls.from_dense(nn.Linear(8, 8))
    move = _Moved()
    with pytest.raises(UnsupportedError, match=f"kernels for {cls.__name__}, got cuda:0"):
        layer._apply(move)
    assert move.moved == 1  # nothing but the question where to


@pytest.mark.skipif(torch.version.cuda is not None, reason="for builds without CUDA kernels")
def test_builds_without_cuda_kernels_refuse_to_move() -> None:
    with pytest.raises(UnsupportedError, match="SPARSECORE_BUILD_CUDA=1"):
        SparseLinear.from_dense(nn.Linear(8, 8))._apply(_Moved())
