"""Observers against sorting, and against searching every range, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsecore.quantize.affine import affine_range
from sparsecore.quantize.observers import (
    BINS,
    OBSERVERS,
    Histogram,
    MeanSquaredError,
    MinMax,
    Percentile,
    observer_factory,
)


def gaussian_with_outliers() -> Tensor:
    return torch.cat([torch.randn(20_000), torch.tensor([30.0, -45.0, 28.0])])


SAMPLES = {
    "gaussian": lambda: torch.randn(20_000),
    "outliers": gaussian_with_outliers,
    "relu": lambda: torch.relu(gaussian_with_outliers()),
    "negative": lambda: -(torch.rand(5_000) ** 2),
    "laplace": lambda: torch.distributions.Laplace(0.5, 1.0).sample((20_000,)),
    "few": lambda: torch.randn(7),
    "tiny": lambda: 1e-42 * torch.randn(1_000),
    "huge": lambda: 1e37 * torch.randn(1_000),
}


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest) -> Tensor:
    return SAMPLES[request.param]()


def observed(observer: Any, x: Tensor, sizes: int = 1000) -> Any:
    for part in x.split(sizes):
        observer.update(part)
    return observer


def test_histogram_counts_every_value(sample: Tensor) -> None:
    histogram = observed(Histogram(), sample, 700)
    exact = np.floor(sample[sample != 0].double().numpy() / histogram.width).astype(np.int64) + BINS
    assert np.array_equal(histogram.counts.numpy(), np.bincount(exact, minlength=2 * BINS))
    assert histogram.num_zeros == int((sample == 0).sum())
    # At least half of the bins on the longer side are used.
    assert BINS / 2 <= float(sample.abs().max()) / histogram.width < BINS


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.randoms())
def test_histogram_knows_no_order(values: list[float], random: Any) -> None:
    x = torch.tensor(values)
    random.shuffle(values)
    one, other = observed(Histogram(), x, 3), observed(Histogram(), torch.tensor(values), 2)
    assert torch.equal(one.counts, other.counts)
    assert (one.num_zeros, one.low, one.high) == (other.num_zeros, other.low, other.high)
    assert one.num_zeros + int(one.counts.sum()) == len(values)


@pytest.mark.parametrize("percent", [60.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_that_of_numpy_within_a_bin(sample: Tensor, percent: float) -> None:
    observer = observed(Percentile(percent), sample)
    low, high = observer.range()
    exact = np.percentile(sample.double().numpy(), [100 - percent, percent])
    assert low == pytest.approx(exact[0], rel=1e-12, abs=observer.width)
    assert high == pytest.approx(exact[1], rel=1e-12, abs=observer.width)
    assert observer.low <= low <= high <= observer.high


def test_percentile_of_everything_is_the_range_seen(sample: Tensor) -> None:
    assert observed(Percentile(100), sample).range() == observed(MinMax(), sample).range()


def expected_error(x: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Of affine int8 over all low and high: clipping, and step^2 / 12 of all values that are not zero."""
    clipped = sum(np.maximum(value - high, 0) ** 2 + np.maximum(low - value, 0) ** 2 for value in x)
    return np.asarray(clipped + len(x) * (high - low) ** 2 / (12 * 255**2))


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_the_best_of_all_ranges_within_a_bin(name: str) -> None:
    # Scaled to one, for squares of tiny and huge values leave float64's range.
    x = SAMPLES[name]()[-1500:]
    x = x / x.abs().max()
    observer = observed(MeanSquaredError(), x)
    found = observer.range()
    values = x[x != 0].double().numpy()

    # Each end is the best on a grid ten times finer than the bins, and no step in both at once is better.
    grid = np.arange(-20, 21) * observer.width / 10
    low_grid = np.clip(found[0] + 2 * grid, min(values.min(), 0), 0)[:, None]
    high_grid = np.clip(found[1] + 2 * grid, 0, max(values.max(), 0))[None, :]
    errors = expected_error(values, low_grid, high_grid)
    best = np.unravel_index(errors.argmin(), errors.shape)
    assert abs(low_grid[best[0], 0] - found[0]) <= observer.width
    assert abs(high_grid[0, best[1]] - found[1]) <= observer.width
    # The error is convex, so what is best around is best everywhere; a coarse search agrees.
    everywhere = expected_error(
        values, np.linspace(min(values.min(), 0), 0, 40)[:, None], np.linspace(0, max(values.max(), 0), 40)[None, :]
    )
    assert errors.min() <= everywhere.min() * (1 + 1e-9)


def quantization_error(x: Tensor, low: float, high: float) -> float:
    scale, zero_point = affine_range(low, high)
    q = (x.double() / scale).round().add(zero_point).clamp(-128, 127)
    return float(((q - zero_point) * scale - x).square().mean())


@pytest.mark.parametrize("name", ["gaussian", "outliers", "relu", "laplace"])
def test_mse_beats_every_other_range_in_practice(name: str) -> None:
    x = SAMPLES[name]()
    found = quantization_error(x, *observed(MeanSquaredError(), x).range())
    shares = np.linspace(0.02, 1, 40)
    brute = min(
        quantization_error(x, float(x.min()) * low, float(x.max()) * high)
        for low in (shares if float(x.min()) < 0 else [1.0])
        for high in shares
    )
    assert found <= brute * 1.02
    assert found < quantization_error(x, float(x.min()), float(x.max()))


@pytest.mark.parametrize("name", OBSERVERS)
def test_special_values(name: str) -> None:
    make = observer_factory(name)
    assert make().range() is None
    assert observed(make(), torch.ones(0)).range() is None
    assert observed(make(), torch.zeros(5)).range() == (0.0, 0.0)
    low, high = observed(make(), torch.full((9,), 4.0)).range()
    assert low in (0.0, 4.0)
    assert high == pytest.approx(4.0, rel=1e-3)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        low, high = observed(make(), torch.tensor([-1.0, 0.0, 2.0], dtype=dtype)).range()
        assert -1 <= low <= high <= 2
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=r"finite activations, got NaN or infinity; check"):
            make().update(torch.tensor([1.0, bad, 2.0]))


@pytest.mark.parametrize("percent", [50.0, 0.999, 100.1, float("nan")])
def test_percentile_out_of_range(percent: float) -> None:
    with pytest.raises(ValueError, match="above 50 and at most 100"):
        Percentile(percent)


def test_factory() -> None:
    made = observer_factory(Percentile(99.0))()
    assert isinstance(made, Percentile)
    assert made.percent == 99.0
    assert isinstance(observer_factory(MeanSquaredError)(), MeanSquaredError)
    for bad in ("mean", 99.9, None):
        with pytest.raises(ValueError, match=r"minmax, percentile, mse.*Percentile\(99.9\)"):
            observer_factory(bad)  # type: ignore[arg-type]
