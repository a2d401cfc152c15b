"""The exact output that candidates are held to, and how far float32 and int8 results may be from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import FLOAT32, INT8
from sparsecore.bench.peers.vnni import weight_levels

UNIT = 2.0**-24  # float32 rounds by at most this share
# Winograd convolutions and sums in blocks round more often than the terms of a row; a 16-bit type is still far off.
EXTRA_ROUNDINGS = 64
# Of int8, in half steps of independent roundings: fewer than one right output in 10^13 is further off.
DEVIATIONS = 8
ACTIVATION_LEVELS = 127  # of symmetric scales; asymmetric ones have smaller steps


def exact_output(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute the output in float64, and how far a float32 result may be from it.

    The bound is gamma(n + 64) * sum |x| |w| with the n entries of the row that are not zero, and of the sums over
    all pixels or rows of x the largest, because Winograd convolutions spread errors over pixels.

    Returns:
        The output and the bound, ``problem.output_shape``, float64.
    """
    weight, bias, x = (torch.from_numpy(array).double() for array in (problem.weight, problem.bias, problem.x))
    exact = _layer(problem, x, weight, bias)
    magnitude = _layer(problem, x.abs(), weight.abs(), bias.abs())
    largest = magnitude.amax(dim=[dim for dim in range(magnitude.dim()) if dim != 1], keepdim=True)
    roundings = (weight.flatten(1).count_nonzero(1) + EXTRA_ROUNDINGS).double() * UNIT
    gamma = roundings / (1 - roundings)
    bound = gamma.reshape(1, -1, *[1] * (exact.dim() - 2)) * largest
    return exact, bound.expand_as(exact)


def int8_bound(problem: Problem, exact: Tensor) -> Tensor:
    """How far an int8 result may be from the exact output, float32's own bound not included.

    Weights have a scale per output, activations and 8-bit outputs one scale or finer ones. Rounding a weight or an
    activation is wrong by at most half a step, and the terms of a row are rounded one by one: their sum is held to
    ``DEVIATIONS`` times the root of the sum of squares, where adding them up would let zeros pass. The bias and the
    output may be off by a step of theirs.

    Returns:
        ``problem.output_shape``, float64.

    Reference:
        Hoeffding, Probability Inequalities for Sums of Bounded Random Variables, JASA 1963, theorem 2.
    """
    weight, x = (torch.from_numpy(array).double() for array in (problem.weight, problem.x))
    no_bias = weight.new_zeros(len(weight))
    x_step = x.abs().max() / ACTIVATION_LEVELS
    row_steps = weight.abs().flatten(1).amax(1) / weight_levels()
    steps = row_steps.reshape(-1, *[1] * (exact.dim() - 2))
    of_weight = _layer(problem, x.square(), weight.ne(0).double(), no_bias) * (steps / 2).square()
    of_x = _layer(problem, torch.ones_like(x), weight.square(), no_bias) * (x_step / 2).square()
    return DEVIATIONS * (of_weight + of_x).sqrt() + x_step * steps + exact.abs().max() / ACTIVATION_LEVELS


def output_bounds(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact output, and how far a result of each numeric type may be from it; of 4-bit weights any distance."""
    exact, bound = exact_output(problem)
    return exact, {FLOAT32: bound, INT8: bound + int8_bound(problem, exact)}


def check_output(found: NDArray[Any], exact: Tensor, bound: Tensor | float) -> tuple[float, bool]:
    """Compare an output with the exact one.

    Args:
        found: What a candidate computed.
        exact: From `exact_output`, like ``bound``.
        bound: How far each element may be off; infinity if any distance will do.

    Returns:
        The largest error over the largest exact value, and whether every element is within its bound. An output of
        another shape, or with a NaN, is infinitely wrong.
    """
    if found.shape != tuple(exact.shape):
        return math.inf, False
    error = (torch.from_numpy(np.ascontiguousarray(found)).double() - exact).abs()
    if not bool(error.isfinite().all()):
        return math.inf, False
    largest = float(exact.abs().max())
    return float(error.max()) / (largest or 1.0), bool((error <= bound).all())


def _layer(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if problem.is_conv:
        return F.conv2d(x, weight, bias, problem.stride, problem.padding)
    return F.linear(x, weight, bias)
