"""What the operations for GPUs do without one: fakes and refusals."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight, Int8Weight, PackedInt8Weight
from sparsecore.ops import linear_int8
from sparsecore.ops.cuda import GpuWeight, expand_packed, spmm_packed

FORMATS = [FragmentWeight, DeltaWeight]


def packed(kind: type[GpuWeight]) -> GpuWeight:
    return kind.pack(CsrWeight.from_dense(torch.randn(70, 100).half()))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_cpu_is_refused(kind: type[GpuWeight]) -> None:
    x = torch.randn(2, 100).half()
    for call in (lambda: spmm_packed(x, packed(kind)), lambda: expand_packed(x, packed(kind))):
        with pytest.raises(UnsupportedError, match=f"a {kind.__name__} on a CUDA device, got cpu"):
            call()


def test_other_weights_are_refused() -> None:
    with pytest.raises(FormatError, match="expected a FragmentWeight or a DeltaWeight, got CsrWeight"):
        spmm_packed(torch.randn(2, 3), cast(Any, CsrWeight.from_dense(torch.eye(3))))


@pytest.mark.parametrize("kind", FORMATS)
def test_devices_must_agree(kind: type[GpuWeight]) -> None:
    weight = packed(kind)
    operation = raw.spmm_fragment if kind is FragmentWeight else raw.spmm_delta
    x = torch.empty(2, 100, dtype=torch.float16, device="meta")
    with pytest.raises(RuntimeError, match="device"):
        operation(x, list(weight.to("meta").tensors), weight.sizes, torch.ones(70), None, "none")


@pytest.mark.parametrize("format", ["rows", "fragment"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8], ids=str)
def test_int8_weights_for_gpus_have_fakes(format: str, dtype: torch.dtype) -> None:
    weight = PackedInt8Weight.pack(Int8Weight.from_dense(torch.randn(70, 100)), format).to("meta")
    x = torch.empty(2, 3, 100, dtype=dtype, device="meta")
    y = linear_int8(x, weight, x_scale=0.5)
    assert (y.shape, y.dtype) == ((2, 3, 70), torch.float32 if dtype == torch.int8 else dtype)
    assert linear_int8(x, weight, x_scale=0.5, y_scale=0.5).dtype == torch.int8


LARGE = (40_000, 65_536)  # more than 2^31 entries


@pytest.mark.parametrize("kind", FORMATS)
def test_fakes_of_large_weights(kind: type[GpuWeight]) -> None:
    """As torch.compile() and torch.export see them: no memory."""
    N, K = LARGE
    assert N * K > 2**31
    weight = packed(kind).to("meta")
    multiply, expand = (
        (raw.spmm_fragment, raw.expand_fragment) if kind is FragmentWeight else (raw.spmm_delta, raw.expand_delta)
    )
    sizes = [N, K, *weight.sizes[2:]]
    x = torch.empty(70_000, K, dtype=torch.float16, device="meta")
    assert multiply(x, list(weight.tensors), sizes, None, None, "none").shape == (70_000, N)
    assert expand(x, list(weight.tensors), sizes).shape == LARGE


def test_fakes_of_large_int8_weights() -> None:
    N, K = LARGE
    q = torch.empty(N, K, dtype=torch.int8, device="meta")
    sizes = [N, K, 1, 1, 1, 1, 0]
    scale, weight_sum = (torch.empty(N, dtype=dtype, device="meta") for dtype in (torch.float32, torch.int32))
    x = torch.empty(70_000, K, dtype=torch.int8, device="meta")
    settings = (None, None, 0.5, 0, None, "none", None, 0, "")
    y = raw.linear_int8(x, [q], sizes, "rows", scale, weight_sum, *settings)
    assert (y.shape, y.dtype) == ((70_000, N), torch.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_sizes_of_zero_have_fakes(kind: type[GpuWeight]) -> None:
    multiply = raw.spmm_fragment if kind is FragmentWeight else raw.spmm_delta
    for N, K, M in ((0, 7, 3), (5, 0, 3), (5, 7, 0)):
        weight = kind.pack(CsrWeight.from_dense(torch.ones(N, K).half()))
        x = torch.empty(M, K, dtype=torch.float16, device="meta")
        y = multiply(x, list(weight.to("meta").tensors), weight.sizes, None, None, "none")
        assert y.shape == (M, N)
