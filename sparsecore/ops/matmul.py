"""Sparse float weights x dense activations: CSR, blocks, panels, bitmaps and codebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.formats import CsrWeight
from sparsecore.formats.block_csr import unblock
from sparsecore.formats.packed_codebook import unpack as unpack_codebook
from sparsecore.ops.shared import check_devices, check_features, output_gradients, require

aten = torch.ops.aten


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
    require(weight, CsrWeight, torch.float32)
    check_features(x, feature_dim(layout), weight.shape[1])
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
    check_devices(x, row_ptr, col_idx, values, bias, residual)
    return _fake_product(x, num_rows(row_ptr, values), layout)


def feature_dim(layout: str) -> int:
    """Dimension of x and y that holds their features."""
    return 1 if layout == "columns" else -1


def _fake_product(x: Tensor, N: int, layout: str) -> Tensor:
    shape = list(x.shape)
    shape[feature_dim(layout)] = N
    return x.new_empty(shape)


def num_rows(row_ptr: Tensor, values: Tensor) -> int:
    """N of CSR, values ``[nnz]``, or of CSR of blocks of R rows, values ``[nnz, R]``."""
    return (row_ptr.shape[0] - 1) * (values.shape[1] if values.dim() == 2 else 1)


@torch.library.custom_op("sparsecore::unpack_block_csr", mutates_args=())
def _unpack_block_csr(block_ptr: Tensor, block_col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return unblock(block_ptr, block_col, values)


@_unpack_block_csr.register_fake
def _(block_ptr: Tensor, block_col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = block_ptr.new_empty([num_rows(block_ptr, values) + 1])
    return row_ptr, block_col.new_empty([nnz]), values.new_empty([nnz])


def to_csr(weight: Sequence[Tensor]) -> Sequence[Tensor]:
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
    grad, grad_bias, grad_residual = output_gradients(
        ctx, grad, bias, lambda: raw.spmm_csr(x, *weight, bias, residual, "none", ctx.layout), feature_dim(ctx.layout)
    )
    grad_x = None
    if ctx.needs_input_grad[0]:
        transposed = raw.transpose_csr(*to_csr(weight), ctx.cols)
        grad_x = raw.spmm_csr(grad.contiguous(), *transposed, None, None, "none", ctx.layout)
    return grad_x, grad_bias, grad_residual


def save_spmm(ctx: Any, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None) -> None:
    """Keep what the gradients of a product need; ctx.activation and ctx.layout are set."""
    ctx.cols = x.shape[feature_dim(ctx.layout)]
    ctx.has_residual = residual is not None
    # x and residual only to recompute what went into the activation
    inputs = (None, None) if ctx.activation == "none" else (x, residual)
    ctx.save_for_backward(*inputs, bias, *weight)


def _setup_spmm_csr(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *weight, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 4
    save_spmm(ctx, x, weight, bias, residual)


def _backward_spmm_csr(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, weight, x, bias, residual)
    return grad_x, None, None, None, grad_bias, grad_residual, None, None, None


torch.library.register_autograd("sparsecore::spmm_csr", _backward_spmm_csr, setup_context=_setup_spmm_csr)


# The panel form of spmm: the same meaning, another packing of the weight (sparsecore.formats.panel).


@torch.library.register_fake("sparsecore::spmm_panel")
@torch.library.register_fake("sparsecore::spmm_planes")
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
    check_devices(x, *weight, bias, residual)
    return _fake_product(x, sizes[0], layout)


def _setup_spmm_panel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 3
    save_spmm(ctx, x, weight, bias, residual)


Unpack = Callable[[Sequence[Tensor], Sequence[int]], Sequence[Tensor]]


def _backward_packed(unpack: Unpack) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    """Gradients of a packed form, by the CSR arrays that unpack gives of it."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, residual, bias, *weight = ctx.saved_tensors
        csr = unpack(weight, ctx.sizes)
        grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, csr, x, bias, residual)
        settings = [None] * (len(ctx.needs_input_grad) - 5)
        return grad_x, [None] * len(weight), None, grad_bias, grad_residual, *settings

    return backward


torch.library.register_autograd(
    "sparsecore::spmm_panel", _backward_packed(raw.unpack_panel), setup_context=_setup_spmm_panel
)


# The form as machine code: the CSR weight, and the number of a program that was generated from it
# (sparsecore.formats.jit).


@torch.library.register_fake("sparsecore::spmm_jit")
def _(
    x: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    values: Tensor,
    program: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    layout: str,
    kernel_name: str,
) -> Tensor:
    return raw.spmm_csr(x, row_ptr, col_idx, values, bias, residual, activation, layout)


def _setup_spmm_jit(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_ptr, col_idx, values, _, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 5
    save_spmm(ctx, x, (row_ptr, col_idx, values), bias, residual)


def _backward_spmm_jit(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    grad_x, grad_bias, grad_residual = _spmm_gradients(ctx, grad, weight, x, bias, residual)
    return grad_x, None, None, None, None, grad_bias, grad_residual, None, None, None


torch.library.register_autograd("sparsecore::spmm_jit", _backward_spmm_jit, setup_context=_setup_spmm_jit)


# The bitmap form, for few rows of x: rows layout only, values of 32 or 16 bits (sparsecore.formats.bitmap).


@torch.library.register_fake("sparsecore::spmm_bitmap")
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
    check_devices(x, *weight, bias, residual)
    return x.new_empty([*x.shape[:-1], sizes[0]])


def _setup_spmm_bitmap(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, ctx.activation, _ = inputs
    ctx.layout = "rows"
    ctx.bias_index = 3
    save_spmm(ctx, x, weight, bias, residual)


def _unpack_bitmap(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    row_ptr, col_idx, values = raw.unpack_bitmap(weight, sizes)
    return row_ptr, col_idx, values.float()


torch.library.register_autograd(
    "sparsecore::spmm_bitmap", _backward_packed(_unpack_bitmap), setup_context=_setup_spmm_bitmap
)


# The codebook form: rows layout only, straight from codes and gaps (sparsecore.formats.packed_codebook).


@torch.library.custom_op("sparsecore::unpack_codebook", mutates_args=())
def _unpack_codebook(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    csr = unpack_codebook(list(weight), list(sizes), weight[0].numel()).to_csr()
    return csr.row_ptr, csr.col_idx, csr.values


@_unpack_codebook.register_fake
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    indices = weight[3]
    return indices.new_empty([sizes[0] + 1]), indices.new_empty([nnz]), weight[0].new_empty([nnz])


torch.library.register_autograd(
    "sparsecore::spmm_codebook", _backward_packed(raw.unpack_codebook), setup_context=_setup_spmm_bitmap
)


@torch.library.register_fake("sparsecore::codebook_multiplies")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    check_devices(x, *weight)
    return x.new_empty(x.shape[:-1], dtype=torch.int64)
