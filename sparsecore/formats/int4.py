"""Rounding to 4 bits: values of -7 .. 7 times the scale of their group, so that zeros stay zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecore.errors import FormatError

INT4_MAX = 7


def int4_scales(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scales of groups of values: a seventh of the largest, rounded toward zero.

    The largest value of a group is then 7 times its scale, so that rounded values, rounded again, stay what they are.

    Args:
        largest: float32, the largest absolute value of each group.
        dtype: of the scales, float16 or bfloat16.

    Returns:
        Scales of that dtype and of the shape of ``largest``.

    Raises:
        FormatError: a value is NaN or infinite, or larger than seven times what a scale can be.

    Example:
        >>> int4_scales(torch.tensor([7.0, 0.0]), torch.float16).tolist()
        [1.0, 0.0]
    """
    scales = (largest / INT4_MAX).to(dtype)
    if not bool(torch.isfinite(scales).all()):
        most = INT4_MAX * torch.finfo(dtype).max
        raise FormatError(f"expected finite values below {most:.3g} to round to 4 bits; repair or scale the weight")
    is_above = scales.float() * INT4_MAX > largest
    return (scales.view(torch.int16) - is_above.to(torch.int16)).view(dtype)  # bits of positive floats are in order


def round_to_int4(values: Tensor, scales: Tensor) -> Tensor:
    """Return the nearest of -7 .. 7 for values over their scales, int8; 0 where a scale is 0.

    Args:
        values: float32.
        scales: of ``int4_scales()``, one for each value.
    """
    divisor = torch.where(scales == 0, 1.0, scales.float())
    return (values / divisor).round().clamp(-INT4_MAX, INT4_MAX).to(torch.int8)
