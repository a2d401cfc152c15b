"""Structured pruning in one step: score, choose, cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.arguments import is_real
from sparsecore.calibration import check_batches
from sparsecore.calls import ExampleInputs
from sparsecore.errors import UnsupportedError
from sparsecore.prune.choose import keep_largest
from sparsecore.prune.structured.activations import Loss, score_activations, score_taylor
from sparsecore.prune.structured.copies import evaluating
from sparsecore.prune.structured.criteria import (
    FilterCriterion,
    find_filter_criterion,
    l1,
    score_filters,
)
from sparsecore.prune.structured.cut import remove_units
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, ChannelGroups, must_stay, prunable_channels
from sparsecore.prune.structured.removal import removed_slices
from sparsecore.prune.structured.rounding import Rounding, check_round_to, find_rounding
from sparsecore.prune.weights import Selector

Ratio = float | Mapping[str, float]
# Criteria that are no function of one layer's weights.
_OTHERS = ("l1_greedy", "activation", "taylor")


def prune_channels(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ratio: Ratio,
    *,
    criterion: str | FilterCriterion = "l1",
    scope: str = "layer",
    round_to: int | str = 1,
    exclude: Selector | Iterable[Selector] = (),
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    dry_run: bool = False,
) -> Edits:
    """Remove the least important channels of a model, in place: filters, neurons, and all that depends on them.

    Layers whose outputs are added to each other lose the same channels; their scores are added. What cannot be cut is
    left alone: :func:`prunable_channels` lists it with the reasons. Every group keeps at least one unit.

    Args:
        model: Any module in any mode; it runs on the inputs in evaluation mode.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        ratio: Share of the channels to remove, in [0, 1); or a share for each layer, ``{"conv1": 0.5,
            "blocks.*": 0.3}``: names or fnmatch patterns, the first that matches a layer of a group counts, and groups
            without a match stay as they are.
        criterion: ``"l1"`` or ``"l2"``: norm of the filter. ``"l1_greedy"``: L1 without the weights on channels that
            are removed from the layers before. ``"activation"``: mean magnitude of what the next layers get.
            ``"taylor"``: change of the loss to first order; alternate it with training, a few channels at a time. Or a
            function ``(layer, filters [N, K]) -> scores [N]``, itself or by its name ``"my_module:my_function"``.
        scope: ``"layer"`` removes the ratio from every group, ``"global"`` from all of them together, scores compared
            as they are.
        round_to: The channels that stay in a layer are rounded up to a multiple. 8 fills the vectors of most CPU
            kernels; 1 removes exactly ``round(ratio * units)``. ``"measured"``: rounded to the fastest count nearby,
            up or down by a few channels, which is found by timing the layers on this machine in the shapes that they
            have (see :func:`sparsecore.tune.width.nearby_counts`); times are kept as those of :func:`compile` are.
        exclude: Layers whose channels stay: names, fnmatch patterns or module types; a module stands for all inside.
        batches: For ``"activation"``: inputs of the model. For ``"taylor"``: what ``loss`` takes.
        loss: For ``"taylor"``: ``(model, batch) -> loss``, a mean over samples.
        dry_run: Check everything and return the edits, but leave the model as it is;
            ``costs.compare(costs.after(edits))`` with :func:`count_costs` shows what they would do.

    Returns:
        The edits, for :func:`save` and to be replayed on a fresh model.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ModelError: The model does not run on the inputs.
        ValueError: An argument is out of range or missing, or a name matches nothing.
        FormatError: A score is not finite.
        UnsupportedError: Nothing can be cut, or the cut model would compute something else. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> edits = prune_channels(model, torch.randn(1, 3, 8, 8), 0.5)
        >>> [model[0].out_channels, model[1].num_features, model[3].in_channels]
        [4, 4, 4]

        By what the units do on data:

        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(32, 8)
        >>> _ = prune_channels(model, x, 0.5, criterion="activation", batches=[x])
        >>> model[0].out_features
        8

        By what they do to the loss:

        >>> model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(32, 8)
        >>> loss = lambda model, batch: model(batch).square().mean()
        >>> _ = prune_channels(model, x, 0.5, criterion="taylor", batches=[x], loss=loss)
        >>> model[0].out_features
        8

    Reference:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; Molchanov et al., Pruning Convolutional Neural
        Networks for Resource Efficient Inference, ICLR 2017.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f'expected scope "layer" or "global", got {scope!r}')
    check_round_to(round_to)
    _require_data(criterion, batches, loss)
    if criterion == "l1_greedy" and scope == "global":
        raise ValueError('criterion "l1_greedy" goes from layer to layer: expected scope "layer"')
    if criterion not in _OTHERS:
        find_filter_criterion(criterion, _OTHERS)
    groups = prunable_channels(model, example_inputs, exclude)
    shares = ratios_of(groups.groups, ratio) if groups.groups else {}
    require_groups(model, groups)
    chosen = [group for group in groups.prunable if group.name in shares]
    if not chosen:
        raise ValueError("expected a ratio for at least one layer, got {}")
    rounding = find_rounding(round_to, model, example_inputs)
    if criterion == "l1_greedy":
        units = _greedy(model, chosen, shares, rounding)
    else:
        scores = score_groups(model, chosen, criterion, batches, loss)
        units = choose_units(chosen, scores, shares, scope, rounding)
    return remove_units(model, example_inputs, units, dry_run=dry_run)


def score_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    criterion: str | FilterCriterion,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """Score the units of groups; arguments as of :func:`prune_channels`, all but ``"l1_greedy"``.

    Returns:
        Name of the group -> float64 ``[units]``.
    """
    _require_data(criterion, batches, loss)
    if criterion == "activation" and batches is not None:
        with evaluating(model):
            return score_activations(model, groups, batches)
    if criterion == "taylor" and batches is not None and loss is not None:
        with evaluating(model):
            return score_taylor(model, groups, batches, loss)
    found = find_filter_criterion(criterion, _OTHERS)
    return {group.name: score_filters(model, group, found) for group in groups}


def choose_units(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    shares: Mapping[str, float],
    scope: str = "layer",
    rounding: Rounding | None = None,
) -> list[Unit]:
    """Choose the units that go: the lowest scores, of equal ones the later.

    Args:
        groups: Groups to choose from.
        scores: Name of the group -> ``[units]``.
        shares: Name of the group -> share of its units to go; with ``scope="global"`` all alike.
        scope: As in :func:`prune_channels`.
        rounding: Changes how many stay, None nothing.

    Returns:
        The units that go.
    """
    if scope == "layer":
        keeps = [keep_largest([_protected(group, scores[group.name])], shares[group.name])[0] for group in groups]
    else:
        if len({shares[group.name] for group in groups}) > 1:
            raise ValueError('scope "global" has one ratio for all layers, got several')
        keeps = keep_largest([_protected(group, scores[group.name]) for group in groups], shares[groups[0].name])
    stay = {group.name: int(keep.sum()) for group, keep in zip(groups, keeps, strict=True)}
    if rounding is not None:
        stay = rounding(groups, stay)
    units = []
    for group in groups:
        keep = keep_count(_protected(group, scores[group.name]), stay[group.name])
        units += [unit for unit, stays in zip(group.units, keep.tolist(), strict=True) if not stays]
    return units


def keep_count(scores: Tensor, count: int) -> Tensor:
    """Keep the ``count`` largest scores and all that are +inf, of equal ones the earlier; returns a bool mask."""
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.argsort(descending=True, stable=True)[: max(count, int(scores.isposinf().sum()))]] = True
    return keep


def first_to_go(scores: Tensor) -> tuple[int, ...]:
    """Return the units of a group in the order in which they go: the lowest score first, of equal ones the later."""
    return tuple(reversed(scores.argsort(descending=True, stable=True).tolist()))


def require_groups(model: nn.Module, groups: ChannelGroups) -> None:
    """Raise UnsupportedError if nothing of a model can be cut."""
    if not groups.groups:
        raise UnsupportedError(
            f"{type(model).__name__} has no convolutions and linear layers of torch.nn; cut before quantize() and "
            "convert(), which replace them"
        )
    if not groups.prunable:
        raise UnsupportedError(f"nothing to cut in {type(model).__name__}:\n{groups}")


def ratios_of(groups: Sequence[ChannelGroup], ratio: Ratio) -> dict[str, float]:
    """Return the share that goes for each group that has one.

    Raises:
        ValueError: A share is out of range, a name matches nothing, or only groups that cannot be cut.
    """
    shares = dict(ratio) if isinstance(ratio, Mapping) else {"*": ratio}
    for name, share in shares.items():
        if not isinstance(name, str):
            raise TypeError(f"ratio: expected names or patterns of layers, got {name!r}")
        require_ratio(share)
    found: dict[str, float] = {}
    for pattern in shares:
        matched = [group for group in groups if any(fnmatchcase(name, pattern) for name in group.layers)]
        if not matched:
            raise ValueError(f"ratio: no layer is called {pattern!r}")
        if isinstance(ratio, Mapping) and all(group.reason for group in matched):
            raise UnsupportedError(f"ratio: {pattern} cannot be cut: {matched[0].reason}")
        for group in matched:
            found.setdefault(group.name, float(shares[pattern]))
    return found


def require_ratio(ratio: object) -> None:
    """Raise ValueError if a share of channels is out of range."""
    if not is_real(ratio) or not 0 <= ratio < 1:  # type: ignore[operator]
        raise ValueError(f"expected a ratio in [0, 1), got {ratio!r}")


def _greedy(
    model: nn.Module, groups: Sequence[ChannelGroup], shares: Mapping[str, float], rounding: Rounding
) -> list[Unit]:
    """Choose layer by layer, without the weights on what is gone already.

    Reference:
        Li et al., ICLR 2017, section 3.3.
    """
    units: list[Unit] = []
    for group in groups:
        scores = {group.name: score_filters(model, group, l1, removed_slices(units))}
        units += choose_units([group], scores, shares, "layer", rounding)
    return units


def _protected(group: ChannelGroup, scores: Tensor) -> Tensor:
    """Raise the best scores to +inf, so that no layer is pruned to nothing."""
    protected = scores.clone()
    protected[list(must_stay(group, first_to_go(scores)))] = torch.inf
    return protected


def _require_data(criterion: object, batches: Iterable[Any] | None, loss: object) -> None:
    if criterion in ("activation", "taylor") and batches is None:
        raise ValueError(f'criterion "{criterion}" is judged on data: give batches')
    if batches is not None:
        check_batches(batches, 1)
    if criterion == "taylor" and not callable(loss):
        raise ValueError('criterion "taylor" needs a loss: give loss=lambda model, batch: ...')
