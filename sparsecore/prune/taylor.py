"""Taylor scores added up over batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsecore.prune.criteria import taylor
from sparsecore.prune.weights import Selector, prunable_weights


class Taylor:
    """Criterion: the sum over batches of ``|weight * gradient|``, to first order the change of the loss.

    A sum of magnitudes, not the magnitude of a sum: a weight that one batch wants larger and the next
    smaller counts. Call :meth:`update` after the backward pass of every batch and clear the gradients
    between them, then give the object to :func:`prune` as its criterion.

    Args:
        model: The model that will be pruned.
        exclude: As in :func:`prune`; weights left out need no gradients.

    Attributes:
        scores: For each weight the sum so far, float32 or float64 of its shape; empty before the first update. In
            distributed training every rank has its own: ``torch.distributed.all_reduce`` adds them up in place.

    Raises:
        ValueError: A name in ``exclude`` matches nothing in the model.
        UnsupportedError: The model has no prunable weight.

    Example:
        >>> from sparsecore.prune import prune
        >>> model = nn.Linear(4, 2)
        >>> taylor = Taylor(model)
        >>> for x in torch.randn(3, 8, 4):
        ...     model.zero_grad()
        ...     model(x).square().mean().backward()
        ...     taylor.update()
        >>> prune(model, 0.5, criterion=taylor).sparsity()
        0.5

    Reference:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference,
        ICLR 2017, sec. 2.2, for single weights.
    """

    def __init__(self, model: nn.Module, exclude: Selector | Iterable[Selector] = ()) -> None:
        self._weights = prunable_weights(model, exclude)
        self.scores: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Add the scores of the gradients that are there now.

        Raises:
            FormatError: A weight has no gradient, or one that is NaN or infinite; nothing is added.
        """
        found = {weight.name: taylor(weight.name, weight.value()) for weight in self._weights}
        for name, score in found.items():
            self.scores[name] = self.scores[name].add_(score) if name in self.scores else score

    def reset(self) -> None:
        """Forget all batches so far."""
        self.scores.clear()

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores of a weight.

        Raises:
            ValueError: There are none: no update yet, or another model's weight.
        """
        if name not in self.scores:
            way_out = "it is not one of this Taylor's weights" if self.scores else "call update() after a backward pass"
            raise ValueError(f"no Taylor scores for {name}; {way_out}")
        return self.scores[name]
