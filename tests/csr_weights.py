"""CSR weights that packed formats must take and give back to the bit, and damaged ones that they must refuse."""

from __future__ import annotations

import torch
from bits import equal_bits
from torch import Tensor

from sparsecore.formats import CsrWeight


def random_csr(N: int, K: int, sparsity: float, dtype: torch.dtype = torch.float32) -> CsrWeight:
    """A weight whose rows have from none to twice the usual number of non-zeros."""
    density = (1 - sparsity) * 2 * torch.rand(N, 1)
    dense = torch.randn(N, K) * (torch.rand(N, K) < density)
    return CsrWeight.from_dense(dense).quantize() if dtype == torch.int8 else CsrWeight.from_dense(dense.to(dtype))


def special_csr(dtype: torch.dtype = torch.float32) -> CsrWeight:
    """NaN, infinities, the smallest number, and stored zeros of both signs."""
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    dense = torch.tensor([[float("nan"), -0.0, float("inf")], [smallest, 0.0, -float("inf")]], dtype=dtype)
    return CsrWeight.from_dense(dense, torch.ones_like(dense, dtype=torch.bool))


def arrays(weight: CsrWeight) -> tuple[Tensor, Tensor, Tensor]:
    return weight.row_ptr, weight.col_idx, weight.values


def assert_equal(got: CsrWeight, expected: CsrWeight) -> None:
    assert (got.scale is None) == (expected.scale is None)
    scales = [] if got.scale is None else [(got.scale, expected.scale)]
    for a, b in (*zip(arrays(got), arrays(expected), strict=True), *scales):
        assert equal_bits([a], [b])


#: What is wrong with ``damaged_csr``: at the end, which is another thread's part than the beginning.
DAMAGES = ("past K", "negative", "descending", "falling row_ptr", "short row_ptr")


def damaged_csr(damage: str) -> tuple[Tensor, Tensor, Tensor]:
    """Arrays of a full weight ``[400, 500]`` with one damage."""
    row_ptr, col_idx, values = arrays(CsrWeight.from_dense(torch.ones(400, 500)))
    if damage == "falling row_ptr":
        row_ptr[399] = 5
    elif damage == "short row_ptr":
        row_ptr[400] -= 1
    else:
        col_idx[-1] = {"past K": 500, "negative": -1, "descending": 3}[damage]
    return row_ptr, col_idx, values
