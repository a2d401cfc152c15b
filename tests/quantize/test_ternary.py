"""Ternary weights: thresholds, scales and gradients of TWN and TTQ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.prune import prune
from sparsecore.quantize import fold_qat, prepare_ternary


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_twn_values(threshold: float | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    real = model[0].weight.detach().double().clone()
    prepare_ternary(model, threshold=threshold)
    kept = real.abs() > (0.7 if threshold is None else threshold) * real.abs().mean()
    expected = real.sign() * kept * real[kept].abs().mean()
    fold_qat(model)
    torch.testing.assert_close(model[0].weight.double(), expected, rtol=1e-6, atol=0)
    values = model[0].weight.unique()
    assert len(values) == 3
    assert values[0] == -values[2]
    assert values[1] == 0


def test_twn_gradient_goes_to_the_real_weight_as_it_is() -> None:
    model, x, g = prepare_ternary(nn.Sequential(nn.Linear(6, 4))), torch.randn(5, 6), torch.randn(5, 4)
    model(x).backward(g)
    torch.testing.assert_close(model[0].weight.grad, g.T @ x)


def test_ttq_values_and_gradients() -> None:
    layer = nn.Linear(30, 4)
    model = prepare_ternary(nn.Sequential(layer), method="ttq", threshold=0.3)
    simulation, weight = model[0].simulation, model[0].weight
    real = weight.detach().double().clone()
    is_positive, is_negative = (sign * real > 0.3 * real.abs().max() for sign in (1, -1))
    torch.testing.assert_close(simulation.positive.double(), real[is_positive].mean())
    torch.testing.assert_close(simulation.negative.double(), -real[is_negative].mean())
    simulation.positive.data.fill_(0.5)
    simulation.negative.data.fill_(0.25)
    x, g = torch.randn(5, 30), torch.randn(5, 4)
    model(x).backward(g)
    of_values = (g.T @ x).double()  # the gradient of the ternary weights
    torch.testing.assert_close(simulation.positive.grad.double(), of_values[is_positive].sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(simulation.negative.grad.double(), -of_values[is_negative].sum(), rtol=1e-4, atol=1e-5)
    factor = torch.where(is_positive, 0.5, torch.where(is_negative, 0.25, 1.0))
    torch.testing.assert_close(weight.grad.double(), of_values * factor)
    assert "0.simulation.positive" in dict(model.named_parameters())
    fold_qat(model)
    assert torch.equal(model[0].weight, 0.5 * is_positive.float() - 0.25 * is_negative.float())
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("method", ["twn", "ttq"])
def test_masked_entries_stay_zero(method: str) -> None:
    model = nn.Sequential(nn.Linear(40, 8))
    masks = prune(model, 0.8)
    prepare_ternary(model, method=method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masks.attach(optimizer)
    for _ in range(3):
        model(torch.randn(4, 40)).square().sum().backward()
        optimizer.step()
    fold_qat(model)
    assert bool((model[0].weight[~masks["0.weight"]] == 0).all())
    assert len(model[0].weight.unique()) <= 3
    assert int((model[0].weight != 0).sum()) > 0


@pytest.mark.parametrize("method", ["twn", "ttq"])
def test_a_layer_of_zeros_stays_zero(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight.data.zero_()
    prepare_ternary(model, method=method)
    model(torch.ones(1, 4)).sum().backward()
    assert not fold_qat(model)[0].weight.any()


def test_bad_arguments() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"expected a method of \['ttq', 'twn'\]"):
        prepare_ternary(model, method="binary")
    for method, threshold in (("twn", -0.1), ("ttq", 1.0), ("twn", float("nan"))):
        with pytest.raises(ValueError, match="expected a threshold"):
            prepare_ternary(model, method=method, threshold=threshold)
    assert type(model[0]) is nn.Linear


def test_trained_values_of_a_shared_weight_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedError, match="0 and 1 share a weight"):
        prepare_ternary(model, method="ttq")
    assert type(model[0]) is nn.Linear
    x = torch.randn(3, 4)
    expected = prepare_ternary(model, method="twn").eval()(x)
    assert torch.equal(fold_qat(model)(x), expected)
