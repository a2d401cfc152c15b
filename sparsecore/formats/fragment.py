"""FragmentWeight: a weight in the order of GPU tensor cores. Private to the CUDA kernels; files hold CSR."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight
from sparsecore.formats.int4 import int4_scales, round_to_int4

TILE = 64
UNIT = 16  # bytes that offsets of tiles count
# In the order in which operations take them.
TENSOR_NAMES = ("tile_ptr", "blob", "block_ptr", "row_block", "scale")
# Blocks that share the work on a GPU: two for each of the 132 multiprocessors of an H100 or H200. Any number is right.
NUM_BLOCKS = 264
_FLOAT_TYPES = {torch.float16: 1, torch.bfloat16: 2}
_MIN_TILE_BYTES = 512


@dataclass(frozen=True, eq=False)
class FragmentWeight:
    """A weight ``[N, K]`` in tiles of 64 x 64: one bit per position and the stored values (csrc's fragment_layout.h).

    Bits and values come in the order in which a warp multiplies with ``mma.m16n8k16``. Costs 1/8 byte for each
    position and, for each stored entry, 2 bytes, 1 (int8 with a scale per row) or 1/2 (int4 with a scale per row and 64
    columns). Made by ``pack()`` or ``pack_int4()`` on the CPU; ``to()`` moves it to a GPU.

    Attributes:
        tile_ptr: int32 ``[tiles + 1]``, first 16 bytes of each tile.
        blob: uint8, the tiles.
        block_ptr: int32 ``[num_blocks + 1]``, ranges of tiles of about equal bytes.
        row_block: int32 ``[N / 64]`` rounded up, first range of each row of tiles.
        scale: float32 ``[N]`` for int8, else ``[0]``.
        shape: ``(N, K)``.
        value_bits: 16, 8 or 4.
        dtype: of the values before packing: float16, bfloat16 or int8.
        max_tile_bytes: of the largest tile.
    """

    tile_ptr: Tensor
    blob: Tensor
    block_ptr: Tensor
    row_block: Tensor
    scale: Tensor
    shape: tuple[int, int]
    value_bits: int
    dtype: torch.dtype
    max_tile_bytes: int

    @classmethod
    def pack(cls, weight: CsrWeight, num_blocks: int = NUM_BLOCKS) -> FragmentWeight:
        """Pack a CSR weight; ``unpack()`` gives it back exactly.

        Args:
            weight: float16, bfloat16 or int8 values, on the CPU.
            num_blocks: ranges that tiles are shared out to, 1 to 65536.

        Raises:
            FormatError: the values are float32.

        Example:
            >>> weight = CsrWeight.from_dense(torch.eye(3, dtype=torch.float16))
            >>> FragmentWeight.pack(weight).unpack().to_dense().diagonal().tolist()
            [1.0, 1.0, 1.0]
        """
        if weight.dtype not in (*_FLOAT_TYPES, torch.int8):
            raise FormatError(
                f"expected float16, bfloat16 or int8 values to pack, got {weight.dtype}; "
                "call weight.to(torch.float16) or quantize()"
            )
        bits = 8 if weight.dtype == torch.int8 else 16
        scale = torch.empty(0) if weight.scale is None else weight.scale
        return cls._pack(weight, weight.values, bits, None, scale, num_blocks)

    @classmethod
    def pack_int4(cls, weight: CsrWeight, num_blocks: int = NUM_BLOCKS) -> FragmentWeight:
        """Round a float CSR weight to 4 bits and pack it.

        Each row has a float16 scale for every 64 columns, a seventh of their largest absolute value; a value is
        rounded to the nearest of -7 .. 7 times its scale. What is stored stays stored, also where it rounds to zero.
        What ``unpack()`` gives is packed to the same bytes again.

        Args:
            weight: float32, float16 or bfloat16 values, on the CPU.
            num_blocks: as in ``pack()``.

        Raises:
            FormatError: the values are int8, NaN or infinite, or larger than a float16 scale can hold.
        """
        if not weight.dtype.is_floating_point:
            raise FormatError(f"expected float values to round to 4 bits, got {weight.dtype}; pack() takes those")
        values = weight.values.float()
        rows = torch.repeat_interleave(torch.arange(weight.shape[0]), weight.row_ptr.diff().long())
        groups = -(-weight.shape[1] // TILE)
        group = rows * groups + weight.col_idx.long() // TILE
        largest = torch.zeros(weight.shape[0] * groups).scatter_reduce(0, group, values.abs(), "amax")
        scales = int4_scales(largest, torch.float16)
        rounded = round_to_int4(values, scales[group])
        return cls._pack(weight, rounded, 4, scales.view(weight.shape[0], groups), torch.empty(0), num_blocks)

    @classmethod
    def _pack(
        cls,
        weight: CsrWeight,
        values: Tensor,
        value_bits: int,
        group_scales: Tensor | None,
        scale: Tensor,
        num_blocks: int,
    ) -> FragmentWeight:
        arrays = (weight.row_ptr, weight.col_idx, values)
        packed = raw.pack_fragment(*arrays, weight.shape[1], value_bits, group_scales, num_blocks)
        tile_ptr, blob, block_ptr, row_block = packed
        settings = (weight.shape, value_bits, values.dtype, largest_tile_bytes(tile_ptr))
        return cls(tile_ptr, blob, block_ptr, row_block, scale, *settings)

    def unpack(self) -> CsrWeight:
        """Return the CSR weight: what was packed, or for 4 bits the rounded values as float32."""
        row_ptr, col_idx, values, group_scales = raw.unpack_fragment([t.cpu() for t in self.tensors], self.sizes)
        if self.value_bits == 8:
            return CsrWeight(row_ptr, col_idx, values, self.shape, self.scale.cpu())
        if self.value_bits == 16:
            return CsrWeight(row_ptr, col_idx, values.view(self.dtype), self.shape)
        rows = torch.repeat_interleave(torch.arange(self.shape[0]), row_ptr.diff().long())
        scales = group_scales.float()[rows, col_idx.long() // TILE]
        return CsrWeight(row_ptr, col_idx, values.float() * scales, self.shape)

    def to(self, device: Any) -> FragmentWeight:
        """Return the same weight on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSOR_NAMES})

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays in the order in which operations take them."""
        return tuple(getattr(self, name) for name in TENSOR_NAMES)

    @property
    def sizes(self) -> list[int]:
        """N, K, bits of a value, bytes of the largest tile, and 1 for float16 or 2 for bfloat16, else 0."""
        return [*self.shape, self.value_bits, self.max_tile_bytes, _FLOAT_TYPES.get(self.dtype, 0)]

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments of the constructor that are no arrays."""
        names = ("shape", "value_bits", "dtype", "max_tile_bytes")
        return {name: getattr(self, name) for name in names}

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)


def largest_tile_bytes(tile_ptr: Tensor) -> int:
    """Bytes of the largest tile, or of an empty one if that is more."""
    return max(UNIT * int(tile_ptr.diff().amax()) if tile_ptr.numel() > 1 else 0, _MIN_TILE_BYTES)
