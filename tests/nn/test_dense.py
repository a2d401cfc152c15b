"""Dense layers with an activation: their results, and the torch.nn layers they share parameters with."""

from __future__ import annotations

import pickle

import pytest
import torch
from oracle import ACTIVATIONS, assert_within, dense_reference
from torch import nn

from sparsecore.nn import DepthwiseConv2d
from sparsecore.nn.dense import (
    ChannelsLastConv2d,
    DenseConv2d,
    PackedLinear,
    dense_layer,
    plain_layer,
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_dense_layer(activation: str) -> None:
    for dense, x in ((nn.Linear(6, 5), torch.randn(3, 6)), (nn.Conv2d(2, 5, 3), torch.randn(2, 2, 7, 6))):
        layer = dense_layer(dense, activation)
        residual = torch.randn_like(dense(x))
        exact = dense_reference(dense, x, activation, residual)
        assert_within(layer(x, residual), *exact)
        with torch.no_grad():  # in place
            assert_within(layer(x, residual), *exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_packed_for_onednn_equal_the_dense_layer(activation: str) -> None:
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(6, 5, bias=activation != "relu")
    packed = [ChannelsLastConv2d.from_dense(conv, activation), PackedLinear.from_dense(linear, activation)]
    inputs = [torch.randn(2, 3, 7, 6), torch.randn(3, 6), torch.randn(1, 6), torch.randn(2, 4, 6), torch.randn(6)]
    inputs.append(torch.randn(6, 9).t())
    for x in inputs:
        dense, layer = (conv, packed[0]) if x.dim() == 4 else (linear, packed[1])
        residual = torch.randn_like(dense(x))
        kept = residual.clone()
        for added in (None, residual):
            exact = dense_reference(dense, x, activation, added)
            assert_within(layer(x, added), *exact)
            with torch.no_grad():
                assert_within(layer(x, added), *exact)
        assert torch.equal(residual, kept), "it is an input"
    assert all("_packed" in vars(layer) for layer in packed)


def test_a_packed_weight_follows_its_layer() -> None:
    layer = PackedLinear.from_dense(nn.Linear(6, 5)).eval()
    x = torch.randn(3, 6)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer(x[:0].double()).shape == (0, 5)
        torch.testing.assert_close(layer.float()(x), y)
        assert PackedLinear.from_dense(nn.Linear(6, 0)).eval()(x).shape == (3, 0)
    with pytest.raises(RuntimeError):
        layer(torch.randn(3, 7))


def test_shares_parameters_and_nothing_else() -> None:
    dense = nn.Conv2d(2, 5, 3).eval()
    layer = ChannelsLastConv2d.from_dense(dense, "relu")
    with torch.no_grad():
        layer(torch.randn(1, 2, 6, 6))
    assert "_packed" in vars(layer)
    plain = plain_layer(layer)
    assert type(plain) is nn.Conv2d
    assert vars(plain).keys() == vars(dense).keys(), "neither an activation nor a packed weight"
    assert plain.weight is dense.weight
    assert not plain.training
    plain.weight = nn.Parameter(torch.zeros(5, 2, 3, 3))
    assert layer.weight is dense.weight


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an activation of none, relu, relu6"):
        dense_layer(nn.Linear(2, 2), "tanh")


@pytest.mark.parametrize("kind", [DenseConv2d, DepthwiseConv2d])
def test_later_hooks_of_the_torch_layer_are_its_own(kind: type[nn.Module]) -> None:
    dense = nn.Conv2d(4, 4, 3, groups=4)
    layer, seen = kind.from_dense(dense), []
    dense.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(1, 4, 5, 5))
    assert seen == []
