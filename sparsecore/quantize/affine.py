"""Scale and zero-point arithmetic: real = scale * (q - zero_point), rounding half to even.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018, eq. 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INPUT_MIN, INPUT_MAX = -128, 127

# The smallest normal float32. A smaller scale would lose its own precision, or be zero.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def symmetric_max(bits: int) -> int:
    """Return the largest integer of symmetric quantization: 127 of 8 bits, 7 of 4, so that -q always exists."""
    return 2 ** (bits - 1) - 1


def row_absmax(matrix: Tensor) -> Tensor:
    """Return the largest magnitude of each row of ``[N, K]``: ``[N]``, 0 where K is 0."""
    return matrix.abs().amax(1) if matrix.shape[1] else matrix.new_zeros(matrix.shape[0])


def symmetric_scale(absmax: Tensor, bits: int = 8) -> Tensor:
    """Return the scale that maps ``[-absmax, absmax]`` onto ``[-127, 127]``, 1 where absmax is 0.

    Args:
        absmax: any shape, float32, finite and not negative.
        bits: of the integers; with 4 they end at 7.

    Returns:
        Same shape, float32, positive.
    """
    scale = (absmax / symmetric_max(bits)).clamp_min(_SMALLEST_SCALE)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def quantize_symmetric(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Return ``weight / scale`` rounded half to even, int8 in [-127, 127]; zero stays zero.

    Args:
        weight: float32, finite.
        scale: float32, positive, broadcastable to ``weight``.
        bits: of the integers; with 4 they end at 7.
    """
    largest = symmetric_max(bits)
    return (weight / scale).round().clamp(-largest, largest).to(torch.int8)


def affine_limits(bits: int = 8) -> tuple[int, int]:
    """Return the smallest and the largest integer of affine quantization: -128 and 127 of 8 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def affine_parameters(low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Return the (scale, zero_point) of per-tensor activations in ``[low, high]``, as tensors.

    The range is widened to hold zero, which gets an exact integer.

    Args:
        low: scalar, any floating-point type.
        high: scalar, of the same type.
        bits: of the integers.

    Returns:
        Scalars: float32, and an integer in float32.
    """
    least, largest = affine_limits(bits)
    low, high = low.double().clamp_max(0), high.double().clamp_min(0)
    scale = ((high - low) / (largest - least)).clamp_min(_SMALLEST_SCALE).float()
    zero_point = (least - low / scale.double()).round().clamp(least, largest).float()
    is_zero = low == high
    return torch.where(is_zero, 1.0, scale), torch.where(is_zero, 0.0, zero_point)


def affine_range(low: float, high: float) -> tuple[float, int]:
    """Return the (scale, zero_point) of per-tensor int8 activations in ``[low, high]``.

    The range is widened to hold zero, which gets an exact integer; scale is a float32 number.

    Example:
        >>> affine_range(0.0, 255.0)
        (1.0, -128)
    """
    bounds = torch.tensor([low, high], dtype=torch.float64)
    scale, zero_point = affine_parameters(bounds[0], bounds[1])
    return scale.item(), int(zero_point.item())


def is_valid_scale(scale: float) -> bool:
    """Whether a scale can be used: finite and positive."""
    return math.isfinite(scale) and scale > 0
