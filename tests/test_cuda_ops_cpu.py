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
