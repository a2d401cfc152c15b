"""The exact output: against plain loops, and what passes for a float32 result."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsecore.bench.kernels.exact import check_output, exact_output
from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.kernels.weights import make_problem

SPATIAL = Layer("", 4, 3, 5, kernel=3, stride=2, batch=2)


def loops(problem: Problem) -> NDArray[np.float64]:
    """The layer as its definition says, in float64."""
    if not problem.is_conv:
        return problem.x.astype(np.float64) @ problem.weight.astype(np.float64).T + problem.bias
    pad, kernel, y = problem.padding, problem.weight.shape[2], np.zeros(problem.output_shape)
    x = np.pad(problem.x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for b, n, i, j in itertools.product(*map(range, y.shape)):
        top, left = i * problem.stride, j * problem.stride
        y[b, n, i, j] = (x[b, :, top : top + kernel, left : left + kernel] * problem.weight[n]).sum() + problem.bias[n]
    return y


@pytest.mark.parametrize("layer", [Layer("", 6, 9, 4), SPATIAL])
def test_exact_output(layer: Layer) -> None:
    problem = make_problem(layer, 0.5, "random")
    exact, bound = exact_output(problem)
    np.testing.assert_allclose(exact.numpy(), loops(problem), rtol=1e-12, atol=1e-14)
    error, is_within = check_output(exact.float().numpy(), exact, bound)
    assert is_within
    assert error < 1e-7


@pytest.mark.parametrize("layer", [Layer("", 64, 512, 16), Layer("", 32, 64, 9, kernel=3)])
@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_sixteen_bit_results_are_wrong(layer: Layer, sparsity: float) -> None:
    problem = make_problem(layer, sparsity, "random")
    exact, bound = exact_output(problem)
    narrow = Problem(
        torch.from_numpy(problem.weight).bfloat16().float().numpy(),
        problem.bias,
        torch.from_numpy(problem.x).bfloat16().float().numpy(),
        problem.stride,
        problem.padding,
    )
    found, _ = exact_output(narrow)
    error, is_within = check_output(found.float().numpy(), exact, bound)
    assert not is_within
    assert 1e-4 < error < 1e-1


def test_nan_and_other_shapes_are_wrong() -> None:
    exact, bound = torch.ones(2, 3).double(), torch.ones(2, 3).double()
    assert check_output(np.full((2, 3), np.nan, np.float32), exact, bound) == (math.inf, False)
    assert check_output(np.ones((3, 2), np.float32), exact, bound) == (math.inf, False)


def test_error_is_relative_to_the_largest() -> None:
    exact, bound = torch.tensor([[4.0, 1.0]]).double(), torch.full((1, 2), 0.5).double()
    assert check_output(np.array([[4.0, 2.0]], np.float32), exact, bound) == (0.25, False)
    assert check_output(np.array([[4.0, 1.5]], np.float32), exact, bound) == (0.125, True)
