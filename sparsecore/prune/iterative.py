"""Iterative pruning: prune a part, train what is left, prune more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecore.errors import FormatError
from sparsecore.prune.masks import Masks
from sparsecore.prune.oneshot import require_share
from sparsecore.prune.sensitivity import PruningSensitivity
from sparsecore.prune.training import TrainingPruner
from sparsecore.prune.weights import PrunableWeight, Selector, as_selectors, prunable_weights


def round_sparsity(round: int, rounds: int, final: float) -> float:
    """Sparsity of a round when each removes the same share of what is left.

    Args:
        round: Rounds begun, 0 to ``rounds``.
        rounds: How many there are.
        final: Sparsity of the last one, in [0, 1).

    Returns:
        ``1 - (1 - final) ** (round / rounds)``; exactly ``final`` in the last round.

    Example:
        >>> [round_sparsity(i, 3, 0.875) for i in range(4)]
        [0.0, 0.5, 0.75, 0.875]
    """
    return final if round == rounds else 1 - (1 - final) ** (round / rounds)


class IterativePruner(TrainingPruner, Iterator[int]):
    """Rounds of pruning with one's own training between them.

    Each round of the ``for`` loop prunes the model in place and leaves the training to the loop's body. A pruned
    entry never comes back, and ``masks.attach(optimizer)`` keeps it zero. A new optimizer for a round is fine:
    ``pruner.masks.attach(it)``.

    A weight loses the entries below its threshold, ``quality * spread``: the spread is the standard deviation of the
    weight's entries, those pruned before counting as zeros. The quality is a number for each weight from the
    sensitivity scan, times one for all of them, which is chosen so that the overall sparsity is exact: with the
    numbers of the scan alone the dense model would be pruned to ``sensitivity.sparsities(sparsity)``. Without a
    scan one quality serves all weights. So the thresholds follow the weights as they are trained, and what one layer
    keeps beyond its first share another one gives.

    Args:
        model: Any module with weights that :func:`prune` takes.
        optimizer: The optimizer that trains it.
        sparsity: Share of the entries of all weights that the last round reaches.
        rounds: Number of rounds; each removes the same share of what is left (:func:`round_sparsity`).
        sensitivity: From :func:`pruning_sensitivity` for this model, not pruned further since.
        pattern: As in :func:`prune`, but none with a sparsity of its own.
        exclude: As in :func:`prune`.
        masks: As in :func:`prune`: what they prune stays pruned.

    Attributes:
        masks: The masks in force, always the same object.
        round: Rounds begun so far.
        qualities: The number of each weight from the scan; empty without one.

    Raises:
        ValueError: An argument is out of range, the scan lacks a weight or ends below the sparsity, or the optimizer
            holds none of the weights; nothing is changed.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = IterativePruner(model, optimizer, 0.9, rounds=3)
        >>> for round in pruner:
        ...     for group in optimizer.param_groups:
        ...         group["lr"] = 0.1 / 2**round
        ...     for step in range(10):  # train
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 20)).square().mean().backward()
        ...         optimizer.step()
        ...     print(round, f"{pruner.masks.sparsity():.3f}")
        1 0.536
        2 0.785
        3 0.900

    Reference:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015: iterative
        pruning (section 3.4), a quality times the standard deviation as threshold (4), set by sensitivity (5).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        *,
        rounds: int,
        sensitivity: PruningSensitivity | None = None,
        pattern: str = "unstructured",
        exclude: Selector | Iterable[Selector] = (),
        masks: Masks | None = None,
    ) -> None:
        if not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"expected a number of rounds, 1 or more, got {rounds!r}")
        if not isinstance(sensitivity, PruningSensitivity | None):
            raise TypeError(f"expected what pruning_sensitivity() returned, got {type(sensitivity).__name__}")
        require_share(sparsity)
        exclude = as_selectors(exclude)
        self._sparsity, self._rounds, self.round = sparsity, rounds, 0
        self.qualities = _qualities(prunable_weights(model, exclude), sensitivity, sparsity) if sensitivity else {}
        super().__init__(
            model,
            optimizer,
            0.0,
            criterion=self._score,
            scope="global",
            pattern=pattern,
            exclude=exclude,
            masks=masks,
            settings={"sparsity": sparsity, "rounds": rounds},
        )

    def __next__(self) -> int:
        """Begin the next round: prune, and return its number, 1 to ``rounds``.

        Raises:
            FormatError: A weight has become NaN or infinite; nothing is changed and the round does not begin.
        """
        if self.round >= self._rounds:
            raise StopIteration
        self._prune_to(round_sparsity(self.round + 1, self._rounds, self._sparsity))
        self.round += 1
        return self.round

    def state_dict(self) -> dict[str, Any]:
        """Return the round, the qualities, the masks and the settings; model and optimizer are saved on their own."""
        return {"round": self.round, "qualities": dict(self.qualities), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` left off, bit for bit: the ``for`` loop goes on with the next round.

        Args:
            state: From a pruner with the same arguments; ``sensitivity`` may be left out, for it is in the state.

        Raises:
            FormatError: The state is another one's, of a pruner with other arguments, or the masks are not those of
                this model's weights; nothing is changed.
        """
        self._require_state(state, "round", "qualities")
        round, qualities = state["round"], state["qualities"]
        if not isinstance(round, int) or not 0 <= round <= self._rounds:
            raise FormatError(f"expected a round from 0 to {self._rounds}, got {round!r}")
        if not isinstance(qualities, Mapping) or (qualities and qualities.keys() != self.masks.keys()):
            raise FormatError(f"expected a quality for each of {sorted(self.masks)}, or none, got {qualities!r}")
        for name, quality in qualities.items():
            if not isinstance(quality, float) or not 0 < quality < math.inf:
                raise FormatError(f"{name}: expected a quality above 0, got {quality!r}")
        self.masks.load_state_dict(state["masks"])
        self.round, self.qualities = round, dict(qualities)

    def _score(self, name: str, weight: Tensor) -> Tensor:
        """The overall quality at which an entry falls below its weight's threshold."""
        value = weight.double()
        return value.abs() / (self.qualities.get(name, 1.0) * _spread(value))


def _qualities(weights: Iterable[PrunableWeight], scan: PruningSensitivity, sparsity: float) -> dict[str, float]:
    """Thresholds at the scan's sparsities, each over its weight's spread."""
    shares = scan.sparsities(sparsity)
    qualities = {}
    for weight in weights:
        if weight.name not in shares:
            raise ValueError(f"the sensitivity scan lacks {weight.name}; scan with the same exclude, or exclude it")
        value = weight.value().double()
        num_kept = max(value.numel() - round(shares[weight.name] * value.numel()), 1)
        kept = value.abs().flatten().topk(num_kept, sorted=False).values
        # The threshold is the smallest entry that stays; one that is zero already is none.
        qualities[weight.name] = float(kept[kept > 0].min()) / _spread(value) if kept.any() else 1.0
    return qualities


def _spread(value: Tensor) -> float:
    """Standard deviation; entries that are all alike are as far spread as they are large."""
    return float(value.std(correction=0)) or float(value.abs().max()) or 1.0
