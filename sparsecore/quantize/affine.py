"""Scale and zero-point arithmetic: real = scale * (q - zero_point), rounding half to even.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018, eq. 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHT_MAX = 127  # symmetric: -128 is never made, so that -q always exists
INPUT_MIN, INPUT_MAX = -128, 127

# The smallest normal float32. A smaller scale would lose its own precision, or be zero.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def symmetric_scale(absmax: Tensor) -> Tensor:
    """Return the scale that maps ``[-absmax, absmax]`` onto ``[-127, 127]``, 1 where absmax is 0.

    Args:
        absmax: any shape, float32, finite and not negative.

    Returns:
        Same shape, float32, positive.
    """
    scale = (absmax / WEIGHT_MAX).clamp_min(_SMALLEST_SCALE)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def quantize_symmetric(weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``weight / scale`` rounded half to even, int8 in [-127, 127]; zero stays zero.

    Args:
        weight: float32, finite.
        scale: float32, positive, broadcastable to ``weight``.
    """
    return (weight / scale).round().clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)


def affine_range(low: float, high: float) -> tuple[float, int]:
    """Return the (scale, zero_point) of per-tensor int8 activations in ``[low, high]``.

    The range is widened to hold zero, which gets an exact integer; scale is a float32 number.

    Example:
        >>> affine_range(0.0, 255.0)
        (1.0, -128)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, 0
    scale = max((high - low) / (INPUT_MAX - INPUT_MIN), _SMALLEST_SCALE)
    scale = torch.tensor(scale, dtype=torch.float32).item()
    zero_point = round(INPUT_MIN - low / scale)
    return scale, min(max(zero_point, INPUT_MIN), INPUT_MAX)


def is_valid_scale(scale: float) -> bool:
    """Whether a scale can be used: finite and positive."""
    return math.isfinite(scale) and scale > 0
