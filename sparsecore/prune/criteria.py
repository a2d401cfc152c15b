"""What a weight entry is worth: pruning removes the lowest scores first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsecore.errors import FormatError
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


def taylor(name: str, weight: Tensor) -> Tensor:
    """Score every entry by the change of the loss that its gradient foretells when it becomes zero.

    Takes the gradients that are there now, the sum over all backward passes since they were cleared;
    :class:`~sparsecore.prune.Taylor` adds up the scores of single batches instead.

    Args:
        name: Name of the weight, for the error.
        weight: Any shape, with its ``grad``.

    Returns:
        abs(weight * grad), float32 or float64.

    Raises:
        FormatError: The weight has no gradient, or one that is NaN or infinite.

    Example:
        >>> weight = torch.tensor([3.0, -4.0])
        >>> weight.grad = torch.tensor([2.0, 0.5])
        >>> taylor("fc.weight", weight)
        tensor([6., 2.])

    Reference:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference,
        ICLR 2017, sec. 2.2, for single weights.
    """
    if weight.grad is None:
        raise FormatError(f"{name} has no gradient; call backward() first, or leave it out with exclude={name!r}")
    require_finite(f"{name}: the gradient", weight.grad)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().to(dtype) * weight.grad.to(dtype)).abs_()


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "taylor": taylor}


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
    require_finite(f"{weight.name}: the weight", value)
    require_any_allowed(weight.name, allowed)
    is_zero = value == 0
    scores = criterion(weight.name, value)
    if not isinstance(scores, Tensor) or scores.shape != is_zero.shape:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise FormatError(f"{weight.name}: expected scores of shape {list(is_zero.shape)}, got {got}")
    require_finite(f"{weight.name}: the score", scores)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return rank_scores(scores.detach().to(is_zero.device, dtype), is_zero, allowed)


def rank_scores(scores: Tensor, is_zero: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Put scores into the tiers of :func:`rank`; they are not checked."""
    ranks = scores.masked_fill(is_zero, lowest_rank(scores.dtype)).contiguous()
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


def require_finite(what: str, tensor: Tensor) -> None:
    """Raise FormatError with the number of entries that are NaN or infinite, if any are."""
    num_bad = tensor.numel() - int(tensor.isfinite().sum())
    if num_bad:
        raise FormatError(f"{what} is NaN or infinite in {num_bad} of {tensor.numel()} entries")


def require_any_allowed(name: str, allowed: Tensor | None) -> None:
    """Raise FormatError if earlier masks leave nothing of a weight."""
    if allowed is not None and not allowed.any():
        raise FormatError(f"{name}: the earlier masks leave none of its entries; leave it out with exclude={name!r}")
