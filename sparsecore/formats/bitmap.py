"""BitmapWeight: a CSR weight as one bit per position and packed values. Private to its kernels; files hold CSR."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.check import FLOAT_DTYPES, dtype_names
from sparsecore.formats.csr import CsrWeight

# Rows of a block, and numbers behind the last value that kernels may load: as in csrc's views.h.
BLOCK_ROWS = 16
SLACK = 16
# In the order in which operations take them.
TENSOR_NAMES = ("block_ptr", "masks", "values")


@dataclass(frozen=True, eq=False)
class BitmapWeight:
    """A float weight ``[N, K]`` in blocks of 16 rows (csrc's views.h has a picture).

    The fewest bytes of a float weight at 30 to 90% zeros: 1/8 for each position and 4 for each stored entry, or 2 if
    its values are float16 or bfloat16. Made by ``pack()`` only; the kernels check it in every call.

    Attributes:
        block_ptr: int32 ``[blocks + 1]``, first value of each block.
        masks: int16 ``[blocks, K]``; bit r: row r of the block has an entry in that column.
        values: float32, float16 or bfloat16 ``[nnz + 16]``, by block, column and row; the last 16 are zeros.
        shape: ``(N, K)``.
    """

    block_ptr: Tensor
    masks: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: CsrWeight) -> BitmapWeight:
        """Pack a CSR weight; ``unpack()`` gives it back exactly.

        Args:
            weight: float32, float16 or bfloat16 values, which stay as they are.

        Raises:
            FormatError: the values are int8.

        Example:
            >>> import torch
            >>> packed = BitmapWeight.pack(CsrWeight.from_dense(torch.tensor([[5.0, 0, 7], [1, 2, 0]])))
            >>> packed.masks.tolist(), packed.values[:4].tolist()
            ([[3, 2, 1]], [5.0, 1.0, 2.0, 7.0])
        """
        if weight.dtype not in FLOAT_DTYPES:
            wanted = dtype_names(FLOAT_DTYPES)
            raise FormatError(f"expected {wanted} values to pack, got {weight.dtype}; call weight.to(torch.float32)")
        arrays = (weight.row_ptr, weight.col_idx, weight.values)
        block_ptr, masks, values = raw.pack_bitmap(*arrays, weight.shape[1])
        return cls(block_ptr, masks, values, weight.shape)

    def unpack(self) -> CsrWeight:
        """Return the CSR weight."""
        row_ptr, col_idx, values = raw.unpack_bitmap(list(self.tensors), self.sizes)
        return CsrWeight(row_ptr, col_idx, values, self.shape)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arrays in the order in which operations take them."""
        return self.block_ptr, self.masks, self.values

    @property
    def sizes(self) -> list[int]:
        """N and K, as operations take them."""
        return list(self.shape)

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return self.values.numel() - SLACK

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)
