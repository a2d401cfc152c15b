"""JitProgram: machine code for one CSR weight. It lives in this process alone; files hold the CSR form."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from sparsecore._native import raw, release
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight


class JitProgram:
    """Straight-line code that multiplies with a float32 weight ``[N, K]`` (csrc's views.h has a picture).

    About 8 to 12 bytes of code and 4 of values for each entry. Generated for AVX-512.

    Args:
        weight: what it is generated from; must not change.
        kernel_size: ``(KH, KW)`` for a convolution, whose weight is ``[N, C * KH * KW]``; empty for products.

    Attributes:
        weight: as given.
        kernel_size: as given.
        number: what operations know it by; 0 where there is no generator for this machine or a filter of so many
            rows, or no memory that may be executed. The operations then multiply with the CSR weight itself.

    Example:
        >>> program = JitProgram(CsrWeight.from_dense(torch.eye(3)))
        >>> x = torch.tensor([[1.0, -2.0, 3.0]])
        >>> raw.spmm_jit(x, *program.arguments, None, None, "relu", "rows", "")
        tensor([[1., 0., 3.]])
    """

    def __init__(self, weight: CsrWeight, kernel_size: Sequence[int] = ()) -> None:
        if weight.dtype != torch.float32:
            raise FormatError(f"expected float32 values, got {weight.dtype}; call weight.to(torch.float32)")
        self.weight = weight
        self.kernel_size = tuple(kernel_size)
        arrays = weight.row_ptr, weight.col_idx, weight.values
        self.number: int = raw.jit_generate(*arrays, weight.shape[1], self.kernel_size)
        if self.number:
            weakref.finalize(self, release, raw.jit_free, self.number).atexit = False

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The weight and the program, as operations take them."""
        return self.weight.row_ptr, self.weight.col_idx, self.weight.values, self.number

    @property
    def nbytes(self) -> int:
        """Bytes in memory of the program, beside the weight's."""
        return int(raw.jit_nbytes(self.number)) if self.number else 0

    def __deepcopy__(self, memo: dict[int, Any]) -> JitProgram:
        return self  # nothing in it changes

    def __reduce__(self) -> tuple[Any, ...]:
        return JitProgram, (self.weight, self.kernel_size)
