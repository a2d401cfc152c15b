"""What every schedule that prunes during training has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsecore.errors import FormatError
from sparsecore.prune.masks import Masks, require_updates
from sparsecore.prune.oneshot import Sparsity, prune
from sparsecore.prune.patterns import parse_pattern
from sparsecore.prune.weights import Selector, as_selectors, prunable_weights


class TrainingPruner:
    """Masks that lose entries while an optimizer trains the others; a subclass decides when and how many.

    Args:
        model: The model to prune, in place.
        optimizer: The optimizer that trains it.
        sparsity: What to prune at once.
        pattern: As in :func:`prune`, but none with a sparsity of its own.
        exclude: As in :func:`prune`.
        masks: As in :func:`prune`.
        arguments: Others of :func:`prune`.

    Attributes:
        masks: The masks in force, always the same object.

    Raises:
        ValueError: The pattern has a sparsity of its own, or the optimizer holds none of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: Sparsity,
        *,
        pattern: str,
        exclude: Selector | Iterable[Selector],
        masks: Masks | None,
        **arguments: Any,
    ) -> None:
        if parse_pattern(pattern).sparsity is not None:
            raise ValueError(
                f"pattern {pattern} has one sparsity, which cannot rise; use prune(), once or with fewer kept each time"
            )
        exclude = as_selectors(exclude)
        require_updates(optimizer, (weight.stored for weight in prunable_weights(model, exclude)))
        self._optimizer = optimizer
        self._arguments = {"pattern": pattern, "exclude": exclude, **arguments}
        self.masks = prune(model, sparsity, masks=masks, **self._arguments)
        self._handle = self.masks.attach(optimizer)
        self._is_removed = False

    def remove(self) -> None:
        """Let the weights free again: the optimizer no longer keeps them zero, and this prunes no more."""
        self._handle.remove()
        self._is_removed = True

    def _prune_to(self, sparsity: Sparsity) -> None:
        if self._is_removed:
            raise RuntimeError(
                "this pruner was removed from its optimizer, nothing would hold the zeros; make a new one"
            )
        self.masks.load_state_dict(prune(self.masks.model, sparsity, masks=self.masks, **self._arguments))
        self.masks.apply(self._optimizer)

    def _require_state(self, state: Mapping[str, Any], *others: str) -> None:
        """Check that a state holds masks and the other keys."""
        if not isinstance(state, Mapping) or state.keys() != {"masks", *others}:
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise FormatError(
                f"expected what {type(self).__name__}.state_dict() returned, with {['masks', *others]}, got {got}"
            )
        if not isinstance(state["masks"], Mapping):
            raise FormatError(f"expected masks by name, got {type(state['masks']).__name__}")
