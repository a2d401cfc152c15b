"""Weights of unevenly full rows, as packed formats must take them, and comparison to the bit."""

from __future__ import annotations

import torch

from sparsecore.formats import CsrWeight


def random_csr(N: int, K: int, sparsity: float, dtype: torch.dtype) -> CsrWeight:
    """A weight whose rows have from none to twice the usual number of non-zeros."""
    density = (1 - sparsity) * 2 * torch.rand(N, 1)
    dense = torch.randn(N, K) * (torch.rand(N, K) < density)
    return CsrWeight.from_dense(dense).quantize() if dtype == torch.int8 else CsrWeight.from_dense(dense.to(dtype))


def assert_equal(got: CsrWeight, expected: CsrWeight) -> None:
    for name in ("row_ptr", "col_idx", "values", "scale"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
