"""Convolutions: every setting of nn.Conv2d, and int8 against integer arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import UNIT, assert_within, dense_reference
from torch import Tensor, nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight
from sparsecore.nn import Int8Conv2d, SparseConv2d, SparseInt8Conv2d

SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": (1, 4), "groups": 4},
    {"kernel_size": (5, 2), "stride": 3, "padding": 2, "groups": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (3, 5), "padding": "same", "dilation": (3, 2)},
    {"kernel_size": 3, "padding": "valid"},
]

each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def conv(settings: dict[str, Any], sparsity: float = 0.6) -> nn.Conv2d:
    layer = nn.Conv2d(4, 8, **settings)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape) >= sparsity
    return layer


@each_setting
def test_sparse_conv2d(settings: dict[str, Any]) -> None:
    layer = conv(settings)
    compressed = SparseConv2d.from_dense(layer, activation="relu")
    x = torch.randn(2, 4, 11, 9)
    assert_within(compressed(x), *dense_reference(layer, x, "relu"))
    assert_within(compressed(x[0]), *dense_reference(layer, x[0], "relu"))


def test_only_plain_1x1_is_a_product() -> None:
    products = [SparseConv2d.from_dense(conv(settings)).is_product for settings in SETTINGS]
    assert products == [True] + [False] * (len(SETTINGS) - 1)


@each_setting
def test_int8_conv2d_static_is_exact_in_integers(settings: dict[str, Any]) -> None:
    """The quantized input convolved in float64, which is exact for such integers."""
    layer, x = conv(settings), torch.randn(2, 4, 11, 9)
    int8 = Int8Conv2d.from_dense(layer, x_scale=0.03125, x_zero_point=7)
    q = ((x / 0.03125).round() + 7).clamp(-128, 127) - 7
    acc = F.conv2d(
        q.double(),
        int8.weight_format.q.double().view(layer.weight.shape),
        stride=int8.stride,
        padding=int8.padding,
        dilation=int8.dilation,
        groups=int8.groups,
    )
    assert_scaled(int8, acc * 0.03125, x)


@each_setting
def test_int8_conv2d_dynamic_is_exact_in_integers(settings: dict[str, Any]) -> None:
    """One scale for each image."""
    layer, x = conv(settings), torch.randn(3, 4, 6, 7) * torch.tensor([1.0, 9.0, 0.0])[:, None, None, None]
    int8 = Int8Conv2d.from_dense(layer)
    x_scale = x.abs().amax((1, 2, 3), keepdim=True) / 127
    x_scale[2] = 1.0
    acc = F.conv2d(
        (x * (1 / x_scale)).round().double(),
        int8.weight_format.q.double().view(layer.weight.shape),
        stride=int8.stride,
        padding=int8.padding,
        dilation=int8.dilation,
        groups=int8.groups,
    )
    assert_scaled(int8, acc * x_scale.double(), x)


def assert_scaled(int8: Int8Conv2d, scaled: Tensor, x: Tensor) -> None:
    """Given x_scale * sums, check int8 with and without zeros; three roundings come after the sums."""
    assert int8.bias is not None
    scaled = scaled * int8.scale.double()[:, None, None]
    bias = int8.bias.double()[:, None, None]
    bound = 4 * UNIT * (scaled.abs() + bias.abs())
    assert_within(int8(x), scaled + bias, bound)
    sparse = SparseInt8Conv2d.from_int8(int8)
    assert torch.equal(sparse(x), int8(x))
    assert torch.equal(sparse(x[0]), int8(x)[0])


@pytest.mark.parametrize("cls", [SparseConv2d, Int8Conv2d, SparseInt8Conv2d])
def test_unsupported_padding(cls: type[SparseConv2d | Int8Conv2d | SparseInt8Conv2d]) -> None:
    with pytest.raises(UnsupportedError, match=r"Conv2d\(4, 8.*padding_mode=circular"):
        cls.from_dense(conv({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}))
    with pytest.raises(UnsupportedError, match="both ends"):
        cls.from_dense(conv({"kernel_size": 2, "padding": "same"}))


@pytest.mark.parametrize("cls", [SparseConv2d, Int8Conv2d, SparseInt8Conv2d])
def test_wrong_channels(cls: type[SparseConv2d | Int8Conv2d | SparseInt8Conv2d]) -> None:
    for settings in ({"kernel_size": 1}, {"kernel_size": 3, "groups": 2}):
        layer = cls.from_dense(conv(settings))
        for channels in (2, 3, 6, 8):
            with pytest.raises(RuntimeError, match=r"expected x \[B, 4, H, W\]"):
                layer(torch.randn(1, channels, 6, 6))
        with pytest.raises(RuntimeError, match="expected x"):
            layer(torch.randn(6, 6))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kernel_size": 2}, FormatError),
        ({"kernel_size": 3, "groups": 3}, FormatError),
        ({"kernel_size": 0}, ValueError),
        ({"kernel_size": (3, 3, 1)}, ValueError),
        ({"kernel_size": 3, "stride": 0}, ValueError),
        ({"kernel_size": 3, "padding": -1}, ValueError),
        ({"kernel_size": 3, "dilation": 1.5}, ValueError),
        ({"kernel_size": 3, "groups": 0}, ValueError),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception]) -> None:
    weight = CsrWeight.from_dense(torch.ones(8, 9))
    with pytest.raises(error, match="expected"):
        SparseConv2d(weight, **settings)


def test_repr() -> None:
    layer = conv({"kernel_size": 3, "padding": 1}, sparsity=0.0)
    assert str(SparseConv2d.from_dense(layer)) == (
        "SparseConv2d(4, 8, kernel_size=(3, 3), padding=(1, 1), nnz=288, sparsity=0.000, bias=True)"
    )
