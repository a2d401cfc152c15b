"""The exact output: against plain loops, and what passes for a float32 or an int8 result."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsecore.bench.kernels.exact import check_output, exact_output, output_bounds
from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.libraries.quantized import UInt8Scale
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


def rounded(problem: Problem, levels: int) -> Problem:
    """Weights with that many levels on each side of zero and a scale per output, activations in 8 bits."""
    x_scale = UInt8Scale.of(problem.x)
    rows = problem.matrix
    steps = np.abs(rows).max(axis=1, keepdims=True).clip(1e-9) / levels
    weight = (np.rint(rows / steps) * steps).astype(np.float32).reshape(problem.weight.shape)
    x = x_scale.dequantize(x_scale.quantize(problem.x))
    return Problem(weight, problem.bias, x, problem.stride, problem.padding)


INT8_LAYERS = [Layer("", 64, 512, 16), Layer("", 48, 1024, 1), Layer("", 32, 64, 9, kernel=3, stride=2)]


@pytest.mark.parametrize("layer", INT8_LAYERS, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_int8_results_are_right_and_coarser_ones_wrong(layer: Layer, sparsity: float) -> None:
    problem = make_problem(layer, sparsity, "magnitude")
    exact, bounds = output_bounds(problem)
    for levels, is_right in ((127, True), (7, False)):
        found = exact_output(rounded(problem, levels))[0].float().numpy()
        assert check_output(found, exact, bounds["int8"])[1] == is_right
        assert not check_output(found, exact, bounds["float32"])[1]


@pytest.mark.parametrize("layer", INT8_LAYERS, ids=str)
def test_wrong_int8_results_are_wrong(layer: Layer) -> None:
    problem = make_problem(layer, 0.9, "magnitude")
    exact, bounds = output_bounds(problem)
    y = exact_output(rounded(problem, 127))[0]
    last_missing = y.clone()
    last_missing[:, -1] = 0
    for found in (0 * y, y / 2, 1.2 * y, -y, y.flip(1), last_missing, y + exact.abs().max() / 4):
        assert not check_output(found.float().numpy(), exact, bounds["int8"])[1]


def test_nan_and_other_shapes_are_wrong() -> None:
    exact, bound = torch.ones(2, 3).double(), torch.ones(2, 3).double()
    assert check_output(np.full((2, 3), np.nan, np.float32), exact, bound) == (math.inf, False)
    assert check_output(np.ones((3, 2), np.float32), exact, bound) == (math.inf, False)


def test_error_is_relative_to_the_largest() -> None:
    exact, bound = torch.tensor([[4.0, 1.0]]).double(), torch.full((1, 2), 0.5).double()
    assert check_output(np.array([[4.0, 2.0]], np.float32), exact, bound) == (0.25, False)
    assert check_output(np.array([[4.0, 1.5]], np.float32), exact, bound) == (0.125, True)
