"""What every schedule that prunes during training has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from sparsecore.errors import FormatError
from sparsecore.prune.known_scores import name_of
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
        settings: Arguments of the subclass that decide when and how many; a state belongs to them.
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
        settings: Mapping[str, Any],
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
        self._settings = {name: _as_text(value) for name, value in {**settings, "pattern": pattern}.items()}
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

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, how far the schedule is, and its settings; model and optimizer are saved on their own."""
        return {"masks": self.masks.state_dict(), "settings": dict(self._settings)}

    def _require_state(self, state: Mapping[str, Any], *others: str) -> None:
        """Check that a state holds masks and the other keys, and belongs to these settings."""
        names = ["masks", "settings", *others]
        if not isinstance(state, Mapping) or state.keys() != {*names}:
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise FormatError(f"expected what {type(self).__name__}.state_dict() returned, with {names}, got {got}")
        for name in ("masks", "settings"):
            if not isinstance(state[name], Mapping):
                raise FormatError(f"expected {name} by name, got {type(state[name]).__name__}")
        ours, theirs = self._settings, state["settings"]
        if differing := [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]:
            others_are = ", ".join(f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in differing)
            raise FormatError(f"the state is that of a pruner with {others_are}; make this one with the same arguments")


def _as_text(value: Any) -> str:
    """Write a setting so that it can be compared and stored."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_as_text(key)}: {_as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float | int | np.number):
        return repr(float(value))
    return name_of(value)
