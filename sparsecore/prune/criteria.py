"""What a weight entry is worth: pruning removes the lowest scores first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.lookup import import_by_name, is_import_name
from sparsecore.prune.weights import PrunableWeight

# (name of the weight, copy of the weight with its grad) -> scores of the same shape
Criterion = Callable[[str, Tensor], Tensor]


def magnitude(name: str, weight: Tensor) -> Tensor:
    """Score every entry by its absolute value.

    Args:
        name: Name of the weight, not used.
        weight: Any shape, floating point.

    Returns:
        abs(weight).

    Example:
        >>> magnitude("fc.weight", torch.tensor([-2.0, 1.0]))
        tensor([2., 1.])

    Reference:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks,
        NeurIPS 2015.
    """
    return weight.abs()


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}


def find_criterion(criterion: str | Criterion) -> Criterion:
    """Return a criterion by name, also of one's own by ``"module:function"``; a function is its own."""
    if isinstance(criterion, str):
        if criterion in CRITERIA:
            return CRITERIA[criterion]
        if is_import_name(criterion):
            return find_criterion(import_by_name(criterion))
    elif callable(criterion):
        return criterion
    raise ValueError(
        f'expected a function, its name "module:function", or one of {sorted(CRITERIA)} as criterion, got {criterion!r}'
    )


def rank(weight: PrunableWeight, criterion: Criterion, allowed: Tensor | None = None) -> Tensor:
    """Score a weight in three tiers, so that keeping the largest ranks is all there is to pruning.

    ========= ======================================================================
    score     entries with a value
    lowest    entries that are zero already: first to go (:func:`lowest_rank`)
    -inf      entries that are not allowed, for they were pruned before: never kept
    ========= ======================================================================

    Args:
        weight: The weight to score.
        criterion: Its scores must be finite; negative ones are fine.
        allowed: Bool of the weight's shape, False forbids to keep an entry.

    Returns:
        Contiguous float32 or float64 tensor of the weight's shape, on its device.

    Raises:
        FormatError: The weight or its scores are not finite, the scores have another shape, or no entry is allowed.
    """
    value = weight.value()
    _require_finite(f"{weight.name}: the weight", value)
    if allowed is not None and not allowed.any():
        raise FormatError(f"{weight.name}: the earlier masks leave none of its entries; leave it out with exclude")
    is_zero = value == 0
    scores = criterion(weight.name, value)
    if not isinstance(scores, Tensor) or scores.shape != is_zero.shape:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise FormatError(f"{weight.name}: expected scores of shape {list(is_zero.shape)}, got {got}")
    _require_finite(f"{weight.name}: the score", scores)

    dtype = torch.promote_types(scores.dtype, torch.float32)
    ranks = scores.detach().to(is_zero.device, dtype)
    ranks = ranks.masked_fill(is_zero, lowest_rank(dtype)).contiguous()
    if allowed is not None:
        ranks.masked_fill_(~allowed.to(ranks.device), -torch.inf)
    return ranks


def lowest_rank(dtype: torch.dtype) -> float:
    """Rank of an entry that is zero already."""
    return torch.finfo(dtype).min


def protect_best(ranks: Tensor) -> Tensor:
    """Raise the best rank of ``[N, K]`` to +inf in place, so that no weight is pruned to nothing."""
    best = divmod(int(ranks.argmax()), ranks.shape[1])
    if ranks[best] > -torch.inf:
        ranks[best] = torch.inf
    return ranks


def _require_finite(what: str, tensor: Tensor) -> None:
    num_bad = tensor.numel() - int(tensor.isfinite().sum())
    if num_bad:
        raise FormatError(f"{what} is NaN or infinite in {num_bad} of {tensor.numel()} entries")
