"""Depthwise convolution: the dense one between sparse 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.ops.convolution import fake_conv2d
from sparsecore.ops.shared import check_devices, output_gradients, pair

aten = torch.ops.aten


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> Tensor:
    """Convolve every channel with filters of its own; zero padding, contiguous outputs whatever the layout of x.

    Output channel n reads input channel ``n // (N / C)``, as in ``torch.nn.functional.conv2d`` with ``groups=C``.
    Sums are float32 for every dtype of x. Gradients reach x, weight, bias and residual.

    Args:
        x: ``[batch, C, H, W]`` float32, bfloat16 or float16.
        weight: ``[N, 1, KH, KW]`` float32, dense; N is a multiple of C.
        bias: ``[N]`` float32.
        stride: in pixels.
        padding: pixels of zeros at each end.
        dilation: distance of filter taps in pixels.
        residual: what to add before the activation, of the result's shape and dtype.
        activation: one of ACTIVATIONS.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[batch, N, OH, OW]`` of x's dtype.

    Raises:
        RuntimeError: dtype, shape or device of an argument, or a convolution setting does not fit.

    Example:
        >>> depthwise_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), padding=1)[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise RuntimeError(f"expected a weight [N, 1, KH, KW], got shape {list(weight.shape)}")
    settings = (list(weight.shape[2:]), pair(stride), pair(padding), pair(dilation))
    return raw.depthwise_conv2d(x, weight, bias, residual, *settings, activation, kernel)


@torch.library.register_fake("sparsecore::depthwise_conv2d")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    kernel_name: str,
) -> Tensor:
    check_devices(x, weight, bias, residual)
    return fake_conv2d(x, weight.shape[0], kernel_size, stride, padding, dilation)


def _setup_depthwise_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, *ctx.settings, ctx.activation, _ = inputs
    ctx.bias_index = 2
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, weight, bias, None if ctx.activation == "none" else residual)


def _backward_depthwise_conv2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias, residual = ctx.saved_tensors
    kernel_size, stride, padding, dilation = ctx.settings
    grad, grad_bias, grad_residual = output_gradients(
        ctx,
        grad,
        bias,
        lambda: raw.depthwise_conv2d(x, weight, bias, residual, *ctx.settings, "none", ""),
        feature_dim=1,
    )
    filters = weight.view(-1, 1, *kernel_size).to(x.dtype)
    wanted = [*ctx.needs_input_grad[:2], False]
    grad_x = grad_weight = None
    if any(wanted):
        geometry = (None, stride, padding, dilation, False, [0, 0], x.shape[1], wanted)
        grad_x, grad_weight, _ = aten.convolution_backward(grad, x, filters, *geometry)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype).reshape(weight.shape)
    return grad_x, grad_weight, grad_bias, grad_residual, *([None] * 6)


torch.library.register_autograd(
    "sparsecore::depthwise_conv2d", _backward_depthwise_conv2d, setup_context=_setup_depthwise_conv2d
)
