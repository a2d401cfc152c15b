"""Thresholds of early exits that keep the mean cost within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore.calibration import Call, run_batches
from sparsecore.train.early_exit import EarlyExit, confidence

_ROUNDING = 1e-9  # shares are sums of floating-point numbers
# A model rounds differently in a batch of another size: who is at a threshold leaves all the same.
_MARGIN = 1e-6


def fit_thresholds(model: EarlyExit, batches: Iterable[Any], costs: Sequence[float], budget: float) -> list[float]:
    """Choose the thresholds of all exits on validation data, for a mean cost of at most a budget.

    Args:
        model: A trained model with exits; it is not changed.
        batches: Validation inputs, each what the model takes.
        costs: Of a sample that leaves at each exit, rising, such as ``model.costs(x)``.
        budget: Mean cost of a sample, in the unit of the costs.

    Returns:
        One threshold for each exit but the last, for ``model.infer()``. On these batches the mean cost is within the
        budget.

    Raises:
        ValueError: There are no batches, an output is NaN, the costs do not rise, or the budget is below the first.

    Example:
        >>> model = EarlyExit([nn.Linear(8, 8), nn.Linear(8, 8)], [nn.Linear(8, 3), nn.Linear(8, 3)]).eval()
        >>> x = torch.randn(100, 8)
        >>> thresholds = fit_thresholds(model, [x], costs=[1.0, 2.0], budget=1.25)
        >>> model.infer(x, thresholds).mean_cost([1.0, 2.0])
        1.25

    Reference:
        Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018, sec. 4.
    """
    outputs = list(run_batches(model, (Call((batch,), {}) for batch in batches)))
    confidences = torch.stack(
        [torch.cat([confidence(logits) for logits in exits]) for exits in zip(*outputs, strict=True)]
    )
    return thresholds_for(confidences, exit_shares(costs, budget))


def exit_shares(costs: Sequence[float], budget: float) -> list[float]:
    """Return the share of the samples that should leave at each exit, a geometric sequence, for a mean cost.

    Args:
        costs: Of a sample that leaves at each exit, rising.
        budget: Mean cost wanted.

    Returns:
        Shares that add up to 1 with ``sum(share * cost) == budget``; all at the last exit if the budget allows it.

    Raises:
        ValueError: The costs do not rise, or the budget is below the first of them.

    Example:
        >>> [round(share, 3) for share in exit_shares([1.0, 2.0, 3.0], budget=2.0)]
        [0.333, 0.333, 0.333]
    """
    if not costs or not all(a < b for a, b in zip([0.0, *costs], [*costs, math.inf], strict=True)):
        raise ValueError(f"expected costs above zero that rise from exit to exit, got {list(costs)}")
    if not budget >= costs[0]:
        raise ValueError(f"expected a budget of at least the first exit's cost {costs[0]}, got {budget!r}")
    if budget >= costs[-1]:
        return [0.0] * (len(costs) - 1) + [1.0]
    if budget == costs[0]:
        return [1.0] + [0.0] * (len(costs) - 1)
    low, high = -1000.0, 1000.0  # of the logarithm of the ratio; the mean cost rises with it
    for _ in range(100):
        middle = (low + high) / 2
        mean_cost = sum(share * cost for share, cost in zip(_geometric(middle, len(costs)), costs, strict=True))
        low, high = (middle, high) if mean_cost <= budget else (low, middle)
    return _geometric(low, len(costs))


def thresholds_for(confidences: Tensor, shares: Sequence[float]) -> list[float]:
    """Return thresholds with which at least these shares of the samples leave, counted from the first exit on.

    Args:
        confidences: ``[exits, n]``, from ``confidence()``.
        shares: One for each exit.

    Returns:
        One threshold for each exit but the last; infinite where nobody has to leave. Samples of equal confidence
        leave together, so the shares can be exceeded.

    Raises:
        ValueError: There are no samples, a confidence is NaN, or the shares are not as many as the exits.
    """
    if confidences.dim() != 2 or not confidences.numel() or len(confidences) != len(shares):
        raise ValueError(f"expected confidences [{len(shares)}, samples], got {list(confidences.shape)}")
    if confidences.isnan().any():
        raise ValueError("expected numbers as confidences, got NaN; the model gives NaN on the validation data")
    samples = confidences.shape[1]
    stays = torch.ones(samples, dtype=torch.bool, device=confidences.device)
    thresholds, share = [], 0.0
    for exit_confidences, exit_share in zip(confidences[:-1], shares, strict=False):
        share += exit_share
        leaving = math.ceil(share * samples - _ROUNDING * samples) - int((~stays).sum())
        if leaving <= 0:
            thresholds.append(math.inf)
            continue
        threshold = float(exit_confidences[stays].sort(descending=True).values[leaving - 1]) - _MARGIN
        thresholds.append(threshold)
        stays &= exit_confidences < threshold
    return thresholds


def _geometric(log_ratio: float, count: int) -> list[float]:
    """Shares in a geometric sequence."""
    return torch.softmax(log_ratio * torch.arange(count, dtype=torch.float64), 0).tolist()
