"""k-means of numbers against Lloyd's algorithm written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecore.quantize.kmeans import INITS, kmeans


def lloyd(values: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in every step; a value halfway between two centroids belongs to the lower one."""
    while True:
        codes = (values[:, None] > (centroids[:-1] + centroids[1:])[None] / 2).sum(1)
        moved = np.array(
            [values[codes == c].mean() if (codes == c).any() else centroids[c] for c in range(len(centroids))]
        )
        if np.array_equal(moved, centroids):
            used, codes = np.unique(codes, return_inverse=True)
            return centroids[used], codes
        centroids = moved


# Sums of such numbers are exact in float64, so both find the same means to the bit.
NUMBERS = st.lists(st.integers(-20, 20).map(lambda i: i / 8), min_size=1, max_size=60)


@given(NUMBERS, st.integers(1, 9))
def test_equals_lloyd_from_linear_centroids(numbers: list[float], k: int) -> None:
    values = np.array(numbers)
    centroids, codes = kmeans(torch.tensor(numbers, dtype=torch.float64), k)
    distinct = np.unique(values)
    # Ties depend on the last bit of the start, where NumPy's linspace differs.
    start = distinct
    if len(distinct) > k:
        start = torch.linspace(values.min(), values.max(), k, dtype=torch.float64).numpy()
        np.testing.assert_allclose(start, np.linspace(values.min(), values.max(), k), atol=1e-15)
    expected, expected_codes = lloyd(values, start)
    np.testing.assert_array_equal(centroids, expected)
    np.testing.assert_array_equal(codes, expected_codes)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_where_nothing_moves(init: str, dtype: torch.dtype) -> None:
    values = torch.randn(5000).to(dtype)
    centroids, codes = kmeans(values, 16, init, torch.Generator().manual_seed(1))
    assert 1 < len(centroids) <= 16
    moved, nearest = lloyd(values.double().numpy(), centroids.numpy())
    np.testing.assert_allclose(moved, centroids, rtol=1e-12)
    np.testing.assert_array_equal(nearest, codes)


def test_generator_and_errors() -> None:
    values = torch.randn(5000)
    first, second = (kmeans(values, 8, "random", torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], kmeans(values, 8, "random", torch.Generator().manual_seed(4))[0])
    with pytest.raises(ValueError, match="expected an init of"):
        kmeans(values, 8, "kmeans++")


def test_few_values_are_kept_exactly() -> None:
    values = torch.tensor([0.1, -0.2, 0.1, 3.0])
    centroids, codes = kmeans(values, 4)
    assert torch.equal(centroids[codes].float(), values)
