"""Direct convolution with sparse float filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.formats import CsrWeight
from sparsecore.ops.matmul import num_rows, to_csr
from sparsecore.ops.shared import check_devices, output_gradients, pair, require

aten = torch.ops.aten


def conv2d(
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> Tensor:
    """Convolve with sparse filters, directly and without im2col; zero padding.

    Sums are float32 for every dtype of x. Gradients reach x, bias and residual.

    Args:
        x: ``[batch, C, H, W]`` float32, bfloat16 or float16.
        weight: ``[N, C / groups * KH * KW]``, float32 values: a dense filter bank flattened from dimension 1.
        bias: ``[N]`` float32.
        kernel_size: KH and KW.
        stride: in pixels.
        padding: pixels of zeros at each end.
        dilation: distance of filter taps in pixels.
        groups: parts that channels are split into.
        residual: what to add before the activation, of the result's shape and dtype.
        activation: one of ACTIVATIONS.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        ``[batch, N, OH, OW]`` of x's dtype.

    Raises:
        FormatError: weight is not float32 CSR.
        RuntimeError: dtype, shape or device of x, or a convolution setting does not fit.

    Example:
        >>> weight = CsrWeight.from_dense(torch.ones(1, 1, 3, 3))
        >>> conv2d(torch.ones(1, 1, 3, 3), weight, kernel_size=3, padding=1)[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    require(weight, CsrWeight, torch.float32)
    taps = pair(kernel_size)
    if x.dim() == 4 and x.shape[1] * math.prod(taps) != weight.shape[1] * groups:
        raise RuntimeError(
            f"expected a weight with K = C / groups * KH * KW, got K = {weight.shape[1]} for "
            f"C = {x.shape[1]}, groups = {groups} and a filter of {taps}"
        )
    return raw.conv2d_csr(
        x,
        weight.row_ptr,
        weight.col_idx,
        weight.values,
        bias,
        residual,
        taps,
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        activation,
        kernel,
    )


@torch.library.register_fake("sparsecore::conv2d_csr")
def _(
    x: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    activation: str = "none",
    kernel_name: str = "",
) -> Tensor:
    check_devices(x, row_ptr, col_idx, values, bias, residual)
    return fake_conv2d(x, num_rows(row_ptr, values), kernel_size, stride, padding, dilation)


def fake_conv2d(x: Tensor, N: int, *settings: Sequence[int]) -> Tensor:
    axes = zip(x.shape[2:], *settings, strict=True)
    size = [(n + 2 * pad - spread * (k - 1) - 1) // step + 1 for n, k, step, pad, spread in axes]
    return x.new_empty([x.shape[0], N, *size])


def _conv2d_gradients(
    ctx: Any, grad: Tensor, weight: Sequence[Tensor], x: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, bias and residual through dense filters: training on top works, but is not made faster."""
    kernel_size, stride, padding, dilation, groups = ctx.settings
    grad, grad_bias, grad_residual = output_gradients(
        ctx, grad, bias, lambda: raw.conv2d_csr(x, *weight, bias, residual, *ctx.settings, "none"), feature_dim=1
    )
    grad_x = None
    if ctx.needs_input_grad[0]:
        channels = x.shape[1] // groups
        dense = raw.unpack_csr(*to_csr(weight), channels * kernel_size[0] * kernel_size[1])
        filters = dense.view(-1, channels, *kernel_size).to(x.dtype)
        geometry = (None, stride, padding, dilation, False, [0, 0], groups, [True, False, False])
        grad_x = aten.convolution_backward(grad, x, filters, *geometry)[0]
    return grad_x, grad_bias, grad_residual


def _save_conv2d(ctx: Any, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None) -> None:
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, None if ctx.activation == "none" else residual, bias, *weight)


def _setup_conv2d_csr(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_ptr, col_idx, values, bias, residual, *ctx.settings, ctx.activation, _ = inputs
    ctx.bias_index = 4
    _save_conv2d(ctx, x, (row_ptr, col_idx, values), bias, residual)


def _backward_conv2d_csr(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    grad_x, grad_bias, grad_residual = _conv2d_gradients(ctx, grad, weight, x, bias, residual)
    return grad_x, None, None, None, grad_bias, grad_residual, *([None] * 7)


torch.library.register_autograd("sparsecore::conv2d_csr", _backward_conv2d_csr, setup_context=_setup_conv2d_csr)


@torch.library.register_fake("sparsecore::conv2d_panel")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    kernel_name: str,
) -> Tensor:
    check_devices(x, *weight, bias, residual)
    return fake_conv2d(x, sizes[0], kernel_size, stride, padding, dilation)


def _setup_conv2d_panel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, *settings, ctx.activation, _ = inputs
    ctx.settings = (*settings, 1)
    ctx.bias_index = 3
    _save_conv2d(ctx, x, weight, bias, residual)


def _backward_conv2d_panel(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    csr = raw.unpack_panel(weight, ctx.sizes)
    grad_x, grad_bias, grad_residual = _conv2d_gradients(ctx, grad, csr, x, bias, residual)
    return grad_x, [None] * len(weight), None, grad_bias, grad_residual, *([None] * 6)


torch.library.register_autograd("sparsecore::conv2d_panel", _backward_conv2d_panel, setup_context=_setup_conv2d_panel)


@torch.library.register_fake("sparsecore::conv2d_jit")
def _(
    x: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    values: Tensor,
    program: int,
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    kernel_name: str,
) -> Tensor:
    settings = (kernel_size, stride, padding, dilation, 1)
    return raw.conv2d_csr(x, row_ptr, col_idx, values, bias, residual, *settings, activation)


def _setup_conv2d_jit(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_ptr, col_idx, values, _, bias, residual, *settings, ctx.activation, _ = inputs
    ctx.settings = (*settings, 1)
    ctx.bias_index = 5
    _save_conv2d(ctx, x, (row_ptr, col_idx, values), bias, residual)


def _backward_conv2d_jit(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    grad_x, grad_bias, grad_residual = _conv2d_gradients(ctx, grad, weight, x, bias, residual)
    return grad_x, None, None, None, None, grad_bias, grad_residual, *([None] * 6)


torch.library.register_autograd("sparsecore::conv2d_jit", _backward_conv2d_jit, setup_context=_setup_conv2d_jit)
