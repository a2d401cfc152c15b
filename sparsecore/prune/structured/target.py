"""Structured pruning to a target: channels go in one order over all layers until the model costs little enough."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sparsecore.bench.timing import interleave
from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.errors import UnsupportedError
from sparsecore.prune.structured.activations import Loss
from sparsecore.prune.structured.channels import round_up, score_groups
from sparsecore.prune.structured.copies import evaluating
from sparsecore.prune.structured.cost import count_costs
from sparsecore.prune.structured.criteria import FilterCriterion
from sparsecore.prune.structured.cut import remove_units
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, prunable_channels
from sparsecore.prune.structured.removal import edits_without
from sparsecore.prune.structured.sensitivity import ChannelSensitivity, first_to_go
from sparsecore.prune.weights import Selector

#: What a model costs, lower is better.
Measure = Callable[[nn.Module], float]


def prune_to_target(
    model: nn.Module,
    example_inputs: ExampleInputs,
    reduce_by: float,
    *,
    measure: str | Measure = "flops",
    sensitivity: ChannelSensitivity | None = None,
    criterion: str | FilterCriterion = "l1",
    round_to: int = 1,
    exclude: Selector | Iterable[Selector] = (),
    batches: Sequence[Any] | None = None,
    loss: Loss | None = None,
    dry_run: bool = False,
) -> Edits:
    """Remove channels, in place, until the model costs a given share less: no channel more than that takes.

    With a sensitivity scan one level of loss is found, and every layer loses the channels that it can lose alone at
    that level. Without one all layers lose the same ratio.

    Args:
        model: Any module in any mode; it runs on the inputs in evaluation mode.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        reduce_by: Share of the cost to save, in (0, 1).
        measure: ``"flops"`` or ``"parameters"``, see :func:`count_costs`; ``"latency"``: median time of a run on the
            inputs in evaluation mode, measured on cut copies; or a function ``model -> cost`` of a copy.
        sensitivity: A scan of this model by :func:`channel_sensitivity`; it says which channels of a layer go first.
        criterion: Without a scan: as in :func:`prune_channels`, but ``"l1_greedy"``.
        round_to: As in :func:`prune_channels`; the target is then met within the channels of one step.
        exclude: As in :func:`prune_channels`.
        batches: As in :func:`prune_channels`.
        loss: As in :func:`prune_channels`.
        dry_run: Check everything and return the edits, but leave the model as it is.

    Returns:
        The edits, for :func:`save` and to be replayed on a fresh model.

    Raises:
        ValueError: An argument is out of range, the target is out of reach, or the scan is of another model.
        UnsupportedError: Nothing can be cut.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.rand(1, 8)
        >>> edits = prune_to_target(model, x, 0.5)
        >>> model[0]
        Linear(in_features=8, out_features=8, bias=True)

    Reference:
        Sensitivities and the target in FLOPs as in PaddleSlim's SensitivePruner and UniformPruneStrategy.
    """
    if isinstance(reduce_by, bool) or not isinstance(reduce_by, float | int) or not 0 < reduce_by < 1:
        raise ValueError(f"expected reduce_by in (0, 1), got {reduce_by!r}")
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"expected round_to of at least 1, got {round_to!r}")
    cost = _cost(model, example_inputs, measure)
    groups = prunable_channels(model, example_inputs, exclude)
    if not groups.prunable:
        raise UnsupportedError(f"nothing to cut in {type(model).__name__}:\n{groups}")
    if sensitivity is None:
        scores = score_groups(model, groups.prunable, criterion, batches, loss)
        steps = _steps(groups.prunable, {name: first_to_go(values) for name, values in scores.items()}, None, round_to)
    else:
        chosen = [group for group in groups.prunable if group.name in sensitivity.scores]
        _require_scan_of(chosen, sensitivity)
        steps = _steps(chosen, sensitivity.orders, sensitivity, round_to)
    units = _enough(steps, cost, reduce_by)
    return remove_units(model, example_inputs, units, dry_run=dry_run)


def step_reduction(reduce_by: float, steps: int) -> float:
    """Return the share to save in each of several equal steps that save ``reduce_by`` together.

    Args:
        reduce_by: Share to save by all steps, in [0, 1).
        steps: Number of steps, each saving its share of what the one before left.

    Example:
        >>> round(step_reduction(0.75, 2), 3)
        0.5
    """
    if not 0 <= reduce_by < 1 or steps < 1:
        raise ValueError(f"expected reduce_by in [0, 1) and at least one step, got {reduce_by} and {steps}")
    return 1 - (1 - reduce_by) ** (1 / steps)


def latency_us(model: nn.Module, example_inputs: ExampleInputs) -> float:
    """Return the median time of a run in evaluation mode, in microseconds; on a CPU, or what blocks until it is done.

    Args:
        model: Any module; its mode stays.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
    """
    with evaluating(model):
        return interleave({"model": lambda: call_model(model, example_inputs)})["model"].median_us


def _cost(model: nn.Module, example_inputs: ExampleInputs, measure: str | Measure) -> Callable[[Sequence[Unit]], float]:
    """Return the cost of the model without units."""
    if measure in ("flops", "parameters"):
        costs = count_costs(model, example_inputs)
        if measure == "flops":
            return lambda units: costs.without(units).flops
        return lambda units: costs.without(units).parameters
    if measure == "latency":
        return _cost(model, example_inputs, lambda candidate: latency_us(candidate, cloned(example_inputs)))
    if not callable(measure):
        raise ValueError(f'expected measure "flops", "parameters", "latency" or a function, got {measure!r}')

    def of_copy(units: Sequence[Unit]) -> float:
        candidate = copy.deepcopy(model)
        edits_without(model, units).apply(candidate)
        found = measure(candidate)
        if not isinstance(found, float | int) or not math.isfinite(found):
            raise ValueError(f"expected a finite number from measure, got {found!r}")
        return found

    return of_copy


def _steps(
    groups: Sequence[ChannelGroup],
    orders: Mapping[str, tuple[int, ...]],
    sensitivity: ChannelSensitivity | None,
    round_to: int,
) -> list[list[Unit]]:
    """Put what can go of all groups into one order: by the loss it leads to, then by its ratio."""
    steps = []
    for number, group in enumerate(groups):
        count = len(group.units)
        furthest = max(sensitivity.scores[group.name]) if sensitivity else 1.0
        gone = 0
        for after in range(1, count):
            ratio = after / count
            if count - round_up(group, count - after, round_to) != after or ratio > furthest:
                continue  # not a multiple of round_to stays, or the scan did not go so far
            level = sensitivity.loss_at(group.name, ratio) if sensitivity else ratio
            units = [group.units[index] for index in orders[group.name][gone:after]]
            steps.append((level, ratio, number, units))
            gone = after
    return [units for *_, units in sorted(steps, key=lambda step: step[:3])]


def _enough(steps: Sequence[Sequence[Unit]], cost: Callable[[Sequence[Unit]], float], reduce_by: float) -> list[Unit]:
    """Return the units of the fewest first steps that save enough."""

    def first(count: int) -> list[Unit]:
        return [unit for step in steps[:count] for unit in step]

    whole = cost([])
    least, most = 0, len(steps)
    if (reached := cost(first(most))) > whole * (1 - reduce_by):
        raise ValueError(
            f"expected reduce_by of at most {1 - reached / whole:.3f}, which is all that can be removed, got "
            f"{reduce_by}; scan further or exclude less"
        )
    while most - least > 1:
        middle = (least + most) // 2
        if cost(first(middle)) > whole * (1 - reduce_by):
            least = middle
        else:
            most = middle
    return first(most)


def _require_scan_of(groups: Sequence[ChannelGroup], sensitivity: ChannelSensitivity) -> None:
    found = {group.name: len(group.units) for group in groups}
    for name, order in sensitivity.orders.items():
        if found.get(name, len(order)) != len(order):
            raise ValueError(
                f"the scan is of a model with {len(order)} units in {name}, this one has {found[name]}; scan it anew"
            )
    if not found:
        raise ValueError("the scan has none of the model's groups; scan it anew")
