"""The groups of channels of a model: what can be cut, and what cannot and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from random import Random

from torch import nn

from sparsecore.calls import ExampleInputs
from sparsecore.lookup import close_matches
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.graph import UNSEEN, Unit, find_units
from sparsecore.prune.structured.layers import is_producer
from sparsecore.prune.structured.removal import edits_without
from sparsecore.prune.structured.verify import find_difference, find_misfit
from sparsecore.prune.weights import Selector, as_selectors

# Share of a group's units that the trial cuts, of whether it can be cut.
_TRIED = 0.25


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that lose the same channels.

    Attributes:
        layers: The convolutions and linear layers that make the channels, in the order of the model: all that are
            added to each other, and depthwise ones between them.
        units: What can be removed one by one, in the order of the first layer's channels: usually a channel of each
            of the layers, a whole group of channels around a grouped convolution. Each has channels of the first
            layer; where that is added to several layers side by side, each unit has channels of one of these.
        reason: Why nothing of it can be cut, empty if it can.
    """

    layers: tuple[str, ...]
    units: tuple[Unit, ...]
    reason: str = ""

    @property
    def name(self) -> str:
        """The first of its layers."""
        return self.layers[0]

    def channels_of(self, units: Iterable[int]) -> tuple[int, ...]:
        """Return the channels of the first layer that belong to units, as :func:`cut` takes them."""
        return tuple(sorted(index for unit in units for index in self.units[unit].channels[self.name]))


@dataclass(frozen=True)
class ChannelGroups(Mapping[str, ChannelGroup]):
    """The groups of a model by the names of their first layers; prints as a table.

    Attributes:
        groups: All of them, in the order of the model, also those that cannot be cut.
    """

    groups: tuple[ChannelGroup, ...]

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Those that can be cut."""
        return tuple(group for group in self.groups if not group.reason)

    def __getitem__(self, layer: str) -> ChannelGroup:
        """Return the group that a layer belongs to."""
        for group in self.groups:
            if layer in group.layers:
                return group
        known = [name for group in self.groups for name in group.layers]
        raise KeyError(f"no layer with channels is called {layer!r}{close_matches(layer, known)}")

    def __iter__(self) -> Iterator[str]:
        return (group.name for group in self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=0)
        lines = []
        for group in self.groups:
            more = f" with {', '.join(group.layers[1:])}" if len(group.layers) > 1 else ""
            what = f"cannot be cut: {group.reason}" if group.reason else f"{len(group.units)} units"
            lines.append(f"{group.name:{width}}  {what}{more}")
        return "\n".join(lines)


def prunable_channels(
    model: nn.Module, example_inputs: ExampleInputs, exclude: Selector | Iterable[Selector] = ()
) -> ChannelGroups:
    """List the groups of channels of a model, and find out by trial which can be cut.

    A group can be cut if the model still runs, and computes what it computes with the same channels zero: a trial
    cuts a quarter of all groups in a copy, and compares. So LayerNorm's channels cannot go, nor those that a view
    splits by a number in the code. Channels of an attention are left out, since only whole heads can go: :func:`cut`
    removes these where the code allows it.

    Args:
        model: Any module in any mode; it is not changed.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments that it runs on.
        exclude: Layers whose channels stay: names, fnmatch patterns or module types; a module stands for all inside.

    Returns:
        All groups; those that cannot be cut have a reason.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ModelError: The model does not run on the inputs.
        TypeError: ``model`` is no module, or ``exclude`` holds something else than names, patterns and types.
        ValueError: A name in ``exclude`` matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> print(prunable_channels(model, torch.randn(1, 3, 8, 8)))
        0  8 units
        3  cannot be cut: they are an output of the model
    """
    selectors = as_selectors(exclude)
    units = find_units(model, example_inputs)
    excluded = _excluded(model, selectors)
    groups = [_with_reason(group, excluded) for group in _groups(model, units)]
    for find in (find_misfit, find_difference):
        reasons: dict[str, str] | None = None
        while reasons is None or reasons:  # those that are left may still fail together
            candidates = [group for group in groups if not group.reason]
            reasons = _refused(candidates, partial(find, model, example_inputs), model)
            groups = [replace(group, reason=reasons.get(group.name, group.reason)) for group in groups]
    return ChannelGroups(tuple(groups))


def _groups(model: nn.Module, units: Sequence[Unit]) -> list[ChannelGroup]:
    """Put together the units of the same first layer; layers that the trace did not meet make groups of their own."""
    order = {name: number for number, name in enumerate(dict(model.named_modules()))}
    found: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.channels:
            found.setdefault(min(unit.channels, key=order.__getitem__), []).append(unit)
    groups = []
    for members in found.values():
        layers = sorted({name for unit in members for name in unit.channels}, key=order.__getitem__)
        groups.append(ChannelGroup(tuple(layers), tuple(members)))
    seen = {name for group in groups for name in group.layers}
    for name, module in model.named_modules():
        if is_producer(module) and name not in seen:
            groups.append(ChannelGroup((name,), (), UNSEEN))
    return sorted(groups, key=lambda group: order[group.name])


def _with_reason(group: ChannelGroup, excluded: set[str]) -> ChannelGroup:
    """Add what is known without a trial."""
    reason = group.reason or next((unit.reason or unit.doubt for unit in group.units if unit.reason or unit.doubt), "")
    if not reason and excluded & set(group.layers):
        reason = f"{', '.join(name for name in group.layers if name in excluded)} excluded"
    if not reason and len(group.units) < 2:
        reason = "its channels can only go all together"
    if not reason and len(must_stay(group, range(len(group.units)))) == len(group.units):
        reason = "without any of its channels a layer would have none"
    return replace(group, reason=reason)


def _excluded(model: nn.Module, selectors: Iterable[Selector]) -> set[str]:
    names = dict(model.named_modules())
    excluded: set[str] = set()
    for selector in selectors:
        matched = {
            name
            for name, module in names.items()
            if (fnmatchcase(name, selector) if isinstance(selector, str) else isinstance(module, selector))
        }
        if isinstance(selector, str) and not matched:
            raise ValueError(f"exclude: no module is called {selector!r}{close_matches(selector, names)}")
        excluded.update(name for name in names for outer in matched if name == outer or name.startswith(f"{outer}."))
    return excluded


def _refused(groups: Sequence[ChannelGroup], find: Callable[[Edits], str], model: nn.Module) -> dict[str, str]:
    """Try groups all together, and where that fails by halves: the name of each that fails -> the reason."""
    if not groups:
        return {}
    reason = find(edits_without(model, [unit for group in groups for unit in _tried(group)]))
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    middle = len(groups) // 2
    reasons = _refused(groups[:middle], find, model) | _refused(groups[middle:], find, model)
    return reasons or {groups[-1].name: reason}  # only together with another


def _tried(group: ChannelGroup) -> list[Unit]:
    """Units in no regular places: cut at every fourth, the parts of a split stay of one size by luck."""
    count = len(group.units)
    order = Random(group.name).sample(range(count), count)
    staying = must_stay(group, order)
    return [group.units[index] for index in order if index not in staying][: max(int(_TRIED * count), 1)]


def must_stay(group: ChannelGroup, order: Sequence[int]) -> set[int]:
    """Return the units that stay whatever goes, so that no layer is left without channels.

    Args:
        group: The group.
        order: All of its units, the first to go in front.
    """
    last = {place: index for index in order for place in group.units[index].slices}
    return set(last.values())
