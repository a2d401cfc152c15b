"""PyTorch's product with int4 weights as a layer: against float64, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn import DenseLinear, TorchInt4WeightLinear
from sparsecore.nn.torch_int4 import GROUP


def rounded(weight: Tensor) -> Tensor:
    """-7 .. 7 times a seventh of the largest of 128 columns, which bfloat16 rounds toward zero; float64."""
    groups = weight.double().unflatten(1, (-1, GROUP))
    seventh = (groups.abs().amax(2, keepdim=True) / 7).float()
    scale = (seventh.view(torch.int32) >> 16 << 16).view(torch.float32).double()
    return (torch.where(scale > 0, groups / scale.clamp_min(1e-30), 0).round().clamp(-7, 7) * scale).flatten(1)


@pytest.mark.parametrize("shape", [(16, 128), (48, 384)])
def test_the_product_is_that_of_the_rounded_weight(shape: tuple[int, int]) -> None:
    N, K = shape
    dense = nn.Linear(K, N).bfloat16()
    with torch.no_grad():
        dense.weight *= torch.rand(N, K) < 0.5
        dense.weight[3] = 0
        dense.weight[:, :GROUP] *= 100
    layer = TorchInt4WeightLinear.from_dense(dense)
    x = torch.randn(2, 5, K).bfloat16()
    weight, bias = rounded(dense.weight.detach()), dense.bias.detach().double()
    assert torch.equal(weight == 0, rounded(weight.bfloat16()) == 0)
    expected = x.double() @ weight.T + bias
    magnitude = x.double().abs() @ weight.abs().T + bias.abs()
    # A value of the weight, the product and the sum with the bias are each rounded to bfloat16.
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert bool(((y.double() - expected).abs() <= 4 * 2**-8 * magnitude).all())
    zeros = TorchInt4WeightLinear.from_dense(nn.Linear(K, N, bias=False).bfloat16().requires_grad_(False))
    assert not bool(zeros(torch.zeros(1, K).bfloat16()).any())


def test_every_value_of_a_weight_is_where_it_was() -> None:
    q = torch.randint(-7, 8, (32, 256)).bfloat16()
    q[:, ::GROUP] = 7  # so that scales are 1
    dense = nn.Linear(256, 32, bias=False).bfloat16()
    dense.weight.data = q
    layer = TorchInt4WeightLinear.from_dense(dense)
    assert torch.equal(layer(torch.eye(256).bfloat16()).T, q)
    assert torch.equal(copy.deepcopy(layer)(torch.eye(256).bfloat16()).T, q)


def test_files_hold_the_dense_weight(tmp_path: Path) -> None:
    layer = TorchInt4WeightLinear.from_dense(nn.Linear(128, 16).bfloat16())
    sc.save(nn.Sequential(layer), tmp_path / "int4.safetensors")
    loaded = sc.load(tmp_path / "int4.safetensors", lambda: nn.Sequential(nn.Linear(128, 16).bfloat16()))[0]
    assert type(loaded) is nn.Linear
    weight = layer(torch.eye(128).bfloat16()).T - layer.bias[:, None]
    torch.testing.assert_close(loaded.weight, weight, rtol=2**-6, atol=1e-3)
    x = torch.randn(3, 128).bfloat16()
    torch.testing.assert_close(loaded(x), layer(x), rtol=2**-6, atol=2**-6)


def test_casts_leave_the_weight_and_moves_are_refused() -> None:
    layer = TorchInt4WeightLinear.from_dense(nn.Linear(128, 16).bfloat16())
    x = torch.randn(3, 128).bfloat16()
    expected = layer(x)
    assert layer.to(torch.float32).scales.dtype == torch.bfloat16
    assert torch.equal(layer.bfloat16()(x), expected)
    with pytest.raises(UnsupportedError, match="stay on cpu, got meta; convert the float model there"):
        layer.to("meta")
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("N", "K"), [(16, 64), (16, 130), (8, 128), (24, 128), (0, 128), (16, 0)])
def test_sizes_that_are_refused(N: int, K: int) -> None:
    dense = nn.Linear(K, N, device="meta").to_empty(device="cpu").bfloat16()
    with pytest.raises(UnsupportedError, match="N a multiple of 16 and K of 128"):
        TorchInt4WeightLinear.from_dense(dense)


def test_other_weights_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"expected a bfloat16 weight, got torch\.float16"):
        TorchInt4WeightLinear.from_dense(nn.Linear(128, 16).half())
    with pytest.raises(UnsupportedError, match="no product with int4 weights on meta"):
        TorchInt4WeightLinear.from_dense(nn.Linear(128, 16, device="meta").bfloat16())
    with pytest.raises(UnsupportedError, match="without an activation, got one with relu"):
        TorchInt4WeightLinear.from_dense(DenseLinear.from_dense(nn.Linear(128, 16).bfloat16(), "relu"))
    for bad in (float("nan"), float("inf")):
        dense = nn.Linear(128, 16).bfloat16()
        dense.weight.data[2, 3] = bad
        with pytest.raises(FormatError, match="finite values"):
            TorchInt4WeightLinear.from_dense(dense)
