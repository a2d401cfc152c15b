"""Dense operations on NCHW activations, for what stands between sparse convolutions: pooling, scale and shift.

The public functions are part of ``sparsecore.ops``, which takes them from here. Each stands together with its fake and
its derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.ops.shared import ACTIVATION_GRADIENTS, check_devices, pair

aten = torch.ops.aten


# --- pooling ---


def max_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    ceil_mode: bool = False,
    kernel: str = "",
) -> Tensor:
    """Take the largest number of every window; NaN if there is one in it. Equal to torch's max_pool2d.

    Args:
        x: ``[batch, C, H, W]`` float32, bfloat16 or float16.
        kernel_size: height and width of a window in taps.
        stride: in pixels; None takes kernel_size.
        padding: pixels of -infinity at each end, at most half of a window.
        dilation: distance of taps in pixels.
        ceil_mode: add an output where a window begins inside of the image or its left padding, but ends outside.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[batch, C, OH, OW]`` of x's dtype, contiguous. Gradients reach x.

    Raises:
        RuntimeError: dtype, shape or device of x, or a setting does not fit.

    Example:
        >>> max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0]
        tensor([[ 5.,  7.],
                [13., 15.]])
    """
    step = pair(kernel_size if stride is None else stride)
    return raw.max_pool2d(x, pair(kernel_size), step, pair(padding), pair(dilation), ceil_mode, kernel)


def _pooled_shape(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    shape = list(x.shape[:2])
    for n, k, step, pad, spread in zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True):
        room = n + 2 * pad - spread * (k - 1) - 1
        size = (room + (step - 1 if ceil_mode else 0)) // step + 1
        # The last window must begin before the padding on the right.
        shape.append(size - 1 if ceil_mode and (size - 1) * step >= n + pad else size)
    return shape


@torch.library.register_fake("sparsecore::max_pool2d")
def _(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    kernel_name: str,
) -> Tensor:
    return x.new_empty(_pooled_shape(x, kernel_size, stride, padding, dilation, ceil_mode))


def _setup_pool2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.settings, _ = inputs
    ctx.save_for_backward(x)


def _backward_max_pool2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    _, indices = aten.max_pool2d_with_indices(x, *ctx.settings)
    return aten.max_pool2d_with_indices_backward(grad, x, *ctx.settings, indices), *([None] * 6)


torch.library.register_autograd("sparsecore::max_pool2d", _backward_max_pool2d, setup_context=_setup_pool2d)


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    kernel: str = "",
) -> Tensor:
    """Average every window, like torch's avg_pool2d. Sums are float32 for every dtype of x.

    Args:
        x: ``[batch, C, H, W]`` float32, bfloat16 or float16.
        kernel_size: height and width of a window in pixels.
        stride: in pixels; None takes kernel_size.
        padding: pixels of zeros at each end, at most half of a window.
        ceil_mode: see max_pool2d.
        count_include_pad: padding counts as pixels that are averaged.
        divisor_override: divide by this and not by the number of pixels.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[batch, C, OH, OW]`` of x's dtype, contiguous. Gradients reach x.

    Raises:
        RuntimeError: dtype, shape or device of x, or a setting does not fit.
        ValueError: divisor_override is 0.

    Example:
        >>> avg_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0]
        tensor([[ 2.5000,  4.5000],
                [10.5000, 12.5000]])
    """
    if divisor_override == 0:
        raise ValueError("expected a divisor_override that is not 0, or None for the number of pixels")
    step = pair(kernel_size if stride is None else stride)
    settings = (pair(kernel_size), step, pair(padding), ceil_mode, count_include_pad, divisor_override or 0)
    return raw.avg_pool2d(x, *settings, kernel)


@torch.library.register_fake("sparsecore::avg_pool2d")
def _(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    kernel_name: str,
) -> Tensor:
    return x.new_empty(_pooled_shape(x, kernel_size, stride, padding, [1, 1], ceil_mode))


def _backward_avg_pool2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    *settings, divisor = ctx.settings
    return aten.avg_pool2d_backward(grad, x, *settings, divisor or None), *([None] * 7)


torch.library.register_autograd("sparsecore::avg_pool2d", _backward_avg_pool2d, setup_context=_setup_pool2d)


def global_avg_pool2d(x: Tensor, *, kernel: str = "") -> Tensor:
    """Average each channel over all of its pixels: torch's adaptive_avg_pool2d to one pixel.

    Args:
        x: ``[batch, C, H, W]`` float32, bfloat16 or float16, of at least one pixel. Sums are float32.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[batch, C, 1, 1]`` of x's dtype. Gradients reach x.

    Raises:
        RuntimeError: dtype, shape or device of x does not fit.

    Example:
        >>> global_avg_pool2d(torch.arange(8.0).view(1, 2, 2, 2)).flatten()
        tensor([1.5000, 5.5000])
    """
    return raw.global_avg_pool2d(x, kernel)


@torch.library.register_fake("sparsecore::global_avg_pool2d")
def _(x: Tensor, kernel_name: str) -> Tensor:
    return x.new_empty([*x.shape[:2], 1, 1])


def _setup_global_avg_pool2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _backward_global_avg_pool2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape), None


torch.library.register_autograd(
    "sparsecore::global_avg_pool2d", _backward_global_avg_pool2d, setup_context=_setup_global_avg_pool2d
)


# --- scale_shift: a scale, a shift, a residual and an activation per channel, in one pass ---


def scale_shift(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> Tensor:
    """Compute ``activation(x * scale + shift + residual)`` per channel, in one pass over memory.

    It is BatchNorm where no convolution can absorb it, an activation or an addition on its own, and the gate of a
    squeeze-and-excitation block. Computed in float32 for every dtype of x.

    Args:
        x: ``[batch, C, ...]`` float32, bfloat16 or float16.
        scale: ``[C]`` or, different for each image, ``[batch, C]``, float32; None is 1.
        shift: ``[C]`` float32; None is 0.
        residual: what to add, of x's shape and dtype.
        activation: one of ACTIVATIONS.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        x's shape and dtype, contiguous. Gradients reach x, scale, shift and residual.

    Raises:
        RuntimeError: dtype, shape or device of an argument does not fit, or there is no such activation.

    Example:
        >>> x = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
        >>> scale_shift(x, torch.tensor([2.0, -1.0]), torch.tensor([0.0, 5.0]), activation="relu")
        tensor([[[2., 0.],
                 [2., 1.]]])
    """
    return raw.scale_shift(x, scale, shift, residual, activation, kernel)


@torch.library.register_fake("sparsecore::scale_shift")
def _(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel_name: str,
) -> Tensor:
    check_devices(x, scale, shift, residual)
    return x.new_empty(x.shape)


def _setup_scale_shift(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, residual, ctx.activation, _ = inputs
    ctx.save_for_backward(x, scale, shift, None if ctx.activation == "none" else residual)
    ctx.has_residual = residual is not None


def _backward_scale_shift(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale, shift, residual = ctx.saved_tensors
    if ctx.activation != "none":
        pre = raw.scale_shift(x, scale, shift, residual, "none", "")
        grad = ACTIVATION_GRADIENTS[ctx.activation](grad, pre)
    pixels = list(range(2, x.dim()))
    grad_x, grad_scale, grad_shift = grad, None, None
    if scale is not None:
        factor = scale.view(*(scale.shape if scale.dim() == 2 else (1, -1)), *([1] * len(pixels)))
        grad_x = (grad * factor).to(x.dtype)
        if ctx.needs_input_grad[1]:
            per_image = (grad * x).sum(pixels, dtype=scale.dtype) if pixels else (grad * x).to(scale.dtype)
            grad_scale = per_image if scale.dim() == 2 else per_image.sum(0)
    if shift is not None and ctx.needs_input_grad[2]:
        grad_shift = grad.sum([0, *pixels], dtype=shift.dtype)
    return grad_x, grad_scale, grad_shift, grad if ctx.has_residual else None, None, None


torch.library.register_autograd("sparsecore::scale_shift", _backward_scale_shift, setup_context=_setup_scale_shift)
