"""Pruning in several processes (torch.distributed): every rank has to come to the same masks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.prune.criteria import Criterion


def averaged_over_ranks(criterion: Criterion, group: dist.ProcessGroup | None = None) -> Criterion:
    """Make a criterion whose scores are the mean over all ranks, the same to the last bit on each.

    Needed where a criterion looks at what differs from rank to rank, such as sums over the batches that a rank has
    seen. Not needed for magnitudes, nor for gradients that DistributedDataParallel has averaged.

    Args:
        criterion: A function, as for :func:`prune`. It has to return scores for the same weights on every rank.
        group: The ranks that prune together; None is all of them.

    Returns:
        A criterion for :func:`prune`; in a single process its scores are the function's own.
    """

    def averaged(name: str, weight: Tensor) -> Tensor:
        scores = criterion(name, weight).detach()
        if not _is_distributed():
            return scores
        first = dist.get_global_rank(group, 0) if group else 0
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True).contiguous()
        # Summed up on one rank and sent back: an all-reduce does not promise equal bits.
        dist.reduce(scores, first, group=group)
        dist.broadcast(scores, first, group=group)
        return scores / dist.get_world_size(group)

    return averaged


def require_same_masks(digest: str, group: dist.ProcessGroup | None = None) -> None:
    """Raise FormatError on every rank if ``digest``, the hash of its masks, differs between them."""
    if not _is_distributed():
        return
    digests: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest, group=group)
    ranks: dict[str, list[int]] = {}
    for rank, other in enumerate(digests):
        ranks.setdefault(other, []).append(rank)
    if len(ranks) > 1:
        held = ", ".join(f"{other[:8]} on {holders}" for other, holders in ranks.items())
        raise FormatError(
            f"expected the same masks on every rank, got hashes {held}; start from equal weights, and prune by scores "
            "that are equal, see averaged_over_ranks()"
        )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
