"""PackedInt8Weight: an int8 weight in the order that one of the int8 kernels reads it in.

Private to this machine's kernels: made when a layer is built or loaded, never stored. csrc's views.h
draws the three layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsecore import _C
from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight
from sparsecore.formats.delta import DeltaWeight
from sparsecore.formats.fragment import FragmentWeight, largest_tile_bytes
from sparsecore.formats.int8 import Int8Weight
from sparsecore.formats.row_order import from_places, row_order, row_places

READ_BEYOND = 256  # bytes that kernels may read after the values of a bitmap: kReadBeyond in csrc's ops.h


FEW_ROWS = 4  # rows of activations that few_rows is for: kFewPositions in csrc's ops.h


@dataclass(frozen=True)
class Shape:
    """What a packed weight is apart from its numbers.

    Attributes:
        N: rows.
        K: columns, those of one group.
        taps: positions of the filter that each channel has; 1 for a linear layer.
        segments: equal pieces of K that lie side by side in the activations: the rows of the filter,
            or its taps where dilation or groups part them.
        lanes: rows of a block.
        table: columns of a lookup group.
        groups: of rows, each with its own channels.
        has_safe_pairs: pairs of lookup values never saturate in int16.
        tile_bytes: of the largest tile of the fragment format; 0 for others.
        group_size: columns with a scale of their own, of 4-bit weights; 0 for others.
    """

    N: int
    K: int
    taps: int
    segments: int
    lanes: int
    table: int
    groups: int
    has_safe_pairs: bool = False
    tile_bytes: int = 0
    group_size: int = 0

    @property
    def sizes(self) -> list[int]:
        """As the operations take it; those of a fragment weight as a FragmentWeight has them."""
        if self.group_size:
            return [self.N, self.K, self.lanes, self.table, self.group_size]
        if self.tile_bytes:
            return [self.N, self.K, 8, self.tile_bytes, 0]
        return [self.N, self.K, self.segments, self.lanes, self.table, self.groups, int(self.has_safe_pairs)]

    @property
    def blocks(self) -> int:
        """Of all groups together."""
        return self.groups * -(-(self.N // self.groups) // self.lanes)

    @property
    def quads(self) -> int:
        return -(-(self.K // self.segments) // 4)

    @property
    def block_bytes(self) -> int:
        return self.segments * self.quads * self.lanes * 4


@dataclass(frozen=True, eq=False)
class PackedInt8Weight:
    """An Int8Weight packed for the kernels of one format.

    Args:
        format: for CPUs ``"int8"`` (dense), ``"bitmap"`` or ``"lookup"``, for GPUs ``"rows"`` (dense), ``"fragment"``
            or ``"delta"``; all but the dense ones leave zeros out.
        tensors: the packed weight.
        shape: its shape and layout.
        scale: ``[N]`` float32.
        weight_sum: ``[N]`` int32, sums of the rows, with which kernels take zero points off.

    Example:
        >>> weight = Int8Weight.from_dense(torch.eye(3))
        >>> packed = PackedInt8Weight.pack(weight, "lookup")
        >>> torch.equal(packed.unpack().q, weight.q)
        True
    """

    format: str
    tensors: tuple[Tensor, ...]
    shape: Shape
    scale: Tensor
    weight_sum: Tensor

    @classmethod
    def pack(
        cls,
        weight: Int8Weight,
        format: str = "int8",
        *,
        taps: int = 1,
        segments: int = 1,
        groups: int = 1,
        few_rows: bool = False,
        packing: tuple[int, int, bool] | None = None,
    ) -> PackedInt8Weight:
        """Pack a weight whose columns are channels times taps, as torch flattens filters.

        Args:
            weight: ``[N, K]``.
            format: see the class.
            taps: see Shape, like segments and groups.
            segments: a divisor of taps.
            groups: a divisor of N.
            few_rows: pack for up to FEW_ROWS rows of activations, where bytes decide.
            packing: lanes, table and whether pairs of values must not saturate; None takes what the
                best kernels of this machine want.

        Raises:
            FormatError: there is no such format, or a size does not divide what it should.
        """
        if format not in _FORMATS:
            raise FormatError(f"expected a format of {', '.join(_FORMATS)}, got {format!r}")
        N, K = weight.shape
        if min(taps, segments, groups) < 1:
            raise FormatError(f"expected taps, segments and groups of at least 1, got {taps}, {segments}, {groups}")
        if K % taps or taps % segments or N % groups:
            raise FormatError(
                f"expected K of whole channels and N of whole groups, got {weight.shape}, {taps} taps, {groups} groups"
            )
        lanes, table, has_safe_pairs = packing or _C.int8_packing(few_rows)
        shape = Shape(N, K, taps, segments, lanes, table, groups, has_safe_pairs)
        q = weight.q.view(N, K // taps, taps).transpose(1, 2).reshape(N, K)
        if format in GPU_FORMATS and taps * groups > 1:
            raise FormatError(f"expected the weight of a linear layer for format {format!r}")
        tensors = _FORMATS[format][0](q, shape)
        if format == "fragment":
            shape = replace(shape, tile_bytes=largest_tile_bytes(tensors[0]))
        return cls(format, tuple(tensors), shape, weight.scale, weight.q.sum(1, dtype=torch.int32))

    def unpack(self) -> Int8Weight:
        """Return the weight that was packed."""
        q = _FORMATS[self.format][1](self.tensors, self.shape)
        shape = self.shape
        by_channel = q.view(shape.N, shape.taps, shape.K // shape.taps).transpose(1, 2).reshape(shape.N, shape.K)
        return Int8Weight(by_channel.contiguous().to(self.scale.device), self.scale)

    def to(self, device: torch.device | str) -> PackedInt8Weight:
        """Return the same weight on another device."""
        tensors = tuple(tensor.to(device) for tensor in self.tensors)
        return replace(self, tensors=tensors, scale=self.scale.to(device), weight_sum=self.weight_sum.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all tensors together."""
        return sum(tensor.nbytes for tensor in (*self.tensors, self.scale, self.weight_sum))


# --- dense: [groups * blocks, segments, quads, lanes, 4], rows and quads filled up with zeros ---


def _pack_int8(q: Tensor, shape: Shape) -> list[Tensor]:
    return [_blocks(q, shape).flatten()]


def _blocks(q: Tensor, shape: Shape) -> Tensor:
    rows = shape.N // shape.groups
    blocks = shape.blocks // shape.groups
    columns = shape.K // shape.segments
    padded = q.new_zeros(shape.groups, blocks * shape.lanes, shape.segments, shape.quads * 4)
    padded[:, :rows, :, :columns] = q.view(shape.groups, rows, shape.segments, columns)
    quads = padded.view(shape.groups * blocks, shape.lanes, shape.segments, shape.quads, 4)
    return quads.permute(0, 2, 3, 1, 4).reshape(shape.groups * blocks, shape.block_bytes)


def _unpack_int8(tensors: Sequence[Tensor], shape: Shape) -> Tensor:
    rows = shape.N // shape.groups
    blocks = tensors[0].view(shape.blocks, shape.segments, shape.quads, shape.lanes, 4).permute(0, 3, 1, 2, 4)
    padded = blocks.reshape(shape.groups, shape.blocks // shape.groups * shape.lanes, shape.segments, shape.quads * 4)
    return padded[:, :rows, :, : shape.K // shape.segments].reshape(shape.N, shape.K)


# --- bitmap: masks, value_ptr, values ---


def _pack_bitmap(q: Tensor, shape: Shape) -> list[Tensor]:
    blocks = _blocks(q, shape)
    kept = blocks != 0
    bits = kept.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)
    value_ptr = torch.zeros(len(blocks) + 1, dtype=torch.int32)
    value_ptr[1:] = kept.sum(1).cumsum(0)
    values = torch.cat((blocks[kept], q.new_zeros(READ_BEYOND)))
    return [bits.sum(1, dtype=torch.uint8), value_ptr, values]


def _unpack_bitmap(tensors: Sequence[Tensor], shape: Shape) -> Tensor:
    masks, _, values = tensors
    kept = (masks[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten() == 1
    blocks = values.new_zeros(kept.numel())
    blocks[kept] = values[: len(values) - READ_BEYOND]
    return _unpack_int8([blocks], shape)


# --- lookup: entry_ptr, step_ptr, entry_group, entry_steps, slots, row_place ---


def _pack_lookup(q: Tensor, shape: Shape) -> list[Tensor]:
    settings = (shape.segments, shape.lanes, shape.table, shape.has_safe_pairs)
    rows = q.chunk(shape.groups)
    order = row_order(q, shape)
    if order is not None:
        rows = q[order].chunk(shape.groups)
    parts = [raw.pack_lookup(part.contiguous(), *settings) for part in rows]
    entry_ptr, step_ptr, *rest = zip(*parts, strict=True)
    row_place = torch.empty(0, dtype=torch.uint8) if order is None else row_places(order, shape)
    return [_joined(entry_ptr), _joined(step_ptr), *map(torch.cat, rest), row_place]


def _joined(pointers: Sequence[Tensor]) -> Tensor:
    """One running sum of several."""
    counts = torch.cat([pointer.diff() for pointer in pointers])
    result = counts.new_zeros(len(counts) + 1)
    result[1:] = counts.cumsum(0)
    return result


def _unpack_lookup(tensors: Sequence[Tensor], shape: Shape) -> Tensor:
    *stored, row_place = tensors
    none = row_place[:0]
    if shape.groups == 1:
        return from_places(raw.unpack_lookup([*stored, none], shape.sizes), row_place, shape)
    entry_ptr, step_ptr, entry_group, entry_steps, slots = stored
    rows = shape.N // shape.groups
    blocks = shape.blocks // shape.groups
    sizes = [rows, *shape.sizes[1:5], 1, int(shape.has_safe_pairs)]
    parts = []
    for group in range(shape.groups):
        entries = entry_ptr[group * blocks : (group + 1) * blocks + 1]
        steps = step_ptr[group * blocks : (group + 1) * blocks + 1]
        entry_range = slice(int(entries[0]), int(entries[-1]))
        slot_range = slice(*(8 * shape.lanes * int(step) for step in (steps[0], steps[-1])))
        part = [entries - entries[0], steps - steps[0], entry_group[entry_range], entry_steps[entry_range]]
        parts.append(raw.unpack_lookup([*part, slots[slot_range], none], sizes))
    return from_places(torch.cat(parts), row_place, shape)


# --- for GPUs: rows (as they are), fragment, delta: the arrays of FragmentWeight and DeltaWeight without the scale ---

GPU_FORMATS = frozenset({"rows", "fragment", "delta"})


def _pack_rows(q: Tensor, shape: Shape) -> list[Tensor]:
    return [q.contiguous()]


def _unpack_rows(tensors: Sequence[Tensor], shape: Shape) -> Tensor:
    return tensors[0]


def _pack_gpu(kind: type[FragmentWeight] | type[DeltaWeight]) -> _Pack:
    def pack(q: Tensor, shape: Shape) -> list[Tensor]:
        csr = CsrWeight.from_dense(q.cpu(), scale=torch.ones(shape.N))
        return [tensor.to(q.device) for tensor in kind.pack(csr).tensors[:-1]]

    return pack


def _unpack_gpu(unpack: Callable[[list[Tensor], list[int]], Sequence[Tensor]]) -> _Unpack:
    def dense(tensors: Sequence[Tensor], shape: Shape) -> Tensor:
        arrays = [tensor.cpu() for tensor in (*tensors, torch.ones(shape.N))]
        row_ptr, col_idx, values = unpack(arrays, shape.sizes if shape.tile_bytes else [shape.N, shape.K])[:3]
        csr = CsrWeight(row_ptr, col_idx, values, (shape.N, shape.K), torch.ones(shape.N))
        return csr.to_dense(dequantize=False)

    return dense


_Pack = Callable[[Tensor, Shape], list[Tensor]]
_Unpack = Callable[[Sequence[Tensor], Shape], Tensor]
_FORMATS: dict[str, tuple[_Pack, _Unpack]] = {
    "int8": (_pack_int8, _unpack_int8),
    "bitmap": (_pack_bitmap, _unpack_bitmap),
    "lookup": (_pack_lookup, _unpack_lookup),
    "rows": (_pack_rows, _unpack_rows),
    "fragment": (_pack_gpu(FragmentWeight), _unpack_gpu(raw.unpack_fragment)),
    "delta": (_pack_gpu(DeltaWeight), _unpack_gpu(raw.unpack_delta)),
}
