"""PanelWeight: a CSR weight packed for the panel kernels. Private to them; files hold the CSR form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.csr import CsrWeight

# The activations of one panel that fit in a 32 KB first-level cache beside everything else.
PANEL_BYTES = 26 * 1024
MAX_PANEL_COLS = 255
# Columns of activations that the kernels take at once, if there are as many. Measured on Zen 4, 70 and 90% zeros:
# with 64 a panel has 104 columns of the weight, better than 80 with 83 or 48 with 138.
TILE_COLUMNS = 64
# Blocks are what threads share: small enough to share evenly, large enough that rows can be ordered by length.
BLOCK_ROWS = 64
# In the order in which operations take them.
TENSOR_NAMES = ("run_ptr", "entry_ptr", "run_row", "run_length", "panel_col", "values")


@dataclass(frozen=True, eq=False)
class PanelWeight:
    """A float32 weight ``[N, K]`` in blocks of rows and panels of columns (csrc's views.h has a picture).

    Made by ``pack()`` only; the kernels check it in every call.

    Attributes:
        run_ptr: int32 ``[blocks * panels + 1]``, first run of each segment.
        entry_ptr: int32 ``[blocks * panels + 1]``, first entry of each segment.
        run_row: uint8, row of each run inside its block.
        run_length: uint8, entries of each run.
        panel_col: uint8 ``[nnz]``, column inside the panel.
        values: float32 ``[nnz]``.
        shape: ``(N, K)``.
        block_rows: rows of a block.
        panel_cols: columns of a panel.
    """

    run_ptr: Tensor
    entry_ptr: Tensor
    run_row: Tensor
    run_length: Tensor
    panel_col: Tensor
    values: Tensor
    shape: tuple[int, int]
    block_rows: int
    panel_cols: int

    @classmethod
    def pack(cls, weight: CsrWeight, panel_cols: int, block_rows: int | None = None) -> PanelWeight:
        """Pack a CSR weight; ``unpack()`` gives it back exactly.

        Args:
            weight: float32 values.
            panel_cols: columns of a panel, 1 to 255; ``fit_panel_cols()`` finds a good number.
            block_rows: rows of a block, 1 to 256; None takes 64, or less if there are few rows.

        Raises:
            FormatError: the values are not float32, or a size is out of range.
        """
        if weight.dtype != torch.float32:
            raise FormatError(f"expected float32 values to pack, got {weight.dtype}; call weight.to(torch.float32)")
        if block_rows is None:
            block_rows = min(BLOCK_ROWS, max(8, weight.shape[0] // 4))
        if not (1 <= panel_cols <= MAX_PANEL_COLS and 1 <= block_rows <= 256):
            raise FormatError(
                f"expected panel_cols in 1 .. 255 and block_rows in 1 .. 256, got {panel_cols} and {block_rows}"
            )
        arrays = (weight.row_ptr, weight.col_idx, weight.values)
        packed = raw.pack_panel(*arrays, weight.shape[1], block_rows, panel_cols)
        tensors: dict[str, Any] = dict(zip(TENSOR_NAMES, packed, strict=True))
        return cls(**tensors, shape=weight.shape, block_rows=block_rows, panel_cols=panel_cols)

    def unpack(self) -> CsrWeight:
        """Return the CSR weight."""
        row_ptr, col_idx, values = raw.unpack_panel(list(self.tensors), self.sizes)
        return CsrWeight(row_ptr, col_idx, values, self.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays in the order in which operations take them."""
        return tuple(getattr(self, name) for name in TENSOR_NAMES)

    @property
    def sizes(self) -> list[int]:
        """N, K, block_rows and panel_cols, as operations take them."""
        return [*self.shape, self.block_rows, self.panel_cols]

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        return sum(tensor.nbytes for tensor in self.tensors)


def tile_floats(columns: int) -> int:
    """Activations per column of the weight that the kernels hold at once, for an input of that many columns."""
    vector = 16  # the widest, in floats; kernels compute whole ones
    return min(-(-max(columns, 1) // vector) * vector, TILE_COLUMNS)


def fit_panel_cols(floats_per_group: int, group: int = 1) -> int:
    """How many columns of the weight to put in a panel.

    Args:
        floats_per_group: activations that a group of columns needs in cache.
        group: columns that must stay together: the taps of a filter, all on one channel.

    Returns:
        A multiple of ``group`` of at most 255, such that the panel's activations fit in the first-level cache;
        0 if not even one group has as few as 255 columns.
    """
    groups = PANEL_BYTES // 4 // max(floats_per_group, 1)
    return min(max(groups, 1), MAX_PANEL_COLS // group) * group
