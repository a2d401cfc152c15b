"""Problems: files, and a layer as one matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.kernels.weights import MASKS, is_for, make_problem, own_sparsity
from sparsecore.prune import fits_pattern

LINEAR = Layer("", 5, 7, 3)
POINTWISE = Layer("", 5, 7, 4, kernel=1, batch=3)
SPATIAL = Layer("", 5, 7, 4, kernel=3, stride=2)


@pytest.mark.parametrize("layer", [LINEAR, SPATIAL])
def test_a_file_gives_it_back(layer: Layer, tmp_path: Path) -> None:
    problem = make_problem(layer, 0.5, "random")
    problem.save(tmp_path / "problem.npz")
    loaded = Problem.load(tmp_path / "problem.npz")
    assert (loaded.stride, loaded.padding) == (layer.stride, layer.padding)
    for name in ("weight", "bias", "x"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(problem, name))


@pytest.mark.parametrize("layer", [LINEAR, POINTWISE])
def test_as_a_matrix_product(layer: Layer) -> None:
    problem = make_problem(layer, 0.5, "random")
    columns = problem.columns()
    assert columns.flags.c_contiguous
    assert columns.shape == (7, problem.num_columns) == (7, layer.columns)
    found = problem.from_columns(problem.matrix @ columns)
    expected = np.einsum("nc,bc...->bn...", problem.matrix, problem.x)
    assert found.shape == problem.output_shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_other_convolutions_are_no_product() -> None:
    problem = make_problem(SPATIAL, 0.5, "random")
    assert problem.output_shape == (1, 5, 2, 2)
    with pytest.raises(ValueError, match="1x1 convolution"):
        problem.columns()


@pytest.mark.parametrize("mask", ["magnitude", "random"])
@pytest.mark.parametrize("layer", [LINEAR, SPATIAL])
def test_masks_leave_as_many_as_asked_for(layer: Layer, mask: str) -> None:
    problem = make_problem(layer, 0.8, mask)
    assert np.count_nonzero(problem.weight) == problem.weight.size - round(0.8 * problem.weight.size)
    assert problem.weight.dtype == problem.bias.dtype == problem.x.dtype == np.float32


@pytest.mark.parametrize("mask", ["4x1", "8x1"])
def test_masks_of_blocks(mask: str) -> None:
    weight = torch.from_numpy(make_problem(Layer("", 16, 32, 3), 0.75, mask).weight)
    assert mask in MASKS
    assert fits_pattern(weight, mask)
    assert weight.count_nonzero() == weight.numel() // 4


@pytest.mark.parametrize(("mask", "sparsity"), [("8:16", 0.5), ("4:16", 0.75)])
@pytest.mark.parametrize("layer", [Layer("", 8, 32, 3), Layer("", 8, 16, 4, kernel=3)])
def test_masks_of_groups(mask: str, sparsity: float, layer: Layer) -> None:
    assert own_sparsity(mask) == sparsity
    assert is_for(layer, mask)
    weight = torch.from_numpy(make_problem(layer, sparsity, mask).weight)
    assert fits_pattern(weight, mask)
    assert weight.count_nonzero() == weight.numel() * (1 - sparsity)
    with pytest.raises(ValueError, match=f"pattern {mask} prunes"):
        make_problem(layer, 0.9, mask)


def test_masks_that_fit_no_layer_of_this_K() -> None:
    odd = Layer("", 8, 17, 3)
    assert [mask for mask in MASKS if not is_for(odd, mask)] == ["8:16", "4:16"]
    assert [mask for mask in MASKS if own_sparsity(mask) is not None] == ["8:16", "4:16"]


def test_the_same_numbers_at_every_sparsity_and_others_for_another_seed() -> None:
    sparse, dense, other = (make_problem(SPATIAL, s, "magnitude", seed) for s, seed in ((0.8, 0), (0, 0), (0, 1)))
    kept = sparse.weight != 0
    np.testing.assert_array_equal(sparse.weight[kept], dense.weight[kept])
    np.testing.assert_array_equal(sparse.x, dense.x)
    assert not np.array_equal(dense.weight, other.weight)


def test_magnitude_leaves_rows_and_inputs_unequally_full() -> None:
    layer = Layer("", 256, 256, 1)
    variances = {}
    for mask in ("magnitude", "random"):
        kept = make_problem(layer, 0.9, mask).weight != 0
        variances[mask] = [kept.sum(axis=axis).var() for axis in (0, 1)]
    # Random zeros leave a binomial count: variance 256 * 0.9 * 0.1 = 23.
    assert max(variances["random"]) < 40
    assert min(variances["magnitude"]) > 100
