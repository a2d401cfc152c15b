"""int8 weights for every kernel of this machine, and what linear_int8 and conv2d_int8 must give, in exact integers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from oracle import ACTIVATIONS, UNIT, assert_within
from torch import Tensor

from sparsecore import _C, Int8Weight, ops
from sparsecore.formats import PackedInt8Weight

OPERATIONS = {"int8": "gemm_int8", "bitmap": "bitmap_int8", "lookup": "lookup_int8"}
Packing = tuple[int, int, bool]
# Safe pairs are right for every kernel.
PACKINGS: list[Packing] = [
    (16, 64, True),
    (16, 256, True),
    (16, 16, True),
    (8, 16, True),
    (4, 16, True),
    (4, 128, True),
]


# --- weights, and the kernels that run them ---


def random_weight(N: int, K: int, density: float = 0.4) -> Int8Weight:
    """All integers, -128 too; scales are powers of two, so that sums are scaled exactly."""
    q = torch.randint(-128, 128, (N, K)) * (torch.rand(N, K) < density)
    return Int8Weight(q.to(torch.int8), 2.0 ** -torch.arange(N).remainder(8).float())


@functools.cache
def packings_of(format: str, kernel: str) -> list[Packing]:
    """The packings that a kernel supports: an unsupported one is an error with the names of those that do."""
    weight, found = Int8Weight.from_dense(torch.eye(4)), []
    for packing in PACKINGS:
        packed = PackedInt8Weight.pack(weight, format, packing=packing)
        try:
            ops.linear_int8(torch.ones(1, 4), packed, kernel=kernel)
        except RuntimeError as error:
            if "expected a kernel" not in str(error):
                raise
        else:
            found.append(packing)
    return found


def variants(weight: Int8Weight, **settings: int) -> Iterator[tuple[PackedInt8Weight, str]]:
    """Every format and kernel of this machine, with a weight packed for it; first the ones that are chosen here."""
    for format, operation in OPERATIONS.items():
        yield PackedInt8Weight.pack(weight, format, **settings), ""
        for row in _C.kernels():
            if row["op"] != operation or not row["available"]:
                continue
            packings = packings_of(format, row["name"])
            assert packings, row["name"]
            for packing in packings:
                yield PackedInt8Weight.pack(weight, format, packing=packing, **settings), row["name"]


def arguments(packed: PackedInt8Weight) -> tuple[Any, ...]:
    """What the raw operations take for a weight."""
    return list(packed.tensors), packed.shape.sizes, packed.format, packed.scale, packed.weight_sum


# --- the contract in exact integers, then in the float32 steps that ops.h states ---


def quantized(
    x: Tensor, x_scale: float | None = None, x_zero_point: int = 0, x_channel_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Integers less their zero point in float64, and a scale per image, of ``x [images, ...]``."""
    if x.dtype == torch.int8:
        assert x_scale is not None
        return x.double() - x_zero_point, torch.full((len(x),), x_scale)
    x = x.float()
    if x_channel_scale is not None:
        x = x * x_channel_scale.reciprocal().view(-1, *[1] * (x.dim() - 2))
    if x_scale is not None:
        scale = torch.full((len(x),), x_scale)
    else:
        absmax = x.abs().flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))
        scale = torch.where(absmax == 0, torch.ones_like(absmax), absmax / 127)
        scale[~absmax.isfinite()] = torch.nan
    q = torch.round(x * scale.reciprocal().view(-1, *[1] * (x.dim() - 1))) + x_zero_point
    q = q.nan_to_num(x_zero_point, 127, -128).clamp(-128, 127)
    return q.double() - x_zero_point, scale


def check_exact(
    y: Tensor,
    acc: Tensor,
    x_scale: Tensor,
    weight: Int8Weight,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    y_scale: float | None = None,
    y_zero_point: int = 0,
) -> None:
    """Hold y against exact sums ``[images, N, ...]``: equal, but for the error that an activation may have."""
    rest = [1] * (acc.dim() - 2)
    scale = (x_scale[:, None] * weight.scale).view(len(x_scale), -1, *rest)
    v = acc.float().double() * scale.double()
    if bias is not None:
        v = v + bias.double().view(-1, *rest)
    v = v.float()
    if residual is not None:
        v = v + residual.float()
    function, _, added = ACTIVATIONS[activation]
    if y_scale is not None:
        assert added == 0
        q = torch.round(function(v) * torch.tensor(y_scale).reciprocal()) + y_zero_point
        assert torch.equal(y, q.nan_to_num(y_zero_point).clamp(-128, 127).to(torch.int8))
    elif added == 0:
        assert torch.equal(y.nan_to_num(12345), function(v).to(y.dtype).nan_to_num(12345))
    else:
        exact = function(v.double())
        assert_within(y, exact, added * v.double().abs() + UNIT * exact.abs() * 2)


def linear_sums(x: Tensor, weight: Int8Weight, **quantizer: Any) -> tuple[Tensor, Tensor]:
    q, scale = quantized(x, **quantizer)
    return q @ weight.q.double().T, scale


def conv_sums(
    x: Tensor, weight: Int8Weight, kernel_size: tuple[int, int], quantizer: dict[str, Any], **settings: Any
) -> tuple[Tensor, Tensor]:
    q, scale = quantized(x, **quantizer)
    filters = weight.q.double().view(weight.shape[0], -1, *kernel_size)
    return F.conv2d(q, filters, **settings), scale
