"""Scales and zero points: the properties they are made for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecore.quantize.affine import (
    affine_range,
    is_valid_scale,
    quantize_symmetric,
    symmetric_scale,
)

BOUNDS = st.floats(-(2.0**127), 2.0**127, width=32)


@given(BOUNDS, BOUNDS)
def test_affine_range_covers_the_values_and_zero(a: float, b: float) -> None:
    low, high = sorted((a, b))
    scale, zero_point = affine_range(low, high)
    assert is_valid_scale(scale)
    assert torch.tensor(scale, dtype=torch.float32).item() == scale
    assert isinstance(zero_point, int)
    assert -128 <= zero_point <= 127
    # Zero is exact; the ends are within the rounding of the zero point, half a step.
    slack = scale * 0.5 * (1 + 1e-5)
    assert scale * (-128 - zero_point) <= min(low, 0) + slack
    assert scale * (127 - zero_point) >= max(high, 0) - slack


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.0, (1.0, 0)),
        (0.0, 255.0, (1.0, -128)),
        (-255.0, 0.0, (1.0, 127)),
        (-128.0, 127.0, (1.0, 0)),
        (51.0, 255.0, (1.0, -128)),  # widened to zero
    ],
)
def test_affine_range(low: float, high: float, expected: tuple[float, int]) -> None:
    assert affine_range(low, high) == expected


def test_symmetric() -> None:
    scale = symmetric_scale(torch.tensor([0.0, 127.0, 1e-45, 3e38]))
    assert scale[:2].tolist() == [1.0, 1.0]
    assert all(is_valid_scale(value) for value in scale.tolist())
    weight = torch.tensor([-127.0, -2.5, -0.5, -0.0, 0.5, 1.5, 2.5, 127.0])
    q = quantize_symmetric(weight, torch.tensor(1.0))
    assert q.tolist() == [-127, -2, 0, 0, 0, 2, 2, 127]  # half to even
    assert q.dtype == torch.int8
    assert quantize_symmetric(torch.tensor([-300.0, 300.0]), torch.tensor(1.0)).tolist() == [
        -127,
        127,
    ]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_scale(bad: float) -> None:
    assert not is_valid_scale(bad)
