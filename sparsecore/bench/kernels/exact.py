"""The exact output that candidates are held to, and how far a float32 result may be from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sparsecore.bench.kernels.problem import Problem

UNIT = 2.0**-24  # float32 rounds by at most this share
# Winograd convolutions and sums in blocks round more often than the terms of a row; a 16-bit type is still far off.
EXTRA_ROUNDINGS = 64


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


def check_output(found: NDArray[Any], exact: Tensor, bound: Tensor) -> tuple[float, bool]:
    """Compare an output with the exact one.

    Args:
        found: What a candidate computed.
        exact: From `exact_output`, like ``bound``.
        bound: How far each element may be off.

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
