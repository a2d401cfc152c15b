"""BinaryConnect: one bit times a scale, gradients to the real weights, clipped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.quantize import clip_binary, fold_qat, prepare_binary, prepare_ternary


@pytest.mark.parametrize("scale", ["row", "layer", None])
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 2)])
def test_values_are_signs_times_a_scale(layer: nn.Module, scale: str | None) -> None:
    model = prepare_binary(nn.Sequential(copy.deepcopy(layer)), scale=scale)  # type: ignore[arg-type]
    weight = model[0].weight.detach()
    weight[0, 0] = 0
    rows = weight.clone().flatten(1).double()
    sign = torch.where(rows >= 0, 1.0, -1.0)
    expected = {"row": rows.abs().mean(1, keepdim=True), "layer": rows.abs().mean(), None: 1.0}[scale] * sign
    fold_qat(model)
    values = model[0].weight.flatten(1)
    torch.testing.assert_close(values.double(), expected.double(), rtol=1e-6, atol=0)
    magnitudes = values.abs()
    assert bool((magnitudes == magnitudes[:, :1]).all())
    if scale != "row":
        assert len(magnitudes.unique()) == 1


def test_gradient_goes_to_the_real_weight_as_it_is() -> None:
    model, x, g = prepare_binary(nn.Sequential(nn.Linear(6, 4))), torch.randn(5, 6), torch.randn(5, 4)
    model(x).backward(g)
    torch.testing.assert_close(model[0].weight.grad, g.T @ x)


def test_clipping_follows_every_step_until_removed() -> None:
    model = prepare_binary(nn.Sequential(nn.Linear(6, 4)))
    weight = model[0].weight
    weight.data[0] = 5.0
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    handle = clip_binary(model, optimizer)
    assert weight.detach().abs().max() == 1
    model(torch.randn(5, 6)).square().sum().backward()
    real = weight.detach() - 10 * weight.grad
    optimizer.step()
    assert torch.equal(weight, real.clamp(-1, 1))
    assert bool((real.abs() > 1).any())
    handle.remove()
    optimizer.step()
    assert weight.detach().abs().max() > 1


def test_stochastic_signs_have_the_probability_of_the_paper() -> None:
    model = nn.Sequential(nn.Linear(5, 20000, bias=False))
    probabilities = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    model[0].weight.data.copy_((probabilities * 2 - 1).expand(20000, 5) * torch.tensor([3, 1, 1, 1, 2.0]))
    prepare_binary(model, stochastic=True, scale=None, generator=torch.Generator().manual_seed(0))
    share = (model(torch.eye(5)).T > 0).double().mean(0)
    deviation = (probabilities * (1 - probabilities) / 20000).sqrt()
    assert bool(((share - probabilities).abs() <= 5 * deviation).all())
    assert torch.equal(model.eval()(torch.eye(5)).T, torch.where(model[0].weight >= 0, 1.0, -1.0))


def test_stochastic_signs_have_the_mean_of_the_clipped_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 20000, bias=False))
    model[0].weight.data.copy_(torch.tensor([0.4, 0.2, 0.0, -0.2]).expand(20000, 4))  # the scale is 0.2
    prepare_binary(model, stochastic=True, generator=torch.Generator().manual_seed(0))
    values = model(torch.eye(4)).T.detach()
    torch.testing.assert_close(values.abs(), torch.full_like(values, 0.2))
    expected = torch.tensor([0.2, 0.2, 0.0, -0.2])
    assert bool(((values.mean(0) - expected).abs() <= 5 * 0.2 / 20000**0.5).all())


def test_generators_repeat_and_can_be_resumed() -> None:
    def start() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16))
        return prepare_binary(model, stochastic=True, generator=torch.Generator().manual_seed(7))

    model, again, x = start(), start(), torch.randn(3, 16)
    first = model(x)
    assert torch.equal(again(x), first)
    state = model[0].simulation.generator.get_state()
    second = model(x)
    assert not torch.equal(second, first)
    again[0].simulation.generator.set_state(state)
    assert torch.equal(again(x), second)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"torch\.Generator or None, got int; .* torch\.Generator\(\)\.manual_seed"):
        prepare_binary(nn.Sequential(nn.Linear(2, 2)), generator=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='expected scale "row", "layer" or None'):
        prepare_binary(nn.Sequential(nn.Linear(2, 2)), scale="column")  # type: ignore[arg-type]
    other = prepare_ternary(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedError, match="no binary layers"):
        clip_binary(other, torch.optim.SGD(other.parameters()))
    model = prepare_binary(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="optimizer holds none"):
        clip_binary(model, torch.optim.SGD(other.parameters()))
