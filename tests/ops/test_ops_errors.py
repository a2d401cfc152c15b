"""Damaged weights and bad arguments of products and convolutions with float weights."""

from __future__ import annotations

import contextlib

import pytest
import torch
from float_products import csr_tensors, random_sparse
from torch import Tensor

import sparsecore
from sparsecore import CsrWeight, ops
from sparsecore.formats import PanelWeight

raw = torch.ops.sparsecore
GOOD = CsrWeight.from_dense(torch.eye(4))
POINTWISE = ([1, 1], [1, 1], [0, 0], [1, 1])


def blocks_of(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """One block with four columns."""
    row_ptr, col_idx = torch.tensor([0, 4], dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    return row_ptr, col_idx, torch.ones(4, rows)


@pytest.mark.parametrize(
    ("row_ptr", "col_idx", "message"),
    [
        ([0, 1, 2], [0, 4], "col_idx must be inside"),
        ([0, 1, 2], [-1, 0], "col_idx must be inside"),
        ([0, 2, 2], [1, 1], "strictly ascending"),
        ([0, 2, 1], [0, 1], "row_ptr must rise"),
        ([0, 1, 9], [0, 1], "row_ptr must rise"),
        ([-3, 1, 2], [0, 1], "row_ptr must rise"),
    ],
)
@pytest.mark.parametrize("rows", [1, 9])
def test_damaged_indices_are_found_in_every_call(
    row_ptr: list[int], col_idx: list[int], message: str, rows: int
) -> None:
    arrays = (torch.tensor(row_ptr, dtype=torch.int32), torch.tensor(col_idx, dtype=torch.int32))
    values, x = torch.ones(len(col_idx)), torch.randn(rows, 4)
    with pytest.raises(RuntimeError, match=message):
        raw.spmm_csr(x, *arrays, values)
    images = x.view(rows, 4, 1, 1)
    for form in (values, torch.ones(len(col_idx), 4), torch.ones(len(col_idx), 8)):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_csr(x, *arrays, form)
        with pytest.raises(RuntimeError, match=message):
            raw.conv2d_csr(images, *arrays, form, None, None, *POINTWISE)
    with pytest.raises(RuntimeError, match=r"row_ptr|col_idx"):
        raw.unpack_csr(*arrays, values, 4)
    with pytest.raises(RuntimeError, match=r"row_ptr|col_idx"):
        raw.transpose_csr(*arrays, values, 4)


def test_damaged_panels_are_found_in_every_call() -> None:
    packed = PanelWeight.pack(CsrWeight.from_dense(random_sparse(40, 30)), 8)
    plain = (None, None, "none", "rows", "")
    x = torch.randn(3, 30)
    for index, tensor in enumerate(packed.tensors[:5]):
        for value in (-1, 255, 3):
            tensors = list(packed.tensors)
            tensors[index] = tensor.clone()
            tensors[index][tensor.numel() // 2] = value if tensor.dtype == torch.int32 else value & 255
            # Some changes are another valid weight.
            with contextlib.suppress(RuntimeError):
                raw.spmm_panel(x, tensors, packed.sizes, *plain)
        shorter = [t[:-1] if i == index else t for i, t in enumerate(packed.tensors)]
        with pytest.raises(RuntimeError, match=r"fit together|panel weight"):
            raw.spmm_panel(x, shorter, packed.sizes, *plain)
    high = list(packed.tensors)
    high[4] = torch.full_like(high[4], 200)
    with pytest.raises(RuntimeError, match="panel_col must be inside"):
        raw.spmm_panel(x, high, packed.sizes, *plain)
    with pytest.raises(RuntimeError, match="expected a panel weight"):
        raw.spmm_panel(x, list(packed.tensors), [40, 30, 0, 8], *plain)
    with pytest.raises(RuntimeError, match="K = 30"):
        raw.spmm_panel(torch.randn(3, 31), list(packed.tensors), packed.sizes, *plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.spmm(torch.randn(2, 4).double(), GOOD), "expected float32, float16 or bfloat16 x"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(4), layout="diagonal"), "layout"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(3)), r"bias of shape \[4\]"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(4).half()), "float32 bias"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, activation="tanh"), "activation"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, kernel="magic"), "expected a kernel"),
        (lambda: ops.spmm(torch.tensor(1.0), GOOD), "expected x"),
        (lambda: ops.spmm(torch.randn(2, 3), GOOD), "expected 4 in dimension -1"),
        (lambda: ops.spmm(torch.randn(2, 9), GOOD), "expected 4 in dimension -1"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2), GOOD, kernel_size=1), "expected x"),
        (lambda: ops.conv2d(torch.randn(1, 1, 1, 9), GOOD, kernel_size=2), "at least 2 pixels"),
        (lambda: ops.conv2d(torch.randn(1, 3, 2, 2), GOOD, kernel_size=1), "got K = 4 for"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, stride=0), "stride"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, groups=3), "groups"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, padding=-1), "padding"),
        (lambda: ops.spmm(torch.randn(2, 4), torch.eye(4)), "expected a CsrWeight"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, residual=torch.ones(2, 3)), r"residual of .* shape \[2, 4\], got"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, residual=torch.ones(2, 4).half()), "residual of the output's dtype"),
        (lambda: ops.spmm(torch.randn(2, 4).half(), GOOD, residual=torch.ones(2, 4)), "residual of the output's dtype"),
        (
            lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, residual=torch.ones(1, 4, 1, 1)),
            r"residual of .* shape \[1, 4, 2, 2\], got",
        ),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2).double(), GOOD, kernel_size=1), "float16 or bfloat16 x"),
        (lambda: raw.spmm_csr(torch.randn(2, 4), *blocks_of(3)), r"blocks of 4 or 8 rows, got \[4, 3\]"),
        (lambda: raw.spmm_csr(torch.randn(2, 4), *blocks_of(0)), r"blocks of 4 or 8 rows, got \[4, 0\]"),
        (lambda: raw.spmm_csr(torch.randn(2, 3), *blocks_of(4)), "col_idx must be inside"),
        (
            lambda: raw.conv2d_csr(torch.randn(1, 8, 2, 2), *blocks_of(8), None, None, *POINTWISE, 2),
            "blocks inside of groups",
        ),
        (lambda: raw.pack_block_csr(*csr_tensors(GOOD), 4, 3), "block"),
        (lambda: raw.pack_block_csr(*csr_tensors(GOOD), 4, 8), "N"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: object, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()


def test_an_argument_on_the_meta_device_is_an_error() -> None:
    x, weight, bias = torch.randn(2, 6), CsrWeight.from_dense(torch.randn(8, 6)), torch.randn(8)
    for arguments in (
        {"bias": bias.to("meta")},
        {"bias": bias, "residual": torch.empty(2, 8, device="meta")},
    ):
        with pytest.raises(RuntimeError, match="one device"):
            ops.spmm(x, weight, **arguments)
    with pytest.raises(RuntimeError, match="one device"):
        sparsecore.nn.PanelLinear(weight, bias).to("meta")(x)
