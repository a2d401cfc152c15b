"""Operations that only GPUs have, with their fakes: weights in the fragment and the delta format, and int8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsecore._native import has_cuda_kernels, raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats.delta import DeltaWeight
from sparsecore.formats.fragment import FragmentWeight
from sparsecore.ops.shared import check_devices

INT8_MAX = 127


def check_cuda(device: torch.device, what: str) -> None:
    """Raise UnsupportedError unless ``what`` can run on the device.

    Raises:
        UnsupportedError: the device is no GPU, or this build has no CUDA kernels.
    """
    if device.type != "cuda":
        raise UnsupportedError(f"expected {what} on a CUDA device, got {device}; SparseLinear runs on the CPU")
    if not has_cuda_kernels():
        raise UnsupportedError(
            f"expected a build with CUDA kernels for {what} on {device}; build sparsecore beside a torch with CUDA, "
            "with nvcc on the PATH and SPARSECORE_BUILD_CUDA=1"
        )


def spmm_fragment(
    x: Tensor,
    weight: FragmentWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Multiply with a fragment weight on a GPU: ``activation(x @ weight^T + bias + residual)``.

    Sums are float32 and do not depend on timing. Tensor cores multiply missing entries too, as zeros: NaN or infinity
    in a row of x reaches all outputs of that row.

    Args:
        x: ``[..., K]`` float16 or bfloat16, on a CUDA device; of the weight's dtype if its values are float.
        weight: ``[N, K]`` on the same device.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ``sparsecore.ops.ACTIVATIONS``.

    Returns:
        ``[..., N]`` of x's dtype.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: dtype, shape or device of x, bias or residual does not fit.
    """
    check_cuda(x.device, "a fragment weight")
    return raw.spmm_fragment(x, list(weight.tensors), weight.sizes, bias, residual, activation)


def expand_fragment(x: Tensor, weight: FragmentWeight) -> Tensor:
    """Return the dense weight ``[N, K]`` of x's dtype on x's device, for products with many rows of x.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: x and the weight do not fit together.
    """
    check_cuda(x.device, "a fragment weight")
    return raw.expand_fragment(x, list(weight.tensors), weight.sizes)


def spmm_delta(
    x: Tensor,
    weight: DeltaWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Multiply with a delta weight on a GPU: ``activation(x @ weight^T + bias + residual)``.

    Work and bytes are in proportion to what is stored; the weight is read once for every 8 rows of x. Sums are float32
    and do not depend on timing. A missing entry is not multiplied with.

    Args:
        x: ``[..., K]`` float16 or bfloat16, on a CUDA device; of the weight's dtype if its values are float.
        weight: ``[N, K]`` on the same device.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ``sparsecore.ops.ACTIVATIONS``.

    Returns:
        ``[..., N]`` of x's dtype.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: dtype, shape or device of x, bias or residual does not fit.
    """
    check_cuda(x.device, "a delta weight")
    return raw.spmm_delta(x, list(weight.tensors), weight.sizes, bias, residual, activation)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to int8 with a scale for each row, 1/127 of its largest absolute value.

    Args:
        x: ``[..., K]`` float, on any device.

    Returns:
        int8 ``[..., K]``, and float32 ``[M]`` of all rows; 1 for a row of zeros.

    Example:
        >>> quantize_rows(torch.tensor([[1.0, -2.0, 0.0]]))[0].tolist()
        [[64, -127, 0]]
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros(*x.shape[:-1], 1)
    scale = torch.where(largest == 0, 1.0, largest / INT8_MAX)
    return (wide / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale.flatten()


def linear_int8_rows(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Multiply int8 by dense int8 on a GPU: ``activation(x_scale * scale * (x @ weight^T) + bias + residual)``.

    Sums are exact, in int32. For few rows of x: the weight is read once for every 32.

    Args:
        x: ``[..., K]`` int8, on a CUDA device; K at most 65536.
        x_scale: float32 ``[M]``, of the rows of x.
        weight: ``[N, K]`` int8.
        scale: float32 ``[N]``.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ``sparsecore.ops.ACTIVATIONS``.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[..., N]`` of that dtype.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: dtype, shape or device of an argument does not fit.
    """
    check_cuda(x.device, "int8 activations")
    return raw.linear_int8_rows(x, x_scale, weight, scale, bias, residual, activation, _name(dtype))


def spmm_fragment_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: FragmentWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Multiply int8 by a fragment weight of 8 bits on a GPU; the result equals ``linear_int8_rows()``'s.

    Args:
        x: ``[..., K]`` int8, on a CUDA device; K at most 65536.
        x_scale: float32 ``[M]``, of the rows of x.
        weight: ``[N, K]`` with int8 values.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ``sparsecore.ops.ACTIVATIONS``.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[..., N]`` of that dtype.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: dtype, shape or device of an argument does not fit.
    """
    check_cuda(x.device, "int8 activations")
    arrays = (list(weight.tensors), weight.sizes)
    return raw.spmm_fragment_int8(x, x_scale, *arrays, bias, residual, activation, _name(dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.library.register_fake("sparsecore::linear_int8_rows")
def _(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
) -> Tensor:
    check_devices(x, x_scale, weight, scale, bias, residual)
    return x.new_empty([*x.shape[:-1], weight.shape[0]], dtype=getattr(torch, dtype))


@torch.library.register_fake("sparsecore::spmm_fragment_int8")
def _(
    x: Tensor,
    x_scale: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
) -> Tensor:
    check_devices(x, x_scale, *weight, bias, residual)
    return x.new_empty([*x.shape[:-1], sizes[0]], dtype=getattr(torch, dtype))


@torch.library.register_fake("sparsecore::spmm_delta")
@torch.library.register_fake("sparsecore::spmm_fragment")
def _(
    x: Tensor,
    weight: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    check_devices(x, *weight, bias, residual)
    return x.new_empty([*x.shape[:-1], sizes[0]])


def expand_delta(x: Tensor, weight: DeltaWeight) -> Tensor:
    """Return the dense weight ``[N, K]`` of x's dtype on x's device, for products with many rows of x.

    Raises:
        UnsupportedError: x is not on a CUDA device, or this build has no CUDA kernels.
        RuntimeError: x and the weight do not fit together.
    """
    check_cuda(x.device, "a delta weight")
    return raw.expand_delta(x, list(weight.tensors), weight.sizes)


@torch.library.register_fake("sparsecore::expand_delta")
@torch.library.register_fake("sparsecore::expand_fragment")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    check_devices(x, *weight)
    return x.new_empty(sizes[:2])
