"""PyTorch's int8 products as layers: against float64, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsecore as sc
from sparsecore.errors import UnsupportedError
from sparsecore.nn import DenseLinear, Int8Linear, TorchInt8Linear, TorchInt8WeightLinear
from sparsecore.nn.torch_int8 import quantize_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_rounded_to_the_nearest_step(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 5, 100) * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    x[1, 2] = 0
    rounded, scale = quantize_rows(x)
    assert (rounded.dtype, rounded.shape, scale.shape) == (torch.int8, x.shape, (3, 5, 1))
    assert bool(((rounded.double() * scale.double() - x.double()).abs() <= scale * 0.5001).all())
    largest = rounded.abs().amax(-1)
    assert torch.equal(largest == 0, (x == 0).all(-1))
    assert bool((largest[largest > 0] == 127).all())
    assert quantize_rows(torch.empty(2, 0))[1].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_give_nan(bad: float) -> None:
    x = torch.randn(18, 16)
    x[3, 5] = bad
    y = TorchInt8Linear.from_dense(nn.Linear(16, 8))(x)
    assert torch.equal(y.isnan().all(1), torch.arange(18) == 3)
    assert bool(y.isfinite().sum() == 17 * 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_int8_product_equals_our_layer(dtype: torch.dtype) -> None:
    dense = DenseLinear.from_dense(nn.Linear(64, 24), "relu")
    x = torch.randn(2, 20, 64).to(dtype)
    y, expected = TorchInt8Linear.from_dense(dense)(x), Int8Linear.from_dense(dense)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=2**-10 if dtype == torch.float16 else 2**-20, atol=1e-5)


def test_product_with_int8_weights() -> None:
    dense, x = nn.Linear(64, 32).bfloat16(), torch.randn(3, 64).bfloat16()
    layer = TorchInt8WeightLinear.from_dense(dense)
    weight = layer.weight.double() * layer.scale.double()[:, None]
    magnitude = x.double().abs() @ weight.abs().T + dense.bias.double().abs()
    expected = x.double() @ weight.T + dense.bias.double()
    # The scale, the product and the sum with the bias are each rounded to bfloat16.
    assert bool(((layer(x).double() - expected).abs() <= 4 * 2**-8 * magnitude).all())


@pytest.mark.parametrize(("kind", "layer", "message"), [
    (TorchInt8Linear, nn.Linear(12, 8), "multiples of 8"),
    (TorchInt8Linear, nn.Linear(8, 12), "multiples of 8"),
    (TorchInt8WeightLinear, nn.Linear(8, 8), "expected a bfloat16 weight"),
])  # fmt: skip
def test_refusals(kind: type[TorchInt8Linear], layer: nn.Linear, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        kind.from_dense(layer)


@pytest.mark.parametrize("kind", [TorchInt8Linear, TorchInt8WeightLinear])
def test_files_hold_int8(kind: type[TorchInt8Linear], tmp_path: Path) -> None:
    layer = kind.from_dense(DenseLinear.from_dense(nn.Linear(64, 16).bfloat16(), "relu"))
    sc.save(nn.Sequential(layer, layer), tmp_path / "int8.safetensors")
    loaded = sc.load(tmp_path / "int8.safetensors", lambda: nn.Sequential(*[nn.Linear(64, 16).bfloat16()] * 2))
    assert type(loaded[0]) is Int8Linear
    assert loaded[0] is loaded[1]
    assert loaded[0].activation == "relu"
    assert torch.equal(loaded[0].weight, layer.weight.float() * layer.scale[:, None])
    assert torch.equal(loaded[0].bias, layer.bias)
