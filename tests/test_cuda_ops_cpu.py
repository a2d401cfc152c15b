"""What the operations for GPUs do without one: fakes, refusals, quantized rows."""

from __future__ import annotations

import pytest
import torch

from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import CsrWeight, FragmentWeight
from sparsecore.ops.cuda import linear_int8_rows, quantize_rows, spmm_fragment_int8


def int8_weight() -> FragmentWeight:
    return FragmentWeight.pack(CsrWeight.from_dense(torch.randn(70, 100)).quantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_rounded_to_the_nearest_step(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 5, 100) * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    x[1, 2] = 0
    rounded, scale = quantize_rows(x)
    assert (rounded.dtype, rounded.shape, scale.shape) == (torch.int8, x.shape, (15,))
    back = rounded.double() * scale.view(3, 5, 1).double()
    assert bool(((back - x.double()).abs() <= scale.view(3, 5, 1) * 0.5001).all())
    largest = rounded.abs().amax(-1)
    assert torch.equal(largest == 0, (x == 0).all(-1))
    assert bool((largest[largest > 0] == 127).all())
    assert quantize_rows(torch.empty(2, 0))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_int8_operations_have_fakes(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    x = torch.empty(2, 3, 100, dtype=torch.int8, device="meta")
    x_scale, scale = torch.empty(6, device="meta"), torch.empty(70, device="meta")
    weight = int8_weight().to("meta")
    dense = torch.empty(70, 100, dtype=torch.int8, device="meta")
    for y in (
        raw.spmm_fragment_int8(x, x_scale, list(weight.tensors), weight.sizes, None, None, "none", name),
        raw.linear_int8_rows(x, x_scale, dense, scale, None, None, "none", name),
    ):
        assert (y.shape, y.dtype) == ((2, 3, 70), dtype)


def test_the_cpu_is_refused() -> None:
    x, x_scale = quantize_rows(torch.randn(2, 100))
    with pytest.raises(UnsupportedError, match="int8 activations on a CUDA device, got cpu"):
        spmm_fragment_int8(x, x_scale, int8_weight())
    with pytest.raises(UnsupportedError, match="int8 activations on a CUDA device, got cpu"):
        linear_int8_rows(x, x_scale, torch.zeros(4, 100, dtype=torch.int8), torch.ones(4))


def test_devices_must_agree() -> None:
    x = torch.empty(2, 100, dtype=torch.int8, device="meta")
    weight = int8_weight()
    with pytest.raises(RuntimeError, match="device"):
        raw.spmm_fragment_int8(
            x, torch.ones(2), list(weight.to("meta").tensors), weight.sizes, None, None, "none", "float16"
        )
