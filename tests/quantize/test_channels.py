"""Scales per input channel: the formula, and that the layer computes the same with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecore.quantize.channels import channel_dim, channel_scale, divide_channels, weight_channel_absmax


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_formula(alpha: float) -> None:
    x, weight = torch.rand(16) + 0.01, torch.rand(16) + 0.01
    scale = channel_scale(x, weight, alpha)
    expected = [a**alpha / b ** (1 - alpha) for a, b in zip(x.tolist(), weight.tolist(), strict=True)]
    torch.testing.assert_close(scale.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    if alpha == 1:
        assert torch.equal(scale, x)


def test_half_makes_both_ranges_equal() -> None:
    x, weight = torch.rand(16) + 0.1, torch.rand(16) + 0.1
    scale = channel_scale(x, weight, 0.5)
    torch.testing.assert_close(x / scale, weight * scale)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ([0.0, 1.0, 100.0], [1.0, 1.0, 1.0]),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 0.0]),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([1e-45, 1e38, 1.0], [3e38, 1e-45, 1.0]),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_always_finite_and_positive(x: list[float], weight: list[float], alpha: float) -> None:
    scale = channel_scale(torch.tensor(x), torch.tensor(weight), alpha)
    assert scale.dtype == torch.float32
    assert bool((scale.isfinite() & (scale > 0)).all())


def test_a_silent_channel_counts_as_a_middling_one() -> None:
    scale = channel_scale(torch.tensor([0.0, 1.0, 4.0, 100.0]), torch.ones(4), 0.5)
    assert scale.tolist() == [2.0, 1.0, 2.0, 10.0]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha between 0 and 1"):
        channel_scale(torch.ones(1), torch.ones(1), alpha)


def test_linear_stays_the_same() -> None:
    layer, x = nn.Linear(6, 4).double(), torch.randn(5, 6).double() * torch.tensor([1, 1, 1, 50, 1, 1])
    scale = channel_scale(x.abs().amax(0), weight_channel_absmax(layer)).double()
    assert torch.equal(weight_channel_absmax(layer), layer.weight.detach().abs().amax(0).float())
    y = F.linear(divide_channels(x, scale, channel_dim(layer)), layer.weight * scale, layer.bias)
    torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolution_stays_the_same(groups: int) -> None:
    layer, x = nn.Conv2d(6, 12, 3, groups=groups).double(), torch.randn(2, 6, 5, 5).double()
    absmax, weight = weight_channel_absmax(layer), layer.weight.detach()
    for channel in range(6):  # of one group, in its rows alone
        group, column = divmod(channel, 6 // groups)
        rows = weight[group * 12 // groups : (group + 1) * 12 // groups, column]
        assert float(absmax[channel]) == float(rows.abs().max().float())
    scale = channel_scale(x.abs().amax((0, 2, 3)), absmax).double()
    by_row = scale.reshape(groups, 1, 6 // groups, 1, 1).expand(-1, 12 // groups, -1, -1, -1).reshape(12, -1, 1, 1)
    for x_like in (x, x[0]):
        scaled = divide_channels(x_like, scale, channel_dim(layer))
        y = F.conv2d(scaled, layer.weight * by_row, layer.bias, groups=groups)
        torch.testing.assert_close(y, layer(x_like))
