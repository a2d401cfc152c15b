"""Fakes of the operations that pack weights and turn them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsecore.formats import delta, fragment
from sparsecore.formats.bitmap import BLOCK_ROWS, SLACK

aten = torch.ops.aten


@torch.library.register_fake("sparsecore::pack_csr")
def _(weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = weight.new_empty([weight.shape[0] + 1], dtype=torch.int32)
    return row_ptr, row_ptr.new_empty([nnz]), weight.new_empty([nnz])


@torch.library.register_fake("sparsecore::unpack_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> Tensor:
    return values.new_empty([row_ptr.shape[0] - 1, cols])


@torch.library.register_fake("sparsecore::transpose_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    return row_ptr.new_empty([cols + 1]), torch.empty_like(col_idx), torch.empty_like(values)


@torch.library.register_fake("sparsecore::pack_lookup")
def _(weight: Tensor, segments: int, lanes: int, table: int, has_safe_pairs: bool) -> tuple[Tensor, ...]:
    entries, steps = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    ends = weight.new_empty([-(-weight.shape[0] // lanes) + 1], dtype=torch.int32)
    return (
        ends,
        torch.empty_like(ends),
        ends.new_empty([entries], dtype=torch.int16),
        ends.new_empty([entries], dtype=torch.uint8),
        ends.new_empty([steps * 8 * lanes], dtype=torch.uint8),
    )


@torch.library.register_fake("sparsecore::unpack_lookup")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    return weight[0].new_empty(sizes[:2], dtype=torch.int8)


@torch.library.register_fake("sparsecore::pack_lookup_int4")
def _(weight: Tensor, lanes: int, table: int, group_size: int) -> tuple[Tensor, ...]:
    entries, steps = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    blocks = -(-weight.shape[0] // lanes)
    ends = weight.new_empty([blocks * -(-weight.shape[1] // group_size) + 1], dtype=torch.int32)
    return (
        ends,
        ends.new_empty([blocks + 1]),
        ends.new_empty([entries], dtype=torch.uint8),
        ends.new_empty([entries], dtype=torch.uint8),
        ends.new_empty([steps * 4 * lanes], dtype=torch.uint8),
    )


@torch.library.register_fake("sparsecore::unpack_lookup_int4")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    return weight[0].new_empty(sizes[:2], dtype=torch.int8)


@torch.library.register_fake("sparsecore::pack_block_csr")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int, block_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    ends = row_ptr.new_empty([(row_ptr.shape[0] - 1) // block_rows + 1])
    return ends, row_ptr.new_empty([nnz]), values.new_empty([nnz, block_rows])


@torch.library.register_fake("sparsecore::pack_panel")
def _(
    row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int, block_rows: int, panel_cols: int
) -> tuple[Tensor, ...]:
    runs = torch.library.get_ctx().new_dynamic_size()
    blocks = -(-(row_ptr.shape[0] - 1) // block_rows)
    ends = blocks * max(-(-cols // panel_cols), 1) + 1
    return (
        row_ptr.new_empty([ends]),
        row_ptr.new_empty([ends]),
        row_ptr.new_empty([runs], dtype=torch.uint8),
        row_ptr.new_empty([runs], dtype=torch.uint8),
        torch.empty_like(col_idx, dtype=torch.uint8),
        torch.empty_like(values),
    )


@torch.library.register_fake("sparsecore::unpack_panel")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    values = weight[5]
    indices = weight[0].new_empty([sizes[0] + 1])
    return indices, indices.new_empty(values.shape), torch.empty_like(values)


@torch.library.register_fake("sparsecore::pack_bitmap")
def _(row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    blocks = -(-(row_ptr.shape[0] - 1) // BLOCK_ROWS)
    masks = row_ptr.new_empty([blocks, cols], dtype=torch.int16)
    return row_ptr.new_empty([blocks + 1]), masks, values.new_empty([values.shape[0] + SLACK])


@torch.library.register_fake("sparsecore::unpack_bitmap")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    block_ptr, _, values = weight
    nnz = values.shape[0] - SLACK
    return block_ptr.new_empty([sizes[0] + 1]), block_ptr.new_empty([nnz]), values.new_empty([nnz])


# --- for GPUs: their weights are packed on the CPU ---


@torch.library.register_fake("sparsecore::pack_fragment")
def _(
    row_ptr: Tensor,
    col_idx: Tensor,
    values: Tensor,
    cols: int,
    value_bits: int,
    group_scales: Tensor | None,
    num_blocks: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    units = torch.library.get_ctx().new_dynamic_size()
    row_tiles = -(-(row_ptr.shape[0] - 1) // fragment.TILE)
    return (
        row_ptr.new_empty([row_tiles * -(-cols // fragment.TILE) + 1]),
        row_ptr.new_empty([units * fragment.UNIT], dtype=torch.uint8),
        row_ptr.new_empty([num_blocks + 1]),
        row_ptr.new_empty([row_tiles]),
    )


@torch.library.register_fake("sparsecore::unpack_fragment")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, K, value_bits, *_ = sizes
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = weight[0].new_empty([N + 1])
    scales = [N, -(-K // fragment.TILE)] if value_bits == 4 else [0, 0]
    return (
        row_ptr,
        row_ptr.new_empty([nnz]),
        row_ptr.new_empty([nnz], dtype=torch.int16 if value_bits == 16 else torch.int8),
        row_ptr.new_empty(scales, dtype=torch.float16),
    )


@torch.library.register_fake("sparsecore::pack_delta")
def _(
    row_ptr: Tensor, col_idx: Tensor, values: Tensor, cols: int, num_blocks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    quads = torch.library.get_ctx().new_dynamic_size()
    units = -(-cols // delta.PANEL) * (row_ptr.shape[0] - 1)
    codes = row_ptr.new_empty([quads * delta.QUAD], dtype=torch.uint8)
    return row_ptr.new_empty([units + 1]), codes, values.new_empty(codes.shape), row_ptr.new_empty([num_blocks + 1])


@torch.library.register_fake("sparsecore::unpack_delta")
def _(weight: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    row_ptr = weight[0].new_empty([sizes[0] + 1])
    return row_ptr, row_ptr.new_empty([nnz]), weight[2].new_empty([nnz])


# --- Huffman coding ---


@torch.library.register_fake("sparsecore::huffman_lengths")
def _(counts: Tensor) -> Tensor:
    return torch.empty_like(counts, dtype=torch.uint8)


@torch.library.register_fake("sparsecore::huffman_encode")
def _(symbols: Tensor, lengths: Tensor) -> Tensor:
    return symbols.new_empty([torch.library.get_ctx().new_dynamic_size()])


@torch.library.register_fake("sparsecore::huffman_decode")
def _(stream: Tensor, lengths: Tensor, num_symbols: int) -> Tensor:
    return stream.new_empty([num_symbols])
