"""The operation on binary and ternary weights: a part of ``sparsecore.ops``, which takes it from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import PlanesWeight
from sparsecore.ops.matmul import feature_dim, save_spmm
from sparsecore.ops.shared import output_gradients


def spmm_planes(
    x: Tensor,
    weight: PlanesWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    layout: str = "rows",
    kernel: str = "",
) -> Tensor:
    """Multiply dense activations with a binary or ternary weight: ``activation(x @ weight^T + bias + residual)``.

    Runs from the bits: activations are added and subtracted, and their sums multiplied with the scales. A zero of the
    weight contributes nothing: 0 * NaN is skipped. Sums are float32 for every dtype of x. Gradients reach x, bias and
    residual.

    Args:
        x: float32, bfloat16 or float16. ``[..., K]`` for layout rows; ``[batch, K, ...]`` for columns, a 1x1
            convolution.
        weight: ``[N, K]``.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ACTIVATIONS; gelu is the exact one (erf).
        layout: rows or columns.
        kernel: name of a kernel from ``sparsecore info``; empty takes the first that fits this machine.

    Returns:
        x's dtype and shape, with N in the place of K.

    Raises:
        FormatError: weight is not a PlanesWeight.
        RuntimeError: dtype, shape or device of x, bias or residual does not fit.

    Example:
        >>> from sparsecore.formats import TernaryWeight
        >>> weight = PlanesWeight.pack(TernaryWeight.from_dense(torch.tensor([[0.5, 0, -0.25], [0, 0, 2]])))
        >>> spmm_planes(torch.tensor([[4.0, float("nan"), 8]]), weight, torch.tensor([1.0, 0]))
        tensor([[ 1., 16.]])
    """
    if not isinstance(weight, PlanesWeight):
        raise FormatError(f"expected a PlanesWeight, got {type(weight).__name__}; make one with PlanesWeight.pack()")
    return raw.spmm_planes(x, list(weight.tensors), list(weight.shape), bias, residual, activation, layout, kernel)


@torch.library.custom_op("sparsecore::unpack_planes", mutates_args=())
def _unpack_planes(words: Tensor, scale: Tensor, sizes: Sequence[int]) -> Tensor:
    return PlanesWeight(words, scale, (sizes[0], sizes[1])).unpack().to_dense()


@_unpack_planes.register_fake
def _(words: Tensor, scale: Tensor, sizes: Sequence[int]) -> Tensor:
    return scale.new_empty(list(sizes))


def _setup_spmm_planes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, bias, residual, ctx.activation, ctx.layout, _ = inputs
    ctx.bias_index = 3
    save_spmm(ctx, x, weight, bias, residual)


def _backward_spmm_planes(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, residual, bias, *weight = ctx.saved_tensors
    dim = feature_dim(ctx.layout)
    grad, grad_bias, grad_residual = output_gradients(
        ctx, grad, bias, lambda: raw.spmm_planes(x, weight, ctx.sizes, bias, residual, "none", ctx.layout, ""), dim
    )
    grad_x = None
    if ctx.needs_input_grad[0]:
        dense = raw.unpack_planes(*weight, ctx.sizes).to(grad.dtype)
        grad_x = (grad.movedim(dim, -1) @ dense).movedim(-1, dim)
    return grad_x, [None] * len(weight), None, grad_bias, grad_residual, None, None, None


torch.library.register_autograd("sparsecore::spmm_planes", _backward_spmm_planes, setup_context=_setup_spmm_planes)
