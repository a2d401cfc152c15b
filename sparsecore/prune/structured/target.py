"""Structured pruning to a target: channels go in one order over all layers until the model costs little enough."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsecore.arguments import is_real
from sparsecore.bench.timing import interleave
from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.prune.known_scores import finite_number
from sparsecore.prune.structured.activations import Loss
from sparsecore.prune.structured.channels import first_to_go, require_groups, score_groups
from sparsecore.prune.structured.copies import evaluating
from sparsecore.prune.structured.cost import count_costs
from sparsecore.prune.structured.criteria import FilterCriterion
from sparsecore.prune.structured.cut import remove_units
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, must_stay, prunable_channels
from sparsecore.prune.structured.removal import edits_without
from sparsecore.prune.structured.rounding import MEASURED, Rounding, check_round_to, find_rounding, round_up
from sparsecore.prune.structured.sensitivity import ChannelSensitivity
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
    round_to: int | str = 1,
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
            inputs in evaluation mode, measured on cut copies, each in turns with the whole model; or a function
            ``model -> cost`` of a copy.
        sensitivity: A scan of this model by :func:`channel_sensitivity`; it says which channels of a layer go first.
        criterion: Without a scan: as in :func:`prune_channels`, but ``"l1_greedy"``.
        round_to: As in :func:`prune_channels`; the target is then met within the channels of one step, with
            ``"measured"`` of one for each layer.
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
    if not is_real(reduce_by) or not 0 < reduce_by < 1:
        raise ValueError(f"expected reduce_by in (0, 1), got {reduce_by!r}")
    if sensitivity is not None and not isinstance(sensitivity, ChannelSensitivity):
        raise TypeError(f"expected sensitivity from channel_sensitivity(), got {type(sensitivity).__name__}")
    check_round_to(round_to)
    groups = prunable_channels(model, example_inputs, exclude)
    require_groups(model, groups)
    cost = _cost(model, example_inputs, measure)
    chosen: Sequence[ChannelGroup] = groups.prunable
    if sensitivity is None:
        scores = score_groups(model, chosen, criterion, batches, loss)
        orders: Mapping[str, tuple[int, ...]] = {name: first_to_go(values) for name, values in scores.items()}
    else:
        chosen, orders = [group for group in chosen if group.name in sensitivity.scores], sensitivity.orders
        _require_scan_of(chosen, sensitivity)
    plan = _Plan(chosen, orders, sensitivity, round_to if isinstance(round_to, int) else 1)
    rounding = find_rounding(round_to, model, example_inputs) if round_to == MEASURED else None
    units = _enough(plan, cost, reduce_by, rounding)
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
    return _latencies({"model": model}, example_inputs)["model"]


def _latencies(models: Mapping[str, nn.Module], example_inputs: ExampleInputs) -> dict[str, float]:
    """Median times in microseconds, of models that take turns."""
    calls = {name: partial(call_model, model, cloned(example_inputs)) for name, model in models.items()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in models.values():
            stack.enter_context(evaluating(model))
        return {name: timing.median_us for name, timing in interleave(calls).items()}


def _share_of_latency(model: nn.Module, cut: nn.Module, example_inputs: ExampleInputs) -> float:
    """Time of a model that was cut, as a share of the whole one's in the same run: what else is busy slows both."""
    times = _latencies({"whole": model, "cut": cut}, example_inputs)
    return times["cut"] / times["whole"]


def _cost(model: nn.Module, example_inputs: ExampleInputs, measure: str | Measure) -> Callable[[Sequence[Unit]], float]:
    """Return the cost of the model without units."""
    if measure in ("flops", "parameters"):
        costs = count_costs(model, example_inputs)
        if measure == "flops":
            return lambda units: costs.without(units).flops
        return lambda units: costs.without(units).parameters
    if measure == "latency":
        share = _cost(model, example_inputs, lambda candidate: _share_of_latency(model, candidate, example_inputs))
        return lambda units: share(units) if units else 1.0
    if not callable(measure):
        raise ValueError(f'expected measure "flops", "parameters", "latency" or a function, got {measure!r}')

    def of_copy(units: Sequence[Unit]) -> float:
        candidate = copy.deepcopy(model)
        edits_without(model, units).apply(candidate)
        cost = finite_number(found := measure(candidate))
        if cost is None:
            raise ValueError(f"expected a finite number from measure, got {found!r}")
        return cost

    return of_copy


class _Plan:
    """What can go of all groups in one order: by the loss it leads to, then by its ratio.

    Args:
        groups: Groups to cut.
        orders: For each group its units, the one that goes first in front.
        sensitivity: What the loss is taken from; without it the ratio.
        step: The channels that stay in a layer are a multiple.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        orders: Mapping[str, tuple[int, ...]],
        sensitivity: ChannelSensitivity | None,
        step: int,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._orders = {}
        steps = []
        for number, group in enumerate(groups):
            count, staying = len(group.units), must_stay(group, orders[group.name])
            self._orders[group.name] = [index for index in orders[group.name] if index not in staying]
            furthest = max(sensitivity.scores[group.name]) if sensitivity else 1.0
            for gone in range(1, len(self._orders[group.name]) + 1):
                ratio = gone / count
                if count - round_up(group, count - gone, step) != gone or ratio > furthest:
                    continue  # no multiple of the step stays, or the scan did not go so far
                level = sensitivity.loss_at(group.name, ratio) if sensitivity else ratio
                steps.append((level, ratio, number, group.name, gone))
        self._steps = [(name, gone) for *_, name, gone in sorted(steps)]

    def __len__(self) -> int:
        return len(self._steps)

    def units(self, count: int, rounding: Rounding | None = None) -> list[Unit]:
        """Return the units that go with the first steps."""
        gone = dict(self._steps[:count])  # of several steps of a group the last
        if rounding is not None:
            sizes = {name: len(self._groups[name].units) for name in gone}
            stay = rounding([self._groups[name] for name in gone], {name: sizes[name] - gone[name] for name in gone})
            gone = {name: sizes[name] - stay[name] for name in gone}
        return [
            self._groups[name].units[index] for name, number in gone.items() for index in self._orders[name][:number]
        ]


def _enough(
    plan: _Plan, cost: Callable[[Sequence[Unit]], float], reduce_by: float, rounding: Rounding | None
) -> list[Unit]:
    """Return the units of the fewest first steps that save enough."""
    whole = cost([])
    limit = whole * (1 - reduce_by)
    least, most = 0, len(plan)
    if (reached := cost(plan.units(most))) > limit:
        raise ValueError(
            f"expected reduce_by of at most {1 - reached / whole:.3f}, which is all that can be removed, got "
            f"{reduce_by}; scan further or exclude less"
        )
    while most - least > 1:
        middle = (least + most) // 2
        if cost(plan.units(middle)) > limit:
            least = middle
        else:
            most = middle
    if rounding is not None:
        for count in range(most, len(plan) + 1, 1 + len(plan) // 64):  # what is rounded up may miss the target
            if cost(units := plan.units(count, rounding)) <= limit:
                return units
    return plan.units(most)


def _require_scan_of(groups: Sequence[ChannelGroup], sensitivity: ChannelSensitivity) -> None:
    found = {group.name: len(group.units) for group in groups}
    for name, order in sensitivity.orders.items():
        if found.get(name, len(order)) != len(order):
            raise ValueError(
                f"the scan is of a model with {len(order)} units in {name}, this one has {found[name]}; scan it anew"
            )
    if not found:
        raise ValueError("the scan has none of the model's groups; scan it anew")
