"""The operations: public functions over ``torch.ops.sparsecore``, their fakes and their gradients.

Each operation stands together: the function, its fake (shapes for torch.compile and torch.export) and its derivative.
The dense ones, pooling and scale_shift, are in dense_ops.py, the one on bit planes in planes_ops.py. Kernels behind
them are chosen by the tables in csrc/kernels. Layers call ``raw`` directly: their weights were validated when they were
built. (In the schemas ``kernel`` is ``kernel_name``: Inductor takes the shorter word for itself.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.dense_ops import avg_pool2d as avg_pool2d
from sparsecore.dense_ops import global_avg_pool2d as global_avg_pool2d
from sparsecore.dense_ops import max_pool2d as max_pool2d
from sparsecore.dense_ops import scale_shift as scale_shift
from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight, PackedInt8Weight
from sparsecore.formats.bitmap import BLOCK_ROWS, SLACK
from sparsecore.formats.block_csr import unblock
from sparsecore.formats.packed_codebook import unpack as unpack_codebook
from sparsecore.ops_shared import ACTIVATION_GRADIENTS as _ACTIVATION_GRADIENTS
from sparsecore.ops_shared import ACTIVATIONS as ACTIVATIONS
from sparsecore.ops_shared import check_devices as _check_devices
from sparsecore.ops_shared import pair as _pair
from sparsecore.planes_ops import spmm_planes as spmm_planes

aten = torch.ops.aten


def _require(weight: object, kind: type, dtype: torch.dtype) -> None:
    if not isinstance(weight, kind):
        raise FormatError(
            f"expected a {kind.__name__}, got {type(weight).__name__}; make one with {kind.__name__}.from_dense()"
        )
    came = weight.values.dtype if isinstance(weight, CsrWeight) else dtype
    if came != dtype:
        way = "quantize()" if dtype == torch.int8 else "to(torch.float32)"
        raise FormatError(f"expected {dtype} values, got {came}; call weight.{way}")


def _check_features(x: Tensor, dim: int, expected: int) -> None:
    # Index arrays alone would take any x that is wide enough.
    if x.dim() > max(dim, 0) and x.shape[dim] != expected:
        raise RuntimeError(f"expected {expected} in dimension {dim} of x, got shape {list(x.shape)}")


# --- spmm: float CSR weight x dense activations ---


def spmm(
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    layout: str = "rows",
    kernel: str = "",
) -> Tensor:
    """Multiply dense activations with a sparse weight: ``activation(x @ weight^T + bias + residual)``.

    A missing entry contributes nothing: 0 * NaN is skipped. Sums are float32 for every dtype of x. Gradients reach
    x, bias and residual.

    Args:
        x: float32, bfloat16 or float16. ``[..., K]`` for layout rows; ``[batch, K, ...]`` for columns, a 1x1
            convolution.
        weight: ``[N, K]``, float32 values.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ACTIVATIONS; gelu is the exact one (erf).
        layout: rows or columns.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        x's dtype and shape, with N in the place of K.

    Raises:
        FormatError: weight is not float32 CSR.
        RuntimeError: dtype, shape or device of x, bias or residual does not fit.

    Example:
        >>> weight = CsrWeight.from_dense(torch.eye(3))
        >>> spmm(torch.tensor([[1.0, -2.0, 3.0]]), weight, activation="relu")
        tensor([[1., 0., 3.]])
    """
    _require(weight, CsrWeight, torch.float32)
    _check_features(x, 1 if layout == "columns" else -1, weight.shape[1])
    return raw.spmm_csr(x, weight.row_ptr, weight.col_idx, weight.values, bias, residual, activation, layout, kernel)


@torch.library.register_fake("sparsecore::spmm_csr")
def _(
    x: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    layout: str = "rows",
    kernel_name: str = "",
) -> Tensor:
    _check_devices(x, row_ptr, col_idx, values, bias, residual)
    shape = list(x.shape)
    shape[-1 if layout == "rows" else 1] = _num_rows(row_ptr, values)
    return x.new_empty(shape)


def _num_rows(row_ptr: Tensor, values: Tensor) -> int:
    """N of CSR, values ``[nnz]``, or of CSR of blocks of R rows, values ``[nnz, R]``."""
    return (row_ptr.shape[0] - 1) * (values.shape[1] if values.dim() == 2 else 1)


@torch.library.custom_op("sparsecore::unpack_block_csr", mutates_args=())
def _unpack_block_csr(block_ptr: Tensor, block_col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return unblock(block_ptr, block_col, values)


@_unpack_block_csr.register_fake
def _(block_ptr: Tensor, block_col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = block_ptr.new_empty([_num_rows(block_ptr, values) + 1])
    return row_ptr, block_col.new_empty([nnz]), values.new_empty([nnz])


def _to_csr(weight: Sequence[Tensor]) -> Sequence[Tensor]:
    """Row pointers, columns and values of CSR from those of CSR or of CSR of blocks."""
    return raw.unpack_block_csr(*weight) if weight[2].dim() == 2 else weight


def _spmm_gradients(
    ctx: Any,
    grad: Tensor,
    weight: Sequence[Tensor],
    x: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, bias and residual, with the weight as CSR or CSR of blocks."""
    if x is not None:
        pre = raw.spmm_csr(x, *weight, bias, residual, "none", ctx.layout)
        grad = _ACTIVATION_GRADIENTS[ctx.activation](grad, pre)
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        transposed = raw.transpose_csr(*_to_csr(weight), ctx.cols)
        grad_x = raw.spmm_csr(grad.contiguous(), *transposed, None, None, "none", ctx.layout)
    if bias is not None and ctx.needs_input_grad[ctx.bias_index]:
        feature_dim = grad.dim() - 1 if ctx.layout == "rows" else 1
        grad_bias = grad.sum([d for d in range(grad.dim()) if d != feature_dim], dtype=bias.dtype)
    return grad_x, grad_bias, grad if ctx.has_residual else None


def _save_spmm(ctx: Any, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None) -> None:
    ctx.cols = x.shape[-1 if ctx.layout == "rows" else 1]
    ctx.has_residual = residual is not None
    # x and residual only to recompute what went into the activation
    inputs = (None, None) if ctx.activation == "none" else (x, residual)
    ctx.save_for_backward(*inputs, bias, *weight)


def _setup_spmm_csr(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *weight, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 4
    _save_spmm(ctx, x, weight, bias, residual)


def _backward_spmm_csr(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, weight, x, bias, residual)
    return grad_x, None, None, None, grad_bias, grad_residual, None, None, None


torch.library.register_autograd("sparsecore::spmm_csr", _backward_spmm_csr, setup_context=_setup_spmm_csr)


# The panel form of spmm: the same meaning, another packing of the weight (sparsecore.formats.panel).


@torch.library.register_fake("sparsecore::spmm_panel")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    layout: str,
    kernel_name: str,
) -> Tensor:
    _check_devices(x, *weight, bias, residual)
    shape = list(x.shape)
    shape[-1 if layout == "rows" else 1] = sizes[0]
    return x.new_empty(shape)


def _setup_spmm_panel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 3
    _save_spmm(ctx, x, weight, bias, residual)


def _backward_spmm_panel(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    csr = raw.unpack_panel(weight, ctx.sizes)
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, csr, x, bias, residual)
    return grad_x, [None] * len(weight), None, grad_bias, grad_residual, None, None, None


torch.library.register_autograd("sparsecore::spmm_panel", _backward_spmm_panel, setup_context=_setup_spmm_panel)


# The bitmap form, for few rows of x: rows layout only, values of 32 or 16 bits (sparsecore.formats.bitmap).


@torch.library.register_fake("sparsecore::spmm_bitmap")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel_name: str,
) -> Tensor:
    _check_devices(x, *weight, bias, residual)
    return x.new_empty([*x.shape[:-1], sizes[0]])


def _setup_spmm_bitmap(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, ctx.activation, _ = inputs
    ctx.layout = "rows"
    ctx.bias_index = 3
    _save_spmm(ctx, x, weight, bias, residual)


def _backward_spmm_bitmap(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    row_ptr, col_idx, values = raw.unpack_bitmap(weight, ctx.sizes)
    csr = (row_ptr, col_idx, values.float())
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, csr, x, bias, residual)
    return grad_x, [None] * len(weight), None, grad_bias, grad_residual, None, None


torch.library.register_autograd("sparsecore::spmm_bitmap", _backward_spmm_bitmap, setup_context=_setup_spmm_bitmap)


# The codebook form: rows layout only, straight from codes and gaps (sparsecore.formats.packed_codebook).


@torch.library.register_fake("sparsecore::spmm_codebook")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel_name: str,
) -> Tensor:
    _check_devices(x, *weight, bias, residual)
    return x.new_empty([*x.shape[:-1], sizes[0]])


@torch.library.custom_op("sparsecore::unpack_codebook", mutates_args=())
def _unpack_codebook(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    csr = unpack_codebook(list(weight), list(sizes), weight[0].numel()).to_csr()
    return csr.row_ptr, csr.col_idx, csr.values


@_unpack_codebook.register_fake
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    indices = weight[3]
    return indices.new_empty([sizes[0] + 1]), indices.new_empty([nnz]), weight[0].new_empty([nnz])


def _backward_spmm_codebook(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    csr = raw.unpack_codebook(weight, ctx.sizes)
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, csr, x, bias, residual)
    return grad_x, [None] * len(weight), None, grad_bias, grad_residual, None, None


torch.library.register_autograd("sparsecore::spmm_codebook", _backward_spmm_codebook, setup_context=_setup_spmm_bitmap)


@torch.library.register_fake("sparsecore::codebook_multiplies")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    _check_devices(x, *weight)
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


# --- conv2d: float CSR filters, direct ---


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
    _require(weight, CsrWeight, torch.float32)
    taps = _pair(kernel_size)
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
        _pair(stride),
        _pair(padding),
        _pair(dilation),
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
    _check_devices(x, row_ptr, col_idx, values, bias, residual)
    return _fake_conv2d(x, _num_rows(row_ptr, values), kernel_size, stride, padding, dilation)


def _fake_conv2d(x: Tensor, N: int, *settings: Sequence[int]) -> Tensor:
    axes = zip(x.shape[2:], *settings, strict=True)
    size = [(n + 2 * pad - spread * (k - 1) - 1) // step + 1 for n, k, step, pad, spread in axes]
    return x.new_empty([x.shape[0], N, *size])


def _conv2d_gradients(
    ctx: Any, grad: Tensor, weight: Sequence[Tensor], x: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, bias and residual through dense filters: training on top works, but is not made faster."""
    kernel_size, stride, padding, dilation, groups = ctx.settings
    if ctx.activation != "none":
        pre = raw.conv2d_csr(x, *weight, bias, residual, *ctx.settings, "none")
        grad = _ACTIVATION_GRADIENTS[ctx.activation](grad, pre)
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        channels = x.shape[1] // groups
        dense = raw.unpack_csr(*_to_csr(weight), channels * kernel_size[0] * kernel_size[1])
        filters = dense.view(-1, channels, *kernel_size).to(x.dtype)
        geometry = (None, stride, padding, dilation, False, [0, 0], groups, [True, False, False])
        grad_x = aten.convolution_backward(grad, x, filters, *geometry)[0]
    if bias is not None and ctx.needs_input_grad[ctx.bias_index]:
        grad_bias = grad.sum([0, 2, 3], dtype=bias.dtype)
    return grad_x, grad_bias, grad if ctx.has_residual else None


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
    _check_devices(x, *weight, bias, residual)
    return _fake_conv2d(x, sizes[0], kernel_size, stride, padding, dilation)


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


# --- depthwise: the dense convolution between sparse 1x1 ones ---


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
    settings = (list(weight.shape[2:]), _pair(stride), _pair(padding), _pair(dilation))
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
    _check_devices(x, weight, bias, residual)
    return _fake_conv2d(x, weight.shape[0], kernel_size, stride, padding, dilation)


def _setup_depthwise_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, *ctx.settings, ctx.activation, _ = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, weight, bias, None if ctx.activation == "none" else residual)


def _backward_depthwise_conv2d(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias, residual = ctx.saved_tensors
    kernel_size, stride, padding, dilation = ctx.settings
    if ctx.activation != "none":
        pre = raw.depthwise_conv2d(x, weight, bias, residual, *ctx.settings, "none", "")
        grad = _ACTIVATION_GRADIENTS[ctx.activation](grad, pre)
    filters = weight.view(-1, 1, *kernel_size).to(x.dtype)
    wanted = [*ctx.needs_input_grad[:2], False]
    grad_x = grad_weight = grad_bias = None
    if any(wanted):
        geometry = (None, stride, padding, dilation, False, [0, 0], x.shape[1], wanted)
        grad_x, grad_weight, _ = aten.convolution_backward(grad, x, filters, *geometry)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype).reshape(weight.shape)
    if bias is not None and ctx.needs_input_grad[2]:
        grad_bias = grad.sum([0, 2, 3], dtype=bias.dtype)
    return grad_x, grad_weight, grad_bias, grad if ctx.has_residual else None, *([None] * 6)


torch.library.register_autograd(
    "sparsecore::depthwise_conv2d", _backward_depthwise_conv2d, setup_context=_setup_depthwise_conv2d
)


# --- int8: quantized activations x int8 weight, dense or without its zeros ---


def linear_int8(
    x: Tensor,
    weight: PackedInt8Weight,
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
    x_zero_point) @ weight.q^T + bias + residual)``. All formats of a weight give the same bits.

    Args:
        x: ``[..., K]`` float32, float16, bfloat16, or int8 that is quantized already; K at most 65536.
        weight: ``[N, K]``, one scale per output row.
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
        FormatError: weight is not a PackedInt8Weight.
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
    settings = (_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation))
    return raw.conv2d_int8(
        x, *_packed_int8(weight), bias, residual, x_scale, x_zero_point, _inverse(x_channel_scale), *settings,
        activation, y_scale, y_zero_point, kernel,
    )  # fmt: skip


def _packed_int8(weight: object) -> tuple[Any, ...]:
    if not isinstance(weight, PackedInt8Weight):
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


@torch.library.register_fake("sparsecore::linear_int8")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    format: str,
    scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    x_scale: float | None,
    x_zero_point: int,
    x_channel_inverse: Tensor | None,
    activation: str,
    y_scale: float | None,
    y_zero_point: int,
    kernel_name: str,
) -> Tensor:
    _check_devices(x, *weight, scale, weight_sum, bias, residual, x_channel_inverse)
    return x.new_empty([*x.shape[:-1], sizes[0]], dtype=_int8_output_dtype(x, y_scale))


@torch.library.register_fake("sparsecore::conv2d_int8")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    format: str,
    scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    x_scale: float | None,
    x_zero_point: int,
    x_channel_inverse: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    y_scale: float | None,
    y_zero_point: int,
    kernel_name: str,
) -> Tensor:
    _check_devices(x, *weight, scale, weight_sum, bias, residual, x_channel_inverse)
    y = _fake_conv2d(x, sizes[0], kernel_size, stride, padding, dilation)
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = (
        torch.channels_last if (is_last and x.dtype != torch.int8) or y_scale is not None else torch.contiguous_format
    )
    return torch.empty_like(y, dtype=_int8_output_dtype(x, y_scale), memory_format=layout)


def _no_gradient(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise RuntimeError(
        "int8 operations have no gradient; train the float model (quantization-aware if need be) and quantize it last"
    )


for _name in ("linear_int8", "conv2d_int8"):
    torch.library.register_autograd(f"sparsecore::{_name}", _no_gradient)


# --- packing ---


@torch.library.register_fake("sparsecore::pack_csr")
def _(weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = weight.new_empty([weight.shape[0] + 1], dtype=torch.int32)
    return row_ptr, row_ptr.new_empty([nnz]), weight.new_empty([nnz])


@torch.library.register_fake("sparsecore::unpack_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> Tensor:
    return values.new_empty([row_ptr.shape[0] - 1, cols])


@torch.library.register_fake("sparsecore::transpose_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    return row_ptr.new_empty([cols + 1]), torch.empty_like(col_idx), torch.empty_like(values)


@torch.library.register_fake("sparsecore::pack_lookup")
def _(weight: Tensor, segments: int, lanes: int, table: int, has_safe_pairs: bool) -> tuple[Tensor, ...]:
    entries, steps = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    ends = weight.new_empty([-(-weight.shape[0] // lanes) + 1], dtype=torch.int32)
    return (
        ends,
        torch.empty_like(ends),
        ends.new_empty([entries], dtype=torch.int16),
        ends.new_empty([entries], dtype=torch.uint8),
        ends.new_empty([steps * 8 * lanes], dtype=torch.uint8),
    )


@torch.library.register_fake("sparsecore::unpack_lookup")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    return weight[0].new_empty(sizes[:2], dtype=torch.int8)


@torch.library.register_fake("sparsecore::pack_block_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int, block_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    ends = row_ptr.new_empty([(row_ptr.shape[0] - 1) // block_rows + 1])
    return ends, row_ptr.new_empty([nnz]), values.new_empty([nnz, block_rows])


@torch.library.register_fake("sparsecore::pack_panel")
def _(
    row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int, block_rows: int, panel_cols: int
) -> tuple[Tensor, ...]:
    runs = torch.library.get_ctx().new_dynamic_size()
    blocks = -(-(row_ptr.shape[0] - 1) // block_rows)
    ends = blocks * max(-(-cols // panel_cols), 1) + 1
    return (
        row_ptr.new_empty([ends]),
        row_ptr.new_empty([ends]),
        row_ptr.new_empty([runs], dtype=torch.uint8),
        row_ptr.new_empty([runs], dtype=torch.uint8),
        torch.empty_like(col_idx, dtype=torch.uint8),
        torch.empty_like(values),
    )


@torch.library.register_fake("sparsecore::unpack_panel")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    values = weight[5]
    indices = weight[0].new_empty([sizes[0] + 1])
    return indices, indices.new_empty(values.shape), torch.empty_like(values)


@torch.library.register_fake("sparsecore::pack_bitmap")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    blocks = -(-(row_ptr.shape[0] - 1) // BLOCK_ROWS)
    masks = row_ptr.new_empty([blocks, cols], dtype=torch.int16)
    return row_ptr.new_empty([blocks + 1]), masks, values.new_empty([values.shape[0] + SLACK])


@torch.library.register_fake("sparsecore::unpack_bitmap")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    block_ptr, _, values = weight
    nnz = values.shape[0] - SLACK
    return block_ptr.new_empty([sizes[0] + 1]), block_ptr.new_empty([nnz]), values.new_empty([nnz])


# --- Huffman coding ---


@torch.library.register_fake("sparsecore::huffman_lengths")
def _(counts: Tensor) -> Tensor:
    return torch.empty_like(counts, dtype=torch.uint8)


@torch.library.register_fake("sparsecore::huffman_encode")
def _(symbols: Tensor, lengths: Tensor) -> Tensor:
    return symbols.new_empty([torch.library.get_ctx().new_dynamic_size()])


@torch.library.register_fake("sparsecore::huffman_decode")
def _(stream: Tensor, lengths: Tensor, num_symbols: int) -> Tensor:
    return stream.new_empty([num_symbols])
