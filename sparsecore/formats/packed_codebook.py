"""PackedCodebookWeight: a codebook weight and where its columns start. Private to its kernels, never in a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import num_field_bytes
from sparsecore.formats.check import MAX_INT32
from sparsecore.formats.codebook import CodebookWeight

# As in csrc's codebook.h: rows of a block, and bytes behind the fields.
BLOCK_ROWS = 1024
SLACK = 8
# In the order in which operations take them.
TENSOR_NAMES = ("codebook", "codes", "gaps", "segment_ptr", "segment_zeros")


@dataclass(frozen=True, eq=False)
class PackedCodebookWeight:
    """A ``CodebookWeight`` whose fields stay as they are, and an index into them (csrc's codebook.h has a picture).

    Made by ``pack()`` only; the kernels check the index in every call, and no field can lead them astray.

    Attributes:
        codebook: float32 ``[2**bits]``, the values, then zeros.
        codes: uint8, the fields and 8 zeros.
        gaps: uint8, the same.
        segment_ptr: int32 ``[K * blocks + 1]``, first entry of each block of rows of each column.
        segment_zeros: uint8 ``[K * blocks]``, zeros that the gap of that entry counts before the block.
        num_values: Values that the codebook really has.
        sizes: N, K, entries, bits, gap_bits, block_rows, as operations take them.
    """

    codebook: Tensor
    codes: Tensor
    gaps: Tensor
    segment_ptr: Tensor
    segment_zeros: Tensor
    num_values: int
    sizes: list[int]

    @classmethod
    def pack(cls, weight: CodebookWeight, block_rows: int = BLOCK_ROWS) -> PackedCodebookWeight:
        """Index a weight; ``unpack()`` gives it back exactly.

        Args:
            weight: Any.
            block_rows: Rows of a block, 1 to 1024. Blocks are what threads share; results do not depend on them.

        Raises:
            FormatError: There are no such blocks, or 2^31 or more of them.

        Example:
            >>> weight = CodebookWeight.from_dense(torch.tensor([[5.0, 0], [0, 4], [0, 0]]))
            >>> PackedCodebookWeight.pack(weight).segment_ptr.tolist()
            [0, 1, 2]
        """
        N, K = weight.shape
        if not 1 <= block_rows <= BLOCK_ROWS:
            raise FormatError(f"expected block_rows in [1, {BLOCK_ROWS}], got {block_rows}")
        num_blocks = -(-N // block_rows)
        if num_blocks * K > MAX_INT32:
            raise FormatError(f"expected fewer than 2^31 blocks of columns, got {num_blocks * K}; split the weight")
        segment_ptr, segment_zeros = _index_segments(weight, num_blocks, block_rows)
        pad = torch.nn.functional.pad
        return cls(
            pad(weight.codebook, (0, 2**weight.bits - weight.codebook.numel())),
            pad(weight.codes, (0, SLACK)),
            pad(weight.gaps, (0, SLACK)),
            segment_ptr,
            segment_zeros,
            weight.codebook.numel(),
            [N, K, weight.num_entries, weight.bits, weight.gap_bits, block_rows],
        )

    def unpack(self) -> CodebookWeight:
        """Return the weight."""
        return unpack(self.tensors, self.sizes, self.num_values)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays in the order in which operations take them."""
        return self.codebook, self.codes, self.gaps, self.segment_ptr, self.segment_zeros

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)


def unpack(tensors: tuple[Tensor, ...] | list[Tensor], sizes: list[int], num_values: int) -> CodebookWeight:
    """Return the weight that ``PackedCodebookWeight.tensors`` and ``sizes`` hold."""
    codebook, codes, gaps, *_ = tensors
    N, K, num_entries, bits, gap_bits, _ = sizes
    return CodebookWeight(
        codebook[:num_values],
        codes[: num_field_bytes(num_entries, bits)],
        gaps[: num_field_bytes(num_entries, gap_bits)],
        bits,
        gap_bits,
        num_entries,
        (N, K),
    )


def _index_segments(weight: CodebookWeight, num_blocks: int, block_rows: int) -> tuple[Tensor, Tensor]:
    """First entry of every segment, and the zeros before the segment that its gap counts."""
    N, K = weight.shape
    positions = weight.positions()
    columns = torch.arange(K, device=positions.device)[:, None] * N
    starts = (columns + torch.arange(num_blocks, device=positions.device) * block_rows).flatten()
    first = torch.searchsorted(positions, starts)
    ends = torch.cat([positions.new_zeros(1), positions + 1])  # behind the entry before each one
    has_entry = first.diff(append=first.new_tensor([positions.numel()])) > 0
    zeros = (starts - ends[first]) * has_entry
    segment_ptr = torch.cat([first, first.new_tensor([positions.numel()])])
    return segment_ptr.to(torch.int32), zeros.to(torch.uint8)
