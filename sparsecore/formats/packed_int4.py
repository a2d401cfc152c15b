"""PackedInt4Weight: a 4-bit weight with group scales as the lookup kernels read it.

Private to this machine's kernels: made when a layer is built or loaded, never stored. csrc's views.h
draws the layout (LookupInt4View).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsecore import _C
from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.int4_weight import Int4Weight
from sparsecore.formats.packed_int8 import Shape
from sparsecore.formats.row_order import from_places, row_order, row_places

# Columns that kernels look up at once; every CPU has kernels for the last one.
_TABLES = (256, 64, 16)


@dataclass(frozen=True, eq=False)
class PackedInt4Weight:
    """An Int4Weight packed for table lookup: a byte for each weight that is not zero, and some that fill up.

    Args:
        tensors: the packed weight: entry_ptr, step_ptr, entry_table, entry_steps, slots, row_place.
        shape: its shape and layout.
        scale: float32, those of the groups in the order of the packed rows.
        weight_sum: int16, as scale: sums of the integers, with which kernels take zero points off.

    Example:
        >>> weight = Int4Weight.from_dense(torch.eye(3))
        >>> packed = PackedInt4Weight.pack(weight)
        >>> torch.equal(packed.unpack().integers(), weight.integers())
        True
    """

    format: ClassVar[str] = "lookup4"
    tensors: tuple[Tensor, ...]
    shape: Shape
    scale: Tensor
    weight_sum: Tensor

    @classmethod
    def pack(
        cls, weight: Int4Weight, *, few_rows: bool = False, packing: tuple[int, int] | None = None
    ) -> PackedInt4Weight:
        """Pack a weight.

        Args:
            weight: ``[N, K]``.
            few_rows: pack for up to FEW_ROWS rows of activations, where bytes decide.
            packing: lanes and columns of a table, which group_size must be a multiple of; None takes what the best
                kernels of this machine want.

        Raises:
            FormatError: group_size is not a multiple of the table.
        """
        N, K = weight.shape
        lanes, table = packing or _best_packing(few_rows, weight.group_size)
        if weight.group_size % table:
            raise FormatError(f"expected tables that divide a group of {weight.group_size} columns, got {table}")
        shape = Shape(N, K, 1, 1, lanes, table, 1, group_size=weight.group_size)
        q, scale = weight.integers().cpu(), weight.scale.cpu()
        row_place = torch.empty(0, dtype=torch.uint8)
        if (order := row_order(q, shape)) is not None:
            q, scale, row_place = q[order], scale[order], row_places(order, shape)
        tensors = raw.pack_lookup_int4(q, lanes, table, weight.group_size)
        padded = torch.nn.functional.pad(q, (0, -K % weight.group_size))
        sums = padded.view(N, scale.shape[1], weight.group_size).sum(2, dtype=torch.int16)
        packed = cls((*tensors, row_place), shape, _by_blocks(scale, shape), _by_blocks(sums, shape))
        return packed.to(weight.device)

    def unpack(self) -> Int4Weight:
        """Return the weight that was packed."""
        shape, device = self.shape, self.scale.device
        *stored, row_place = (tensor.cpu() for tensor in self.tensors)
        q = raw.unpack_lookup_int4([*stored, row_place[:0]], shape.sizes)
        scale = _by_rows(self.scale.cpu(), shape)
        q, scale = (from_places(tensor, row_place, shape).contiguous() for tensor in (q, scale))
        return Int4Weight.from_integers(q, scale, shape.group_size).to(device)

    def to(self, device: torch.device | str) -> PackedInt4Weight:
        """Return the same weight on another device."""
        tensors = tuple(tensor.to(device) for tensor in self.tensors)
        return PackedInt4Weight(tensors, self.shape, self.scale.to(device), self.weight_sum.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all tensors together."""
        return sum(tensor.nbytes for tensor in (*self.tensors, self.scale, self.weight_sum))


def _best_packing(few_rows: bool, group_size: int) -> tuple[int, int]:
    lanes, widest, _ = _C.int8_packing(few_rows)
    return lanes, next(table for table in _TABLES if table <= widest and group_size % table == 0)


def _by_blocks(numbers: Tensor, shape: Shape) -> Tensor:
    """``[N, groups]`` to ``[blocks, groups, lanes]``, flat; rows past N have 0."""
    padded = torch.nn.functional.pad(numbers, (0, 0, 0, -shape.N % shape.lanes))
    return padded.view(shape.blocks, shape.lanes, numbers.shape[1]).transpose(1, 2).flatten()


def _by_rows(packed: Tensor, shape: Shape) -> Tensor:
    groups = -(-shape.K // shape.group_size)
    return packed.view(shape.blocks, groups, shape.lanes).transpose(1, 2).flatten(0, 1)[: shape.N]
