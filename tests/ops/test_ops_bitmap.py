"""spmm_bitmap, for rows and values of 32 or 16 bits, in every kernel and dtype: results, gradients, damaged weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from float_products import DTYPES, csr_tensors, kernel_names, random_sparse, run_bitmap, run_spmm
from oracle import assert_within, dense_reference
from torch import nn
from torch.library import opcheck

from sparsecore import CsrWeight
from sparsecore.formats import BitmapWeight

raw = torch.ops.sparsecore


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("spmm_bitmap"))
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (3, 1, 1), (7, 70, 33), (8, 5, 64), (13, 200, 130)])
def test_bitmap_of_every_dtype(
    kernel: str, value_dtype: torch.dtype, dtype: torch.dtype, M: int, K: int, N: int
) -> None:
    linear = nn.Linear(K, N)
    linear.weight.data = random_sparse(N, K).to(value_dtype).float()
    weight = CsrWeight.from_dense(linear.weight).to(value_dtype)
    x, residual = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    y = run_bitmap(x, weight, linear.bias, residual, "silu", kernel)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(linear, x, "silu", residual))
    assert_within(run_bitmap(x, weight, linear.bias, None, "relu", kernel), *dense_reference(linear, x, "relu"))
    single = torch.cat([run_bitmap(row, weight, linear.bias, None, "relu", kernel) for row in x.split(1)])
    assert torch.equal(single, run_bitmap(x, weight, linear.bias, None, "relu", kernel)), "rows do not depend on M"


@pytest.mark.parametrize("kernel", kernel_names("spmm_bitmap"))
def test_bitmap_skips_nan_of_missing_entries(kernel: str) -> None:
    dense, x = random_sparse(40, 30), torch.randn(5, 30)
    x[2, 7], x[2, 11], x[4, 3] = torch.nan, torch.inf, -torch.inf
    y = run_bitmap(x, CsrWeight.from_dense(dense), kernel=kernel)
    terms = torch.where(dense[None] != 0, dense[None] * x[:, None], 0.0)
    expected = terms.double().sum(-1)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert bool(y[2].isfinite().any())


def test_bitmap_is_the_same_on_any_number_of_threads() -> None:
    dense = torch.randn(1000, 700) * (torch.rand(1000, 700) < torch.rand(1000, 1))
    weight = CsrWeight.from_dense(dense).to(torch.bfloat16)
    for M in (1, 11):
        x = torch.randn(M, 700)
        assert_same_on_any_number_of_threads(lambda x=x: [run_bitmap(x, weight)])


def test_bitmap_gradients_equal_those_of_csr() -> None:
    for dtype in DTYPES:
        dense = nn.Linear(30, 20)
        dense.weight.data = random_sparse(20, 30).to(dtype).float()
        csr = CsrWeight.from_dense(dense.weight)
        x, residual = torch.randn(7, 30), torch.randn(7, 20)
        results = []
        for run, weight in ((run_bitmap, csr.to(dtype)), (partial(run_spmm, "csr"), csr)):
            leaves = [t.detach().clone().requires_grad_() for t in (x, dense.bias, residual)]
            y = run(leaves[0], weight, leaves[1], leaves[2], "gelu")
            results.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_bitmap(dtype: torch.dtype) -> None:
    weight = CsrWeight.from_dense(random_sparse(18, 5)).to(dtype)
    bitmap = BitmapWeight.pack(weight)
    x, bias = torch.randn(4, 5).to(dtype).requires_grad_(), torch.randn(18, requires_grad=True)
    residual = torch.randn(4, 18).to(dtype).requires_grad_()
    opcheck(raw.spmm_bitmap.default, (x, list(bitmap.tensors), bitmap.sizes, bias, residual, "relu", ""))
    opcheck(raw.spmm_bitmap.default, (x, list(bitmap.tensors), bitmap.sizes, None, None, "none", ""))
    opcheck(raw.pack_bitmap.default, (*csr_tensors(weight), 5))
    opcheck(raw.unpack_bitmap.default, (list(bitmap.tensors), bitmap.sizes))


def test_damaged_bitmaps_are_found_in_every_call() -> None:
    bitmap = BitmapWeight.pack(CsrWeight.from_dense(random_sparse(40, 30)))
    x, plain = torch.randn(3, 30), (None, None, "none", "")
    for index, (place, value) in ((0, (1, -1)), (0, (3, 10**6)), (0, (2, 7)), (1, (0, -1)), (1, (2, 0))):
        tensors = list(bitmap.tensors)
        tensors[index] = tensors[index].clone()
        tensors[index][place] = value
        with pytest.raises(RuntimeError, match="invalid bitmap weight"):
            raw.spmm_bitmap(x, tensors, bitmap.sizes, *plain)
        with pytest.raises(RuntimeError, match="invalid bitmap weight"):
            raw.unpack_bitmap(tensors, bitmap.sizes)
    block_ptr, masks, values = bitmap.tensors
    for tensors, sizes, message in (
        ([block_ptr[:-1], masks, values], [40, 30], "fit together"),
        ([block_ptr, masks[:, 1:].contiguous(), values], [40, 30], "fit together"),
        ([block_ptr, masks, values[:15]], [40, 30], "fit together"),
        ([block_ptr, masks, values], [50, 30], "fit together"),
        ([block_ptr, masks, values[:-1]], [40, 30], "invalid bitmap weight"),
        ([block_ptr, masks.int(), values], [40, 30], "expected int16 masks"),
        ([block_ptr, masks, values.double()], [40, 30], "expected float32, float16 or bfloat16 values, got float64"),
        ([block_ptr, masks], [40, 30], "3 tensors"),
        ([block_ptr, masks, values], [-1, 30], "N and K"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_bitmap(x, tensors, sizes, *plain)
    with pytest.raises(RuntimeError, match="K = 30"):
        raw.spmm_bitmap(torch.randn(3, 31), list(bitmap.tensors), bitmap.sizes, *plain)
    past = masks.clone()
    past[2] = (past[2] & 0xFF) << 1  # rows 33 to 40, of which 40 is not there
    with pytest.raises(RuntimeError, match="rows past N"):
        raw.spmm_bitmap(x, [block_ptr, past, values], bitmap.sizes, *plain)
