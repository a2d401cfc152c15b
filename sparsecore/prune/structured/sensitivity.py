"""What a model is worth with the channels of one group of layers removed and the others whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.calls import ExampleInputs
from sparsecore.prune.known_scores import Evaluate, KnownScores, digest, name_of, require_evaluate
from sparsecore.prune.structured.activations import Loss
from sparsecore.prune.structured.channels import choose_units, first_to_go, require_ratio, score_groups
from sparsecore.prune.structured.criteria import FilterCriterion
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import prunable_channels
from sparsecore.prune.structured.removal import removed_slices
from sparsecore.prune.weights import Selector

SCANNED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ChannelSensitivity:
    """What the model is worth with a share of one group's channels removed; prints as a table.

    Attributes:
        whole: Score of the model as it was.
        scores: For each group, by the name of its first layer, the score at each ratio scanned.
        orders: For each group its units, the one that goes first in front.
    """

    whole: float
    scores: Mapping[str, Mapping[float, float]]
    orders: Mapping[str, tuple[int, ...]]

    def loss_at(self, group: str, ratio: float) -> float:
        """Return what removing a ratio of one group's channels costs.

        The worst loss up to a ratio counts, none at 0, and straight lines between the ratios that were scanned.

        Args:
            group: Name of the group.
            ratio: At most as far as was scanned.

        Raises:
            ValueError: The ratio was not reached by the scan.

        Example:
            >>> scan = ChannelSensitivity(0.9, {"conv": {0.2: 0.8, 0.4: 0.85, 0.8: 0.5}}, {"conv": ()})
            >>> [round(scan.loss_at("conv", ratio), 3) for ratio in (0.0, 0.1, 0.3, 0.6)]
            [0.0, 0.05, 0.1, 0.25]
        """
        before, lost = 0.0, 0.0
        for scanned, score in sorted(self.scores[group].items()):
            worst = max(lost, self.whole - score)
            if ratio <= scanned:
                return lost + (worst - lost) * (ratio - before) / (scanned - before)
            before, lost = scanned, worst
        raise ValueError(f"expected a ratio of at most {before}, as far as {group} was scanned, got {ratio}")

    def __str__(self) -> str:
        columns = sorted({ratio for scores in self.scores.values() for ratio in scores})
        width = max(map(len, ("group", *self.scores)))
        lines = [f"{'group':{width}}  {'whole':>9}" + "".join(f"  {ratio:>9.1%}" for ratio in columns)]
        for name, scores in self.scores.items():
            cells = "".join(f"  {scores[ratio]:9.5g}" if ratio in scores else f"  {'-':>9}" for ratio in columns)
            lines.append(f"{name:{width}}  {self.whole:9.5g}{cells}")
        return "\n".join(lines)


@torch.no_grad()
def channel_sensitivity(
    model: nn.Module,
    example_inputs: ExampleInputs,
    evaluate: Evaluate,
    ratios: Iterable[float] = SCANNED,
    *,
    criterion: str | FilterCriterion = "l1",
    exclude: Selector | Iterable[Selector] = (),
    batches: Sequence[Any] | None = None,
    loss: Loss | None = None,
    file: str | Path | None = None,
    progress: Progress = silent,
) -> ChannelSensitivity:
    """Remove channels of each group of layers alone, at several ratios, and evaluate the model every time.

    The channels are zeroed in place, with all that depends on them, which computes what the cut model computes; the
    model is put back after every evaluation, to the last bit.

    Args:
        model: Any module; it stays as it is.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        evaluate: Returns what the model is worth, higher is better: an accuracy, or minus a loss, which tells small
            differences apart. It is called without gradients, and has to put the model in evaluation mode itself.
        ratios: Shares of the units in (0, 1) to remove from each group.
        criterion: Which channels go first, as in :func:`prune_channels`, but ``"l1_greedy"``.
        exclude: As in :func:`prune_channels`.
        batches: As in :func:`prune_channels`.
        loss: As in :func:`prune_channels`.
        file: Keeps every score as soon as it is known, as JSON. Scores that are there already are not computed
            again, so a scan that was stopped goes on. The file belongs to these values of the model's tensors and the
            name of the criterion; another ``evaluate``, or other batches, need another file.
        progress: Told about every group.

    Returns:
        The scores, for :func:`prune_to_target`.

    Raises:
        ValueError: An argument is out of range, or ``evaluate`` does not return a finite number.
        TypeError: ``evaluate`` is no function.
        BundleError: The file is damaged, or belongs to another model or criterion.
        FileNotFoundError: The folder of the file does not exist.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.rand(64, 8)
        >>> y = model(x).detach()
        >>> scan = channel_sensitivity(model, x, lambda model: -float((model(x) - y).square().mean()), [0.25, 0.5])
        >>> list(scan.scores), scan.whole
        (['0'], -0.0)

    Reference:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2; the curves as in PaddleSlim's
        sensitivity analysis.
    """
    require_evaluate(evaluate)
    shares = sorted({*ratios})
    for share in shares:
        require_ratio(share)
    if not shares or shares[0] == 0:
        raise ValueError(f"expected ratios in (0, 1), got {shares}")
    groups = prunable_channels(model, example_inputs, exclude).prunable
    importance = score_groups(model, groups, criterion, batches, loss)
    known = KnownScores(file, {"tensors": digest(model.state_dict().items()), "criterion": name_of(criterion)})

    whole = known.score("", 0.0, evaluate, model)
    scores: dict[str, dict[float, float]] = {}
    for group in groups:
        with stage(progress, f"sensitivity of {group.name}") as done:
            scores[group.name] = {}
            for count, share in enumerate(shares, start=1):
                with _zeroed(model, choose_units([group], importance, {group.name: share})):
                    scores[group.name][share] = known.score(group.name, share, evaluate, model)
                done(count / len(shares))
    return ChannelSensitivity(whole, scores, {name: first_to_go(values) for name, values in importance.items()})


@contextmanager
def _zeroed(model: nn.Module, units: Sequence[Unit]) -> Iterator[None]:
    """Zero everything that belongs to units, and put it back."""
    tensors = model.state_dict()
    removed = removed_slices(units)
    before = {name: tensors[name].clone() for name, _ in removed}
    for (name, dim), indices in removed.items():
        tensors[name].index_fill_(dim, torch.tensor(sorted(indices), device=tensors[name].device), 0)
    try:
        yield
    finally:
        for name, value in before.items():
            tensors[name].copy_(value)
