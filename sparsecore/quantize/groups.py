"""Symmetric quantization with a scale for each row and group of columns.

Reference: Dettmers and Zettlemoyer, The case for 4-bit precision: k-bit inference scaling laws, ICML 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.quantize.affine import quantize_symmetric, symmetric_scale

# Columns of a group: a byte shuffle looks up 16 at once, and kernels hold the sum of a group's integers in 16 bits
# (kMaxGroupCols in csrc's views.h).
GROUP_STEP, MAX_GROUP_SIZE = 16, 2048
# Of 128 columns 13 are not zero at 90%: a scale for them would take a quarter of the bytes.
GROUP_SIZE = 256
#: How a group's scale is chosen.
GROUP_SCALES = ("minmax", "mse")
# Shares of absmax that are tried. A group of normal numbers has its least error at 4 bits from 0.7 on.
_SHARES = tuple(1 - step / 16 for step in range(9))
_CHUNK = 2**22  # numbers at once, so that memory does not grow with the weight


def check_group_size(group_size: object) -> int:
    """Return columns of a group, checked.

    Raises:
        FormatError: it is not a multiple of 16, or above 2048.
    """
    if type(group_size) is not int or group_size % GROUP_STEP or not 0 < group_size <= MAX_GROUP_SIZE:
        raise FormatError(
            f"expected a group_size that is a multiple of {GROUP_STEP}, at most {MAX_GROUP_SIZE}, got {group_size!r}"
        )
    return group_size


def num_groups(columns: int, group_size: int) -> int:
    """Groups of a row; the last one may be smaller."""
    return -(-columns // group_size)


def quantize_groups(matrix: Tensor, group_size: int, *, bits: int = 4, scales: str = "minmax") -> tuple[Tensor, Tensor]:
    """Quantize each row's groups of columns to integers of -7 to 7 (of 4 bits); zero stays zero.

    Args:
        matrix: ``[N, K]`` float32, finite.
        group_size: columns of a group.
        bits: of the integers.
        scales: ``"minmax"`` takes absmax / 7; ``"mse"`` of 9 shares of it, from all to half, the one with the
            least squared error.

    Returns:
        The integers ``[N, K]`` int8, and the scales ``[N, ceil(K / group_size)]`` float32; 1 for a group of zeros.

    Raises:
        ValueError: there are no such scales.

    Example:
        >>> q, scale = quantize_groups(torch.tensor([[7.0, -2.0, 0.5]]), 2)
        >>> q.tolist(), scale.tolist()
        ([[7, -2, 7]], [[1.0, 0.0714285746216774]])
    """
    if scales not in GROUP_SCALES:
        raise ValueError(f"expected scales of {', '.join(GROUP_SCALES)}, got {scales!r}")
    columns = matrix.shape[1]
    padded = torch.nn.functional.pad(matrix, (0, -columns % group_size))
    groups = padded.view(len(matrix), num_groups(columns, group_size), group_size)
    rows = max(_CHUNK // max(padded.shape[1], 1), 1)
    parts = [_scales_of(part, bits, scales) for part in groups.split(rows)]
    scale = torch.cat(parts) if parts else groups.new_ones(groups.shape[:2])
    q = quantize_symmetric(groups, scale[:, :, None], bits).flatten(1)[:, :columns]
    return q.contiguous(), scale


def dequantize_groups(q: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Return the float32 matrix ``[N, K]`` that integers and scales of groups stand for."""
    return q.float() * scale.repeat_interleave(group_size, 1)[:, : q.shape[1]]


def _scales_of(groups: Tensor, bits: int, scales: str) -> Tensor:
    """``[N, groups]`` for ``[N, groups, columns]``."""
    absmax = groups.abs().amax(2) if groups.shape[2] else groups.new_zeros(groups.shape[:2])
    best = symmetric_scale(absmax, bits)
    if scales == "minmax":
        return best
    least = torch.full_like(best, torch.inf, dtype=torch.float64)
    for share in _SHARES:
        scale = symmetric_scale(absmax * share, bits)
        rounded = quantize_symmetric(groups, scale[:, :, None], bits) * scale[:, :, None]
        error = (rounded - groups).double().square_().sum(2)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
