"""Fake quantization: the integers of the int8 layers, and straight-through gradients."""

from __future__ import annotations

import pytest
import torch
from int8_oracle import quantized

from sparsecore import Int8Weight
from sparsecore.quantize.affine import affine_range
from sparsecore.quantize.fake import fake_dynamic, fake_static, fake_weight, straight_through

SHAPES = [(5, 7), (4, 3, 2, 2), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_int8_layers(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * (torch.rand(shape) < 0.5)
    integers, scale = fake_weight(weight)
    stored = Int8Weight.from_dense(weight)
    assert torch.equal(integers.flatten(1), stored.q.float())
    assert torch.equal(scale.flatten(), stored.scale)


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (4, 7), (8, 127)])
def test_weights_of_few_bits(bits: int, largest: int) -> None:
    weight = torch.randn(6, 50)
    weight[:, ::3] = 0
    weight[2] = 0
    integers, scale = (part.double() for part in fake_weight(weight, bits))
    assert torch.equal(integers, integers.round())
    assert integers.abs().amax(1).tolist() == [0 if row == 2 else largest for row in range(6)]
    assert bool((integers[weight == 0] == 0).all())
    assert bool(((integers * scale - weight.double()).abs() <= scale / 2 * (1 + 1e-6)).all())


def test_every_weight_gets_a_gradient() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    integers, scale = fake_weight(weight)
    (integers * scale).backward(g := torch.randn(3, 8))
    torch.testing.assert_close(weight.grad, g, rtol=1e-6, atol=0)  # also the largest of each row


@pytest.mark.parametrize(("low", "high"), [(-1.5, 2.5), (0.0, 3.0), (-2.0, -0.5), (0.0, 0.0)])
def test_static_integers_are_those_of_the_kernels(low: float, high: float) -> None:
    x = torch.randn(4, 300) * 2
    scale, zero_point = affine_range(low, high)
    expected, _ = quantized(x, scale, zero_point)
    integers, found_scale = fake_static(x, torch.tensor(low), torch.tensor(high))
    assert found_scale.item() == scale
    assert torch.equal(integers.double(), expected)
    assert fake_static(torch.zeros(1), torch.tensor(low), torch.tensor(high))[0].item() == 0


def test_static_rounds_half_to_even_and_stops_the_gradient_outside() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 127.0, 127.6, -128.0, -300.0], requires_grad=True)
    integers, scale = fake_static(x, torch.tensor(-128.0), torch.tensor(127.0))
    assert scale.item() == 1.0
    assert integers.tolist() == [0, 2, 2, 0, 127, 127, -128, -128]
    integers.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 1, 1, 0, 1, 0]


def test_static_of_4_bits_has_16_levels() -> None:
    integers, _ = fake_static(torch.linspace(-3, 3, 1000), torch.tensor(-1.0), torch.tensor(2.0), bits=4)
    assert integers.unique().tolist() == list(range(-5, 11))


@pytest.mark.parametrize("dims", [(-1,), (-3, -2, -1)])
def test_dynamic_integers_are_those_of_the_kernels(dims: tuple[int, ...]) -> None:
    x = torch.randn(3, 2, 4, 5)
    x[1] = 0
    x.requires_grad_()
    rows = x.detach().flatten(0, -len(dims) - 1)
    expected, expected_scale = quantized(rows)
    integers, scale = fake_dynamic(x, dims)
    assert torch.equal(integers.double().view(rows.shape), expected)
    assert torch.equal(scale.flatten(), expected_scale)
    (integers * scale).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=1e-6, atol=0)


def test_straight_through_is_exact() -> None:
    x = (torch.randn(1000) * 1e-3).requires_grad_()
    value = torch.randn(1000) * 1e6
    y = straight_through(value, x)
    assert torch.equal(y, value)
    y.backward(g := torch.randn(1000))
    assert torch.equal(x.grad, g)
