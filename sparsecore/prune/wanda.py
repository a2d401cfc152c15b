"""Wanda: magnitude times the norm of the input, compared within each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecore.prune.criteria import rank_scores
from sparsecore.prune.patterns import Pattern


@dataclass(frozen=True)
class Wanda:
    """Calibrated criterion: ``abs(weight[n, k]) * norm2(x[:, k])``, compared within each output row.

    Every row loses ``round(sparsity * K)`` entries and keeps at least one; of equal scores the earlier stays. Blocks
    of several rows are compared with those of the same rows, by the mean of their entries' scores. The entries that
    stay keep their values.

    Example:
        >>> import torch
        >>> from sparsecore.prune import prune
        >>> layer = torch.nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> x = torch.tensor([[9.0, 1.0], [9.0, -1.0]])
        >>> prune(layer, 0.5, criterion=Wanda(), batches=[x])["weight"]
        tensor([[ True, False]])

    Reference:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024,
        eq. 1 and sec. 3.
    """

    def add_inputs(self, total: Tensor | None, x: Tensor) -> Tensor:
        """Add the squares of inputs ``[samples, K]`` to their sum ``[K]``, float64."""
        squares = x.square().sum(0).double()
        return squares if total is None else total.add_(squares)

    def input_squares(self, total: Tensor) -> Tensor:
        """Return the sum of squares of each input, ``[K]``."""
        return total

    def prune_rows(
        self, weight: Tensor, total: Tensor, sparsity: float, pattern: Pattern, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the pruned weight ``[N, K]`` and its bool mask; see :class:`CalibratedCriterion`."""
        scores = weight.abs() * total.sqrt().to(weight.dtype)
        keep = pattern.select_by_row(rank_scores(scores, weight == 0, allowed), sparsity)
        return weight.masked_fill(~keep, 0), keep
