"""How much each layer alone suffers from pruning, and what sparsity of each adds up to a target."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.prune.calibrated import find_score
from sparsecore.prune.criteria import Criterion, rank
from sparsecore.prune.known_scores import Evaluate, KnownScores, digest, name_of, require_evaluate
from sparsecore.prune.oneshot import require_share
from sparsecore.prune.patterns import parse_pattern, require_fit
from sparsecore.prune.sharding import reshard, zero_where
from sparsecore.prune.weights import PrunableWeight, Selector, prunable_weights

SCANNED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class PruningSensitivity:
    """What the model is worth with one weight pruned and the others dense; prints as a table.

    Attributes:
        dense: Score of the model as it was.
        scores: For each weight by name the score at each sparsity scanned.
        numels: Entries of each weight.
    """

    dense: float
    scores: Mapping[str, Mapping[float, float]]
    numels: Mapping[str, int]

    def sparsities(self, target: float) -> dict[str, float]:
        """Choose a sparsity for each weight so that together they prune ``target`` of all entries.

        At a given loss every weight takes the largest sparsity at which it alone loses no more, read off its curve:
        the loss at a sparsity is the worst up to it, none at 0, and straight between two that were scanned. The
        loss is raised, alike for all weights, until the sum over them is the target; where a curve jumps, all go
        the same part of the way.

        Args:
            target: Share of the entries of all weights to prune, at most as far as was scanned.

        Returns:
            A share for each weight's name, as :func:`prune` takes it.

        Raises:
            ValueError: The target is out of range or higher than what was scanned.

        Example:
            >>> scan = PruningSensitivity(
            ...     0.9, {"a": {0.5: 0.9, 0.8: 0.8}, "b": {0.5: 0.7, 0.8: 0.1}}, {"a": 60, "b": 40}
            ... )
            >>> {name: round(share, 3) for name, share in scan.sparsities(0.5).items()}
            {'a': 0.714, 'b': 0.179}
        """
        require_share(target)
        highest = self._overall({name: max(scores) for name, scores in self.scores.items()})
        if target > highest:
            raise ValueError(f"expected a target of at most {highest:.1%}, as far as was scanned, got {target:.1%}")
        curves = {name: self._curve(name) for name in self.scores}
        losses = sorted({loss for curve in curves.values() for _, loss in curve})
        low = dict.fromkeys(curves, 0.0)
        for loss, reaches in product(losses, (operator.ge, operator.gt)):
            high = {name: _sparsity_at(curve, loss, reaches) for name, curve in curves.items()}
            if self._overall(high) >= target:
                break
            low = high
        below, above = self._overall(low), self._overall(high)
        part = (target - below) / (above - below) if above > below else 0.0
        return {name: low[name] + part * (high[name] - low[name]) for name in curves}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        columns = sorted({share for scores in self.scores.values() for share in scores})
        width = max(map(len, ("weight", *self.scores)))
        lines = [f"{'weight':{width}}  {'dense':>9}" + "".join(f"  {share:>9.1%}" for share in columns)]
        for name, scores in self.scores.items():
            cells = "".join(f"  {scores[share]:9.5g}" if share in scores else f"  {'-':>9}" for share in columns)
            lines.append(f"{name:{width}}  {self.dense:9.5g}{cells}")
        return "\n".join(lines)

    def _curve(self, name: str) -> list[tuple[float, float]]:
        """Points (sparsity, loss), both never falling, from (0, 0) on."""
        points, worst = [(0.0, 0.0)], 0.0
        for share, score in sorted(self.scores[name].items()):
            worst = max(worst, self.dense - score)
            points.append((share, worst))
        return points

    def _overall(self, shares: Mapping[str, float]) -> float:
        return sum(shares[name] * self.numels[name] for name in shares) / sum(self.numels[name] for name in shares)


def _sparsity_at(curve: Sequence[tuple[float, float]], loss: float, reaches: Callable[[float, float], bool]) -> float:
    """Lowest sparsity at which a curve reaches a loss (>=), or the highest before it passes it (>)."""
    for (share, lost), (next_share, next_lost) in pairwise(curve):
        if reaches(next_lost, loss):
            rise = next_lost - lost
            return share + (next_share - share) * (loss - lost) / rise if rise else share
    return curve[-1][0]


@torch.no_grad()
def pruning_sensitivity(
    model: nn.Module,
    evaluate: Evaluate,
    sparsities: Iterable[float] = SCANNED,
    *,
    criterion: str | Criterion = "magnitude",
    pattern: str = "unstructured",
    exclude: Selector | Iterable[Selector] = (),
    file: str | Path | None = None,
    progress: Progress = silent,
) -> PruningSensitivity:
    """Prune each weight of a model alone, at several sparsities, and evaluate the model every time.

    The model is pruned in place and put back after every evaluation, to the last bit.

    Args:
        model: Any module; it stays as it is.
        evaluate: Returns what the model is worth, higher is better: an accuracy, or minus a loss, which tells small
            differences apart. It is called once for the model as it is and once for each weight and sparsity,
            without gradients, and has to put the model in evaluation mode itself.
        sparsities: Shares in (0, 1) to prune each weight to.
        criterion: As in :func:`prune`.
        pattern: As in :func:`prune`, but none with a sparsity of its own.
        exclude: As in :func:`prune`.
        file: Keeps every score as soon as it is known, as JSON. Scores that are there already are not computed
            again, so a scan that was stopped goes on. The file belongs to these values of the weights, the pattern
            and the name of the criterion; another ``evaluate`` needs another file.
        progress: Told about every weight.

    Returns:
        The scores; see :meth:`PruningSensitivity.sparsities`.

    Raises:
        ValueError: An argument is out of range, or ``evaluate`` does not return a finite number.
        TypeError: ``evaluate`` is no function.
        BundleError: The file is damaged, or belongs to another model, pattern or criterion.
        FileNotFoundError: The folder of the file does not exist.
        FormatError: A weight or its scores are not finite, or the pattern does not fit.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2)), torch.rand(64, 8)
        >>> y = model(x).detach()
        >>> scan = pruning_sensitivity(model, lambda model: -float((model(x) - y).square().mean()))
        >>> list(scan.scores), scan.dense
        (['0.weight', '1.weight'], -0.0)
        >>> from sparsecore.prune import prune
        >>> prune(model, scan.sparsities(0.75)).sparsity()
        0.75

    Reference:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, section 5 and
        figure 6.
    """
    require_evaluate(evaluate)
    if not isinstance(sparsities, Iterable):
        raise TypeError(f"expected a list of sparsities in (0, 1), got {sparsities!r}")
    score, chosen = find_score(criterion), parse_pattern(pattern)
    shares = sorted({*sparsities})
    for share in shares:
        require_share(share)
    if not shares or shares[0] == 0:
        raise ValueError(f"expected sparsities in (0, 1), got {shares}")
    if chosen.sparsity is not None:
        raise ValueError(f"pattern {pattern} has one sparsity and cannot be scanned")
    weights = prunable_weights(model, exclude)
    require_fit(chosen, weights)
    known = KnownScores(
        file,
        {
            "weights": digest((weight.name, weight.value()) for weight in weights),
            "pattern": str(chosen),
            "criterion": name_of(criterion),
        },
    )

    dense = known.score("", 0.0, evaluate, model)
    scores: dict[str, dict[float, float]] = {}
    for weight in weights:
        with stage(progress, f"sensitivity of {weight.name}") as done:
            rows = weight.to_rows(rank(weight, score))
            scores[weight.name] = {}
            for count, share in enumerate(shares, start=1):
                (keep,) = chosen.select([rows.clone()], share)
                with _pruned(model, weight, weight.from_rows(keep)):
                    scores[weight.name][share] = known.score(weight.name, share, evaluate, model)
                done(count / len(shares))
    return PruningSensitivity(dense, scores, {weight.name: weight.stored.numel() for weight in weights})


@contextmanager
def _pruned(model: nn.Module, weight: PrunableWeight, keep: Tensor) -> Iterator[None]:
    """Zero a weight's pruned entries, and put it back."""
    before = weight.stored.detach().clone()
    zero_where(weight.stored, ~keep.to(weight.stored.device))
    reshard(model)
    try:
        yield
    finally:
        reshard(model)
        weight.stored.copy_(before)
