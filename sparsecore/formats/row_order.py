"""Rows of a weight for table lookup in another order: all rows of a block take the steps of its fullest one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparsecore.formats.packed_int8 import Shape

# Rows that change places among each other: kLookupWindow in csrc's views.h. Of all rows together would save a few
# percent more; 64 would lose ten.
WINDOW = 128
# Putting outputs back in order takes about as long as this share of the steps of K = 768.
WORTH_ORDERING = 0.9


def row_order(q: Tensor, shape: Shape) -> Tensor | None:
    """Rows with as many non-zeros next to each other, inside of windows; None if that saves too few steps."""
    if q.numel() == 0:
        return None
    nnz = q.count_nonzero(1)
    rows = shape.N // shape.groups
    row = torch.arange(shape.N)
    window = row // rows * rows + row % rows // WINDOW
    order = row[torch.argsort(-nnz, stable=True)]
    order = order[torch.argsort(window[order], stable=True)]
    is_better = _num_steps(q[order], shape) <= WORTH_ORDERING * _num_steps(q, shape)
    return order if is_better else None


def _num_steps(q: Tensor, shape: Shape) -> int:
    """Steps that the rows take in this order, but for what safe pairs leave empty."""
    columns = -(-(shape.K // shape.segments) // shape.table) * shape.table
    kept = torch.nn.functional.pad((q != 0).view(shape.N, shape.segments, -1), (0, columns - shape.K // shape.segments))
    counts = kept.view(shape.groups, shape.N // shape.groups, -1, shape.table).sum(3)
    counts = torch.nn.functional.pad(counts, (0, 0, 0, -counts.shape[1] % shape.lanes))
    fullest = counts.unflatten(1, (-1, shape.lanes)).amax(2)
    return int(((fullest + 3) // 4).sum())


def row_places(order: Tensor, shape: Shape) -> Tensor:
    """Where in its window each row is stored."""
    place = torch.empty_like(order)
    place[order] = torch.arange(shape.N)
    return (place % (shape.N // shape.groups) % WINDOW).to(torch.uint8)


def from_places(q: Tensor, row_place: Tensor, shape: Shape) -> Tensor:
    """Rows of the weight from those that are stored."""
    if len(row_place) == 0:
        return q
    rows = shape.N // shape.groups
    row = torch.arange(shape.N)
    return q[row - row % rows % WINDOW + row_place]
