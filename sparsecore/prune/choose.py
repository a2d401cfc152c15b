"""From scores to masks: the largest scores are kept, exactly as many as asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def keep_largest(scores: Sequence[Tensor], sparsity: float, sizes: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Keep the largest scores of all tensors together.

    ``round(sparsity * numel)`` of them go; with ``sizes`` as many as come closest to that share of the sizes' sum (of
    two equally close counts the even one). Of equal scores the earlier one is kept: earlier tensor, then lower flat
    index. A score of +inf is always kept and one of -inf never, whatever the count.

    Args:
        scores: Tensors of any shape and device, with the same dtype; no NaN.
        sparsity: Share to prune, in [0, 1).
        sizes: How many entries each score stands for, int64 above 0 and of the scores' shapes; None for all alike.

    Returns:
        A bool mask for each tensor, True keeps the entry.
    """
    flat = torch.cat([score.flatten().to(scores[0].device) for score in scores])
    if sizes is None:
        num_pruned = round(sparsity * flat.numel())
    else:
        num_pruned = _count_closest(flat, torch.cat([size.flatten().to(flat.device) for size in sizes]), sparsity)
    always = int((flat == torch.inf).sum())
    at_most = int((flat > -torch.inf).sum())
    num_kept = min(max(flat.numel() - num_pruned, always), at_most)

    keep = torch.zeros_like(flat, dtype=torch.bool)
    if num_kept:
        # Selection takes a fifth of a stable sort's time; kthvalue is not deterministic on CUDA.
        threshold = flat.topk(num_kept, sorted=False).values.min()
        keep = flat > threshold
        ties = (flat == threshold).nonzero().squeeze(1)
        keep[ties[: num_kept - int(keep.sum())]] = True
    parts = torch.split(keep, [score.numel() for score in scores])
    return [part.to(score.device).view(score.shape) for part, score in zip(parts, scores, strict=True)]


def keep_largest_by_row(scores: Tensor, sparsity: float) -> Tensor:
    """Keep the largest scores of each row by itself.

    ``round(sparsity * columns)`` of a row go, but never all. Of equal scores the earlier one is kept; a score of -inf
    is never kept.

    Args:
        scores: ``[rows, columns]``; no NaN.
        sparsity: Share to prune, in [0, 1).

    Returns:
        Bool mask ``[rows, columns]``, True keeps the entry.
    """
    num_kept = max(scores.shape[1] - round(sparsity * scores.shape[1]), 1)
    threshold = scores.topk(num_kept, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > threshold, scores == threshold
    num_ties = num_kept - above.sum(1, keepdim=True)
    keep = above | (ties & (ties.cumsum(1, dtype=torch.int32) <= num_ties))
    return keep & (scores > -torch.inf)


def _count_closest(flat: Tensor, sizes: Tensor, sparsity: float) -> int:
    """Count how many of the lowest scores hold a share of the sizes closest to ``sparsity``."""
    lowest_first = flat.argsort(descending=True, stable=True).flip(0)
    pruned = F.pad(sizes[lowest_first].cumsum(0), (1, 0))
    distance = (pruned.double() - sparsity * int(sizes.sum())).abs()
    closest: list[int] = (distance == distance.min()).nonzero().flatten().tolist()
    return min(closest, key=lambda count: count % 2)


def keep_groups(rows: Tensor, keep: int, group: int) -> Tensor:
    """Keep the ``keep`` largest scores of every ``group`` neighbours along K (N:M sparsity).

    Of equal scores the earlier one is kept; a score of -inf is never kept.

    Args:
        rows: Scores ``[N, K]``, K a multiple of ``group``; no NaN.
        keep: Entries to keep in a group.
        group: Entries in a group.

    Returns:
        Bool mask ``[N, K]``, True keeps the entry.
    """
    grouped = rows.reshape(-1, group)
    best = grouped.argsort(dim=1, descending=True, stable=True)[:, :keep]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, best, True)
    return (mask & (grouped > -torch.inf)).view(rows.shape)
