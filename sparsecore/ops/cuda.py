"""Operations that only GPUs have, with their fakes: float activations by weights in the fragment and the delta format.

Int8 activations are those of ``linear_int8``, whose weights are then packed for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from sparsecore._native import has_cuda_kernels, raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import DeltaWeight, FragmentWeight
from sparsecore.ops.shared import check_devices

GpuWeight: TypeAlias = FragmentWeight | DeltaWeight

# What kernels are compiled for (cmake/python.cmake): tensor cores as of Ampere.
LEAST_CAPABILITY = (8, 0)

_OPERATIONS = {
    FragmentWeight: (raw.spmm_fragment, raw.expand_fragment),
    DeltaWeight: (raw.spmm_delta, raw.expand_delta),
}


def check_cuda(device: torch.device, what: str) -> None:
    """Raise UnsupportedError unless ``what`` can run on the device.

    Raises:
        UnsupportedError: the device is no GPU, is an older one than kernels are for, or this build has no CUDA kernels.
    """
    if device.type != "cuda":
        raise UnsupportedError(
            f"expected {what} on a CUDA device, got {device}; move the layer back with .to('cpu') to run it there"
        )
    if not has_cuda_kernels():
        raise UnsupportedError(
            f"expected a build with CUDA kernels for {what} on {device}; build sparsecore beside a torch with CUDA, "
            "with nvcc on the PATH and SPARSECORE_BUILD_CUDA=1"
        )
    if not torch.compiler.is_compiling():
        _check_capability(device)


@cache
def _check_capability(device: torch.device) -> None:
    if (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        least, got = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
        raise UnsupportedError(
            f"expected a GPU of compute capability {least} or later, got {got} ({torch.cuda.get_device_name(device)}); "
            "leave the model dense there, or run it on the CPU"
        )


def spmm_packed(
    x: Tensor,
    weight: GpuWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Multiply with a packed weight on a GPU: ``activation(x @ weight^T + bias + residual)``.

    Sums are float32 and do not depend on timing. Fragment weights multiply missing entries too, as zeros on tensor
    cores: NaN or infinity in a row of x reaches all outputs of that row. Delta weights do not; they are read once for
    every 8 rows of x, and work and bytes are in proportion to what is stored.

    Args:
        x: ``[..., K]`` float16 or bfloat16, on a CUDA device; of the weight's dtype if its values are float.
        weight: ``[N, K]`` on the same device, a FragmentWeight or a DeltaWeight.
        bias: ``[N]`` float32.
        residual: what to add, of the result's shape and dtype.
        activation: one of ``sparsecore.ops.ACTIVATIONS``.

    Returns:
        ``[..., N]`` of x's dtype.

    Raises:
        FormatError: the weight is of another class.
        UnsupportedError: x is not on a CUDA device that there are kernels for, or this build has none.
        RuntimeError: dtype, shape or device of x, bias or residual does not fit, or the weight's arrays do not fit
            each other.
    """
    multiply, _ = _operations_for(x, weight)
    return multiply(x, list(weight.tensors), weight.sizes, bias, residual, activation)


def expand_packed(x: Tensor, weight: GpuWeight) -> Tensor:
    """Return the dense weight ``[N, K]`` of x's dtype on x's device, for products with many rows of x.

    Raises:
        FormatError: as for ``spmm_packed()``, like the others.
        UnsupportedError: x is not on a CUDA device.
        RuntimeError: x and the weight do not fit together.
    """
    _, expand = _operations_for(x, weight)
    return expand(x, list(weight.tensors), weight.sizes)


def _operations_for(x: Tensor, weight: object) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if type(weight) not in _OPERATIONS:
        raise FormatError(
            f"expected a FragmentWeight or a DeltaWeight, got {type(weight).__name__}; make one with .pack() of a "
            "CsrWeight"
        )
    check_cuda(x.device, f"a {type(weight).__name__}")
    return _OPERATIONS[type(weight)]


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


@torch.library.register_fake("sparsecore::expand_delta")
@torch.library.register_fake("sparsecore::expand_fragment")
def _(x: Tensor, weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    check_devices(x, *weight)
    return x.new_empty(sizes[:2])
