"""Quantized activations x int8 weights, dense or without their zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import PackedInt4Weight, PackedInt8Weight
from sparsecore.ops.convolution import fake_conv2d
from sparsecore.ops.shared import check_devices, pair

aten = torch.ops.aten


def linear_int8(
    x: Tensor,
    weight: PackedInt8Weight | PackedInt4Weight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    x_scale: float | None = None,
    x_zero_point: int = 0,
    x_channel_scale: Tensor | None = None,
    activation: str = "none",
    y_scale: float | None = None,
    y_zero_point: int = 0,
    kernel: str = "",
) -> Tensor:
    """Quantize activations to int8, multiply with an int8 weight in exact int32, scale back or requantize.

    With ``q = clamp(round(x / x_scale) + x_zero_point, -128, 127)``: ``y = activation(x_scale * scale * (q -
    x_zero_point) @ weight.q^T + bias + residual)``. All formats of a weight give the same bits. Exact sums of a 4-bit
    weight's groups are scaled one by one, and added in float32 in order of the columns.

    Args:
        x: ``[..., K]`` float32, float16, bfloat16, or int8 that is quantized already; K at most 65536.
        weight: ``[N, K]``, one scale per output row, or per row and group of columns.
        bias: ``[N]`` float32.
        residual: of the shape and dtype of y, added before the activation; not with int8 outputs.
        x_scale: one scale for all of x, from calibration; None scales each row by its own maximum
            (a row with NaN or infinity then gives NaN). Needed for int8 x.
        x_zero_point: the int8 value that stands for zero, with x_scale.
        x_channel_scale: ``[K]`` float32, positive; x is divided by it before all else.
        activation: one of ACTIVATIONS.
        y_scale: scale of int8 outputs, ``y = clamp(round(y / y_scale) + y_zero_point, -128, 127)``; None leaves them
            in floating point.
        y_zero_point: the int8 value that stands for zero, with y_scale.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[..., N]`` int8 with y_scale, else of the dtype of x, float32 for int8 x. There is no gradient: a backward
        pass raises RuntimeError.

    Raises:
        FormatError: weight is neither a PackedInt8Weight nor a PackedInt4Weight.
        RuntimeError: dtype, shape or device of an argument does not fit.

    Example:
        >>> from sparsecore.formats import Int8Weight
        >>> weight = PackedInt8Weight.pack(Int8Weight.from_dense(torch.tensor([[1.0, -1.0]])))
        >>> linear_int8(torch.tensor([[3.0, 1.0]]), weight, x_scale=1.0)
        tensor([[2.]])
    """
    return raw.linear_int8(
        x, *_packed_int8(weight), bias, residual, x_scale, x_zero_point, _inverse(x_channel_scale),
        activation, y_scale, y_zero_point, kernel,
    )  # fmt: skip


def conv2d_int8(
    x: Tensor,
    weight: PackedInt8Weight,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    residual: Tensor | None = None,
    x_scale: float | None = None,
    x_zero_point: int = 0,
    x_channel_scale: Tensor | None = None,
    activation: str = "none",
    y_scale: float | None = None,
    y_zero_point: int = 0,
    kernel: str = "",
) -> Tensor:
    """Do as linear_int8 at every position of an image; groups are those that the weight was packed in.

    Channels-last inputs are read as they are, with no transposition on the way. Outputs are channels last where they
    are int8 or x is so and floating point, else contiguous.

    Args:
        x: ``[B, C, H, W]``, dtypes as for linear_int8.
        weight: ``[N, C / groups * KH * KW]``, packed with ``taps=KH * KW``.
        bias: see linear_int8, like all that is not named here.
        kernel_size: KH and KW, or one int for both.
        stride: in pixels, like kernel_size.
        padding: pixels of zeros at each end.
        dilation: distance of filter taps in pixels.
        residual: ``[B, N, OH, OW]``.
        x_scale: None scales each image by its own maximum.
        x_zero_point: see linear_int8.
        x_channel_scale: ``[C]``.
        activation: see linear_int8.
        y_scale: see linear_int8.
        y_zero_point: see linear_int8.
        kernel: see linear_int8.

    Returns:
        ``[B, N, OH, OW]``.

    Raises:
        FormatError: weight is not a PackedInt8Weight.
        RuntimeError: dtype, shape or device of an argument does not fit.
    """
    settings = (pair(kernel_size), pair(stride), pair(padding), pair(dilation))
    return raw.conv2d_int8(
        x, *_packed_int8(weight), bias, residual, x_scale, x_zero_point, _inverse(x_channel_scale), *settings,
        activation, y_scale, y_zero_point, kernel,
    )  # fmt: skip


def _packed_int8(weight: object) -> tuple[Any, ...]:
    if not isinstance(weight, PackedInt8Weight | PackedInt4Weight):
        raise FormatError(
            f"expected a PackedInt8Weight, got {type(weight).__name__}; make one with "
            f"PackedInt8Weight.pack(Int8Weight.from_dense(...))"
        )
    return list(weight.tensors), weight.shape.sizes, weight.format, weight.scale, weight.weight_sum


def _inverse(channel_scale: Tensor | None) -> Tensor | None:
    return None if channel_scale is None else channel_scale.reciprocal()


def _int8_output_dtype(x: Tensor, y_scale: float | None) -> torch.dtype:
    if y_scale is not None:
        return torch.int8
    return x.dtype if x.is_floating_point() else torch.float32


# Both schemas end in activation, y_scale, y_zero_point and kernel_name; no argument has a default.


@torch.library.register_fake("sparsecore::linear_int8")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int], *others: Any) -> Tensor:
    *_, y_scale, _, _ = others
    check_devices(x, *weight, *_tensors(others))
    return x.new_empty([*x.shape[:-1], sizes[0]], dtype=_int8_output_dtype(x, y_scale))


@torch.library.register_fake("sparsecore::conv2d_int8")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int], *others: Any) -> Tensor:
    *_, kernel_size, stride, padding, dilation, _, y_scale, _, _ = others
    check_devices(x, *weight, *_tensors(others))
    y = fake_conv2d(x, sizes[0], kernel_size, stride, padding, dilation)
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = (
        torch.channels_last if (is_last and x.dtype != torch.int8) or y_scale is not None else torch.contiguous_format
    )
    return torch.empty_like(y, dtype=_int8_output_dtype(x, y_scale), memory_format=layout)


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def _no_gradient(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise RuntimeError(
        "int8 operations have no gradient; train the float model (quantization-aware if need be) and quantize it last"
    )


for _name in ("linear_int8", "conv2d_int8"):
    torch.library.register_autograd(f"sparsecore::{_name}", _no_gradient)
