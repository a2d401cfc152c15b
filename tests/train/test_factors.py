"""Separable and low-rank pairs: what they compute against float64, their cost against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sparsecore.cost import count_multiply_adds
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.train import low_rank, separable


def product_of_separable(pair: nn.Sequential, conv: nn.Conv2d) -> Tensor:
    """The k x k weight that a pair stands for: its response to one pixel in one channel."""
    N, C, kh, kw = conv.weight.shape
    depthwise, pointwise = pair.depthwise.weight.double(), pair.pointwise.weight.double()
    multiplier = len(depthwise) // C
    weight = torch.zeros(N, C, kh, kw, dtype=torch.float64)
    for n in range(N):
        for c in range(C):
            for m in range(multiplier):
                weight[n, c] += pointwise[n, c * multiplier + m, 0, 0] * depthwise[c * multiplier + m, 0]
    return weight


CONVOLUTIONS = {
    "square": nn.Conv2d(6, 16, 3, padding=1),
    "strided, dilated, no bias": nn.Conv2d(5, 12, (3, 5), stride=2, padding=(2, 4), dilation=2, bias=False),
    "same, reflected": nn.Conv2d(4, 10, 3, padding="same", padding_mode="reflect"),
    "one channel": nn.Conv2d(1, 10, 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_all_filters_compute_the_same(name: str) -> None:
    conv, x = CONVOLUTIONS[name], torch.randn(2, CONVOLUTIONS[name].in_channels, 12, 12)
    multiplier = min(conv.out_channels, conv.weight[0, 0].numel())
    pair = separable(conv, multiplier)
    torch.testing.assert_close(pair(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_separable_is_the_closest(multiplier: int) -> None:
    conv = nn.Conv2d(6, 16, 3)
    pair = separable(conv, multiplier)
    error = (product_of_separable(pair, conv) - conv.weight.double()).square().sum((0, 2, 3))
    for channel in range(6):  # Eckart-Young: nothing of that rank is closer than the dropped singular values
        singular = torch.linalg.svdvals(conv.weight[:, channel].flatten(1).double())
        assert error[channel].item() == pytest.approx(singular[multiplier:].square().sum().item(), rel=1e-4)


def test_a_separable_convolution_is_found_again() -> None:
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(8, 3, 1, 1) * torch.randn(1, 3, 3, 3))
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(separable(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("N", "C", "k", "multiplier"), [(16, 8, 3, 1), (64, 4, 5, 2), (7, 3, 3, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_cost_is_the_formula(N: int, C: int, k: int, multiplier: int, stride: int) -> None:
    conv, x = nn.Conv2d(C, N, k, stride, k // 2), torch.randn(2, C, 11, 11)
    before, after = (count_multiply_adds(layer, x) for layer in (conv, separable(conv, multiplier)))
    assert after * N * k**2 == before * multiplier * (k**2 + N)  # a share of 1/N + 1/k^2, in integers


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_low_rank_is_the_closest(rank: int, kind: str) -> None:
    layer = nn.Linear(20, 9) if kind == "linear" else nn.Conv2d(4, 9, (3, 5), stride=2, padding=1)
    pair = low_rank(layer, rank=rank)
    rows = layer.weight.flatten(1).double()
    product = pair.up.weight.flatten(1).double() @ pair.down.weight.flatten(1).double()
    dropped = torch.linalg.svdvals(rows)[rank:].square().sum().sqrt()
    assert (product - rows).norm().item() == pytest.approx(dropped.item(), rel=1e-4, abs=1e-5)
    if rank == 9:
        x = torch.randn(2, 20) if kind == "linear" else torch.randn(2, 4, 10, 10)
        torch.testing.assert_close(pair(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 5])
def test_low_rank_cost_is_the_formula(rank: int) -> None:
    linear, conv = nn.Linear(20, 9), nn.Conv2d(4, 9, 3, stride=2, padding=1)
    assert count_multiply_adds(low_rank(linear, rank=rank), torch.randn(3, 20)) == 3 * rank * (9 + 20)
    positions = 2 * 5 * 5
    assert count_multiply_adds(low_rank(conv, rank=rank), torch.randn(2, 4, 10, 10)) == positions * rank * (9 + 36)


@pytest.mark.parametrize("error", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_error_target_takes_the_smallest_rank(error: float) -> None:
    layer = nn.Linear(24, 16)
    singular = torch.linalg.svdvals(layer.weight.double())
    errors = [(singular[rank:].norm() / singular.norm()).item() for rank in range(17)]
    expected = min(rank for rank in range(1, 17) if errors[rank] <= error)
    pair = low_rank(layer, error=error)
    assert pair.down.out_features == expected


def test_rank_of_a_weight_that_has_few() -> None:
    layer = nn.Linear(24, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 3) @ torch.randn(3, 24))
    assert low_rank(layer, error=1e-4).down.out_features == 3
    nn.init.zeros_(layer.weight)
    assert low_rank(layer, error=0.1).down.out_features == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_flags_and_the_layer_itself_stay(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 8, 3).to(dtype).eval()
    conv.weight.requires_grad_(False)
    before = conv.weight.clone()
    for pair in (separable(conv), low_rank(conv, rank=2)):
        assert {parameter.dtype for parameter in pair.parameters()} == {dtype}
        assert [p.requires_grad for p in pair.parameters()] == [False, False, True]
        assert not any(module.training for module in pair.modules())
        assert pair[1].bias is not conv.bias
        assert torch.equal(pair[1].bias, conv.bias)
        assert pair[1].bias.data_ptr() != conv.bias.data_ptr()
    assert torch.equal(conv.weight, before)


def test_pairs_are_trained() -> None:
    x = torch.randn(2, 4, 6, 6)
    for pair in (separable(nn.Conv2d(4, 8, 3)), low_rank(nn.Conv2d(4, 8, 3), rank=2)):
        pair(x).sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in pair.parameters())


def test_wrong_arguments() -> None:
    conv, linear = nn.Conv2d(4, 8, 3), nn.Linear(4, 8)
    for multiplier in (0, 9):
        with pytest.raises(ValueError, match=f"multiplier from 1 to 8, got {multiplier}"):
            separable(conv, multiplier)
    for settings, message in (
        ({}, "rank= or error=, got neither"),
        ({"rank": 1, "error": 0.1}, "got both"),
        ({"rank": 0}, "rank of at least 1, got 0"),
        ({"rank": 0.5}, "rank of at least 1, got 0.5"),
        ({"rank": 5}, r"rank of at most 4 for a weight \[8, 4\], got 5"),
        ({"error": 1.0}, r"error in \[0, 1\), got 1.0"),
        ({"error": math.nan}, r"error in \[0, 1\), got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            low_rank(linear, **settings)


def test_layers_that_are_not_taken() -> None:
    for layer in (nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, groups=2)):
        with pytest.raises(UnsupportedError, match=r"one group, larger than 1x1"):
            separable(layer)
    with pytest.raises(UnsupportedError, match=r"one group"):
        low_rank(nn.Conv2d(4, 8, 3, groups=2), rank=1)
    with pytest.raises(UnsupportedError, match=r"nn.Linear or nn.Conv2d, got Conv1d"):
        low_rank(nn.Conv1d(4, 8, 3), rank=1)
    conv = nn.Conv2d(4, 8, 3)
    nn.init.constant_(conv.weight, math.nan)
    for replace in (separable, lambda layer: low_rank(layer, rank=1)):
        with pytest.raises(FormatError, match=r"NaN or infinite in 288 of 288"):
            replace(conv)
