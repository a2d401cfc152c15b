"""From scores to masks: the largest scores are kept, exactly as many as asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor


def keep_largest(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Keep the largest scores of all tensors together.

    ``round(sparsity * numel)`` entries go. Of equal scores the earlier one is kept: earlier tensor,
    then lower flat index. A score of +inf is always kept and one of -inf never, whatever the count.

    Args:
        scores: Tensors of any shape and device, with the same dtype; no NaN.
        sparsity: Share of entries to prune, in [0, 1).

    Returns:
        A bool mask for each tensor, True keeps the entry.
    """
    flat = torch.cat([score.flatten().to(scores[0].device) for score in scores])
    always = int((flat == torch.inf).sum())
    at_most = int((flat > -torch.inf).sum())
    num_kept = min(max(flat.numel() - round(sparsity * flat.numel()), always), at_most)

    keep = torch.zeros_like(flat, dtype=torch.bool)
    if num_kept:
        # Selection takes a fifth of a stable sort's time; kthvalue is not deterministic on CUDA.
        threshold = flat.topk(num_kept, sorted=False).values.min()
        keep = flat > threshold
        ties = (flat == threshold).nonzero().squeeze(1)
        keep[ties[: num_kept - int(keep.sum())]] = True
    parts = torch.split(keep, [score.numel() for score in scores])
    return [part.to(score.device).view(score.shape) for part, score in zip(parts, scores, strict=True)]


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


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """Read ``"keep:group"``, such as ``"2:4"``; ``"unstructured"`` gives None."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match:
        keep, group = int(match[1]), int(match[2])
        if 0 < keep < group:
            return keep, group
    raise ValueError(f'expected pattern "unstructured" or "keep:group" such as "2:4", got {pattern!r}')
