"""Linear layers: batch dimensions and sizes, and int8 against integer arithmetic."""

from __future__ import annotations

import pytest
import torch
from oracle import ACTIVATIONS, UNIT, assert_within, dense_reference
from torch import Tensor, nn

from sparsecore.nn import BitmapInt8Linear, CompressedModule, Int8Linear, SparseInt8Linear, SparseLinear


def linear(in_features: int, out_features: int, sparsity: float = 0.8) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape) >= sparsity
    return layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 4), (2, 0)])
def test_sparse_linear(batch: tuple[int, ...], activation: str) -> None:
    layer, x = linear(33, 17), torch.randn(*batch, 33) * 3
    compressed = SparseLinear.from_dense(layer, activation=activation)
    assert_within(compressed(x), *dense_reference(layer, x, activation))


@pytest.mark.parametrize(("in_features", "out_features"), [(0, 3), (3, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("cls", [SparseLinear, Int8Linear, SparseInt8Linear, BitmapInt8Linear])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_degenerate_sizes(cls: type[CompressedModule], in_features: int, out_features: int) -> None:
    layer = nn.Linear(in_features, out_features)
    with torch.no_grad():
        layer.bias.fill_(0.5)
    compressed = cls.from_dense(layer)
    y = compressed(torch.ones(2, in_features))
    assert torch.allclose(y, layer(torch.ones(2, in_features)), atol=0.02)
    compressed.load_state_dict(compressed.state_dict())
    assert compressed.to_dense_module().weight.shape == layer.weight.shape


def integer_reference(layer: Int8Linear, x: Tensor, x_scale: Tensor, x_zero_point: int) -> tuple[Tensor, Tensor]:
    """y from int64 sums, and the float32 roundings that come after them."""
    q = (x * (1 / x_scale)).round() + x_zero_point
    q = q.clamp(-128, 127).long() - x_zero_point
    acc = (q @ layer.weight_format.q.long().T).double()
    scaled = acc * x_scale.double() * layer.scale.double()
    bias = layer.bias.double()
    bound = 4 * UNIT * (scaled.abs() + bias.abs())  # two products, the conversion of acc, the sum
    return scaled + bias, bound


@pytest.mark.parametrize("shape", [(33, 17), (1, 1), (64, 8), (100, 31)])
def test_int8_linear_is_exact_in_integers(shape: tuple[int, int]) -> None:
    layer, x = linear(*shape, sparsity=0.3), torch.randn(7, shape[0]) * 5
    x[3] = 0
    with torch.no_grad():
        dynamic = Int8Linear.from_dense(layer)
        x_scale = x.abs().amax(1, keepdim=True) / 127
        x_scale[3] = 1
        assert_within(dynamic(x), *integer_reference(dynamic, x, x_scale, 0))

        static = Int8Linear.from_dense(layer, x_scale=0.0625, x_zero_point=-20)
        assert_within(static(x), *integer_reference(static, x, torch.tensor(0.0625), -20))
        for int8 in (dynamic, static):
            for sparse in (SparseInt8Linear, BitmapInt8Linear):
                assert torch.equal(sparse.from_int8(int8)(x), int8(x))


@pytest.mark.parametrize("cls", [SparseLinear, Int8Linear, SparseInt8Linear, BitmapInt8Linear])
def test_wrong_features(cls: type[CompressedModule]) -> None:
    layer = cls.from_dense(linear(5, 3))
    for shape in ((2, 4), (2, 6), (5, 2), ()):
        with pytest.raises(RuntimeError, match=r"expected x \[\.\.\., 5\]"):
            layer(torch.randn(shape))


def test_repr() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight[0] = 0
    assert str(SparseLinear.from_dense(layer, activation="relu")) == (
        "SparseLinear(in_features=4, out_features=2, nnz=4, sparsity=0.500, bias=False, activation=relu)"
    )
    assert str(Int8Linear.from_dense(layer, x_scale=0.5)) == (
        "Int8Linear(in_features=4, out_features=2, bias=False, x_scale=0.5)"
    )
