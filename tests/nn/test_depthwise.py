"""DepthwiseConv2d: the parameters of a dense convolution, its results and its gradients."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from oracle import ACTIVATIONS, assert_within, dense_reference
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.nn import DepthwiseConv2d
from sparsecore.ops import ACTIVATIONS as NAMES

SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": (1, 0), "bias": False},
    {"kernel_size": 5, "padding": "same"},
    {"kernel_size": (3, 5), "padding": "same", "dilation": (3, 2)},
    {"kernel_size": 7, "padding": "valid"},
]


def conv(multiplier: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4 * multiplier, groups=4, **settings)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_dense_layer(settings: dict[str, Any], multiplier: int) -> None:
    dense = conv(multiplier, **settings)
    layer = DepthwiseConv2d.from_dense(dense, activation="relu6")
    x = torch.randn(2, 4, 11, 9)
    assert_within(layer(x), *dense_reference(dense, x, "relu6"))
    assert_within(layer(x[0]), *dense_reference(dense, x[0], "relu6"))
    residual = torch.randn_like(layer(x))
    assert_within(layer(x, residual), *dense_reference(dense, x, "relu6", residual))
    assert torch.equal(layer(x[0], residual[0]), layer(x, residual)[0])


def test_shares_the_parameters() -> None:
    dense = conv(kernel_size=3).eval()
    layer = DepthwiseConv2d.from_dense(dense)
    assert layer.weight is dense.weight
    assert layer.bias is dense.bias
    assert not layer.training
    assert layer.state_dict().keys() == dense.state_dict().keys()
    other = DepthwiseConv2d(4, 4, 3, groups=4)
    other.load_state_dict(dense.state_dict())
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("activation", NAMES)
def test_gradients(activation: str) -> None:
    dense = conv(2, kernel_size=3, padding=1)
    layer = DepthwiseConv2d.from_dense(copy.deepcopy(dense), activation=activation)
    x = torch.randn(2, 4, 7, 6)
    inputs, expected_inputs = (x.clone().requires_grad_() for _ in range(2))
    layer(inputs).square().sum().backward()
    ACTIVATIONS[activation][0](dense(expected_inputs)).square().sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, expected_inputs.grad, rtol=1e-3, atol=1e-4)
    for found, expected in zip(layer.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models(dtype: torch.dtype) -> None:
    dense = conv(kernel_size=3, padding=1).to(dtype)
    layer = DepthwiseConv2d.from_dense(dense)
    x = torch.randn(2, 4, 7, 6).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(dense, x))
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == dtype


def test_compile_fullgraph() -> None:
    layer = DepthwiseConv2d.from_dense(conv(kernel_size=3, padding=1), activation="hardswish")
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_configuration_and_dense_form(settings: dict[str, Any]) -> None:
    layer = DepthwiseConv2d.from_dense(conv(2, **settings), "silu")
    config = json.loads(json.dumps(layer.config()))
    again = DepthwiseConv2d.from_config(config, layer.tensors())
    x = torch.randn(2, 4, 11, 9)
    assert torch.equal(again(x), layer(x))
    assert again.config() == layer.config()
    dense = layer.to_dense_module()
    assert type(dense) is nn.Conv2d
    torch.testing.assert_close(nn.functional.silu(dense(x)), layer(x))


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"in_channels": 3}, {}),
        ({"in_channels": 0}, {}),
        ({"in_channels": "4"}, {}),
        ({"stride": 0}, {}),
        ({"stride": [1, 1, 1]}, {}),
        ({"padding": "same"}, {}),
        ({"padding": -1}, {}),
        ({"dilation": None}, {}),
        ({"activation": "tanh"}, {}),
        ({"kernel": 1}, {}),
        ({"more": 1}, {}),
        ({}, {"weight": None}),
        ({}, {"weight": torch.ones(8, 1, 3)}),
        ({}, {"weight": torch.ones(8, 2, 3, 3)}),
        ({}, {"weight": torch.ones(8, 1, 0, 3)}),
        ({}, {"weight": torch.ones(8, 1, 3, 3, dtype=torch.int8)}),
        ({}, {"bias": torch.ones(7)}),
    ],
    ids=str,
)
def test_configuration_from_anywhere(changes: dict[str, Any], tensors: dict[str, Any]) -> None:
    layer = DepthwiseConv2d.from_dense(conv(2, kernel_size=3))
    with pytest.raises(ValueError, match="expected"):
        DepthwiseConv2d.from_config(layer.config() | changes, layer.tensors() | tensors)


def test_shows_its_activation() -> None:
    assert repr(DepthwiseConv2d(4, 4, 3, groups=4, activation="relu")).endswith("groups=4, activation=relu)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 2}, "as many groups as input channels, 4, got 2"),
        ({"groups": 1}, "as many groups as input channels, 4, got 1"),
        ({"groups": 4, "padding": 1, "padding_mode": "reflect"}, "padding with zeros"),
        ({"groups": 4, "padding": "same", "kernel_size": 4}, "as much padding at both ends"),
    ],
    ids=str,
)
def test_unsupported_convolutions(settings: dict[str, Any], message: str) -> None:
    settings = {"kernel_size": 3} | settings
    with pytest.raises(UnsupportedError, match=message):
        DepthwiseConv2d.from_dense(nn.Conv2d(4, 4, **settings))
    with pytest.raises(UnsupportedError, match=message):
        DepthwiseConv2d(4, 4, **settings)


def test_wrong_arguments() -> None:
    layer = DepthwiseConv2d(4, 4, 3, groups=4)
    with pytest.raises(RuntimeError, match=r"expected x \[B, 4, H, W\], got \[1, 3, 5, 5\]"):
        layer(torch.randn(1, 3, 5, 5))
    with pytest.raises(RuntimeError, match="expected float32, float16 or bfloat16 x"):
        layer(torch.randn(1, 4, 5, 5).double())
    with pytest.raises(ValueError, match="expected an activation"):
        DepthwiseConv2d(4, 4, 3, groups=4, activation="tanh")
    with pytest.raises(UnsupportedError, match="expected an initialized"):
        DepthwiseConv2d.from_dense(nn.Linear(2, 2))  # type: ignore[arg-type]
