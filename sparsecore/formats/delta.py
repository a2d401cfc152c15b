"""DeltaWeight: a very sparse weight by distances between its columns. Private to the CUDA kernels; files hold CSR."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight

# In the order in which operations take them.
TENSOR_NAMES = ("quad_ptr", "codes", "values", "block_ptr", "scale")
# Blocks that share the work on a GPU: four for each of the 132 multiprocessors of an H100 or H200. Any number is right.
NUM_BLOCKS = 528
# Columns of a panel, and codes that are read together.
PANEL, QUAD = 4096, 4
VALUE_DTYPES = (torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True, eq=False)
class DeltaWeight:
    """A weight ``[N, K]`` as a byte of distance and a value for each stored entry (csrc's delta_layout.h).

    Costs 3 bytes for each stored entry, 2 with int8 values, and one such more where 255 columns or more lie between
    two entries: for weights with 85% zeros and more. Made by ``pack()`` on the CPU; ``to()`` moves it to a GPU.

    Attributes:
        quad_ptr: int32 ``[panels * N + 1]``, first four codes of each row in each panel of 4096 columns.
        codes: uint8, distances: 0 to 254, or 255 where no entry is.
        values: float16, bfloat16 or int8, one for each code.
        block_ptr: int32 ``[num_blocks + 1]``, ranges of rows of about equal work.
        scale: float32 ``[N]`` for int8, else ``[0]``.
        shape: ``(N, K)``.
    """

    quad_ptr: Tensor
    codes: Tensor
    values: Tensor
    block_ptr: Tensor
    scale: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: CsrWeight, num_blocks: int = NUM_BLOCKS) -> DeltaWeight:
        """Pack a CSR weight; ``unpack()`` gives it back exactly.

        Args:
            weight: float16, bfloat16 or int8 values, on the CPU.
            num_blocks: ranges that rows are shared out to, 1 to 65536.

        Raises:
            FormatError: the values are float32.

        Example:
            >>> weight = CsrWeight.from_dense(torch.eye(3, dtype=torch.float16))
            >>> DeltaWeight.pack(weight).unpack().to_dense().diagonal().tolist()
            [1.0, 1.0, 1.0]
        """
        if weight.dtype not in VALUE_DTYPES:
            raise FormatError(
                f"expected float16, bfloat16 or int8 values to pack, got {weight.dtype}; "
                "call weight.to(torch.float16) or quantize()"
            )
        scale = torch.empty(0) if weight.scale is None else weight.scale
        arrays = (weight.row_ptr, weight.col_idx, weight.values)
        quad_ptr, codes, values, block_ptr = raw.pack_delta(*arrays, weight.shape[1], num_blocks)
        return cls(quad_ptr, codes, values, block_ptr, scale, weight.shape)

    def unpack(self) -> CsrWeight:
        """Return the CSR weight that was packed.

        Raises:
            RuntimeError: the arrays are not what ``pack()`` writes.
        """
        row_ptr, col_idx, values = raw.unpack_delta([tensor.cpu() for tensor in self.tensors], self.sizes)
        scale = self.scale.cpu() if self.dtype == torch.int8 else None
        return CsrWeight(row_ptr, col_idx, values, self.shape, scale)

    def to(self, device: Any) -> DeltaWeight:
        """Return the same weight on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSOR_NAMES})

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays in the order in which operations take them."""
        return tuple(getattr(self, name) for name in TENSOR_NAMES)

    @property
    def sizes(self) -> list[int]:
        """N and K."""
        return list(self.shape)

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments of the constructor that are no arrays."""
        return {"shape": self.shape}

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)
