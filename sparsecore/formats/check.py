"""What all stored formats check about their tensors, once, when they are built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsecore.errors import FormatError

MAX_INT32 = 2**31 - 1
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def type_name(value: object) -> str:
    """Name what came instead of what was expected: a dtype, or a Python type."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


def check_shape(shape: object) -> tuple[int, int]:
    """(N, K), each of which int32 can hold."""
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != 2
        or not all(type(size) is int and 0 <= size <= MAX_INT32 for size in shape)
    ):
        raise FormatError(f"expected shape (N, K) as two ints in [0, 2^31), got {shape!r}")
    return shape[0], shape[1]


def dtype_names(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_type(name: str, tensor: object, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Return a detached strided tensor of one of the dtypes."""
    expected = f"expected {name} to be a dense {dtype_names(dtypes)} tensor"
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise FormatError(f"{expected}, got {getattr(tensor, 'layout', type_name(tensor))}")
    if tensor.dtype not in dtypes:
        raise FormatError(f"{expected}, got {type_name(tensor)}; convert it with .to()")
    return tensor.detach()


def check_tensor(name: str, tensor: object, dtypes: Sequence[torch.dtype], shape: Sequence[int | None]) -> Tensor:
    """Return a detached contiguous tensor of one of the dtypes; None in shape is any size."""
    checked = check_type(name, tensor, dtypes)
    matches = checked.dim() == len(shape) and all(
        want is None or size == want for size, want in zip(checked.shape, shape, strict=True)
    )
    if not matches:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise FormatError(f"expected {name} of shape [{wanted}], got {list(checked.shape)}")
    return checked.contiguous()


def check_same_device(tensors: dict[str, Tensor]) -> None:
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise FormatError(f"expected all tensors on one device, got {devices}; move them with .to(device)")


def check_scale(scale: object, rows: int) -> Tensor:
    """One positive finite float32 scale per row."""
    scale = check_tensor("scale", scale, (torch.float32,), (rows,))
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise FormatError("expected every scale finite and above 0; quantize the weight again")
    return scale


def check_finite(weight: Tensor) -> Tensor:
    """Integers cannot hold NaN or infinity."""
    if weight.is_meta:
        raise FormatError("the weight has no values yet; initialise the model first")
    if not bool(torch.isfinite(weight).all()):
        raise FormatError("expected a finite weight to quantize, got NaN or infinity; repair the checkpoint")
    return weight


def as_matrix(weight: object, dtypes: Sequence[torch.dtype]) -> Tensor:
    """A weight [N, ...] as the matrix [N, K] that kernels multiply with."""
    checked = check_type("the weight", weight, dtypes)
    if checked.dim() < 2:
        raise FormatError(f"expected a weight of 2 or more dimensions, got {list(checked.shape)}; use .reshape()")
    return checked.flatten(1)
