"""The scales of int8 layers: of activations, of outputs, of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.quantize.affine import INPUT_MAX, INPUT_MIN, is_valid_scale


def check_channel_scale(scale: object, channels: int) -> None:
    """Raise ValueError unless it is a positive finite float32 number per channel, whose inverse is so too."""
    if (
        not isinstance(scale, Tensor)
        or scale.dtype != torch.float32
        or scale.shape != (channels,)
        or not bool((scale > 0).all() & scale.isfinite().all() & scale.reciprocal().isfinite().all())
    ):
        got = f"{scale.dtype} {list(scale.shape)}" if isinstance(scale, Tensor) else type(scale).__name__
        raise ValueError(f"expected x_channel_scale as {channels} positive finite float32 numbers, got {got}")


def times_channels(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight ``[N, C / groups, ...]`` times a number per input channel."""
    groups = scale.numel() // max(weight.shape[1], 1)
    if weight.numel() == 0:
        return weight
    parts = weight.view(groups, -1, *weight.shape[1:])
    shape = (groups, 1, weight.shape[1], *(1 for _ in weight.shape[2:]))
    return (parts * scale.view(shape)).view(weight.shape)


def checked_scale(name: str, scale: Any, zero_point: Any) -> tuple[float | None, int]:
    """Return a scale and its zero point, or raise ValueError; name is x or y."""
    if scale is not None and not is_valid_scale(scale):
        raise ValueError(f"expected a finite {name}_scale above 0, got {scale}")
    if type(zero_point) is not int or not INPUT_MIN <= zero_point <= INPUT_MAX:
        raise ValueError(f"expected an int8 {name}_zero_point, got {zero_point!r}")
    if scale is None and zero_point != 0:
        raise ValueError(f"expected a {name}_scale with {name}_zero_point={zero_point}")
    return None if scale is None else float(scale), zero_point


def input_from_state(state: object) -> tuple[float | None, int]:
    """Return x_scale and x_zero_point from a layer's extra state, or raise FormatError."""
    values = state.tolist() if isinstance(state, Tensor) and state.dim() == 1 else None
    if values == []:
        return None, 0
    if values is None or len(values) != 2 or not float(values[1]).is_integer():
        raise FormatError(f"expected extra state [x_scale, x_zero_point] or nothing, got {state}")
    try:
        return checked_scale("x", values[0], int(values[1]))
    except ValueError as error:
        raise FormatError(str(error)) from None
