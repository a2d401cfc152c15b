"""BlockCsrWeight: a CSR weight whose non-zeros come in columns of 4 or 8 neighbouring rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight

# Rows of a block that kernels know, the fewest first.
BLOCK_ROWS = (4, 8)
# In the order in which operations take them.
TENSOR_NAMES = ("block_ptr", "block_col", "values")


@dataclass(frozen=True, eq=False)
class BlockCsrWeight:
    """A float32 weight ``[N, K]`` as CSR of blocks of rows (csrc's views.h has a picture).

    A column is stored for all rows of a block, or for none of them; a zero among them is stored as one. Made by
    ``pack()`` only; the kernels check it in every call.

    Attributes:
        block_ptr: int32 ``[N / R + 1]``, first entry of each block.
        block_col: int32 ``[entries]``.
        values: float32 ``[entries, R]``.
        shape: ``(N, K)``.
    """

    block_ptr: Tensor
    block_col: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: CsrWeight, block_rows: int) -> BlockCsrWeight:
        """Pack a CSR weight; ``unpack()`` gives it back, without stored zeros.

        Args:
            weight: float32 values; N a multiple of block_rows.
            block_rows: 4 or 8.

        Raises:
            FormatError: the values are not float32, or N does not fit.
        """
        if weight.dtype != torch.float32:
            raise FormatError(f"expected float32 values to pack, got {weight.dtype}; call weight.to(torch.float32)")
        if block_rows not in BLOCK_ROWS or weight.shape[0] % block_rows:
            raise FormatError(
                f"expected blocks of 4 or 8 rows and N a multiple of them, got {block_rows} and N = {weight.shape[0]}"
            )
        block_ptr, block_col, values = raw.pack_block_csr(
            weight.row_ptr, weight.col_idx, weight.values, weight.shape[1], block_rows
        )
        return cls(block_ptr, block_col, values, weight.shape)

    def unpack(self) -> CsrWeight:
        """Return the CSR weight."""
        return CsrWeight(*unblock(*self.tensors), self.shape)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arrays in the order in which operations take them."""
        return self.block_ptr, self.block_col, self.values

    @property
    def block_rows(self) -> int:
        """R."""
        return self.values.shape[1]

    @property
    def nnz(self) -> int:
        """Stored entries, zeros among them included."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)


def unblock(block_ptr: Tensor, block_col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the arrays of block CSR into row_ptr, col_idx and values of CSR, leaving zeros out."""
    block_rows = values.shape[1]
    blocks = torch.arange(len(block_ptr) - 1).repeat_interleave(block_ptr.diff())
    rows = blocks[:, None] * block_rows + torch.arange(block_rows)
    is_kept = values != 0
    rows, order = rows[is_kept].sort(stable=True)  # columns of a row come in rising order already
    counts = torch.bincount(rows, minlength=(len(block_ptr) - 1) * block_rows)
    row_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    columns = block_col[:, None].expand(-1, block_rows)[is_kept]
    return row_ptr, columns[order], values[is_kept][order]
