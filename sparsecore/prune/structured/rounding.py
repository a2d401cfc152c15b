"""How many units stay, rounded: to a multiple, or to what is fast by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sparsecore.calls import ExampleInputs, cloned
from sparsecore.graph.observe import Call, observe
from sparsecore.prune.structured.copies import copy_to
from sparsecore.prune.structured.groups import ChannelGroup
from sparsecore.prune.structured.layers import filters, is_conv1d_of_transformers, sizes_after
from sparsecore.prune.structured.removal import removed_channels
from sparsecore.tune.cache import TimeCache
from sparsecore.tune.width import dense_time_us, fastest_count

MEASURED = "measured"

#: Units that are to stay, by the name of their group -> those that do.
Rounding = Callable[[Sequence[ChannelGroup], Mapping[str, int]], dict[str, int]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_round_to(round_to: object) -> None:
    """Raise ValueError if it is neither a whole number nor ``"measured"``."""
    if round_to != MEASURED and (type(round_to) is not int or round_to < 1):
        raise ValueError(f'expected round_to of at least 1, or "{MEASURED}", got {round_to!r}')


def find_rounding(round_to: int | str, model: nn.Module, example_inputs: ExampleInputs) -> Rounding:
    """Return what rounds, for a model as it is before the cut."""
    if isinstance(round_to, int):
        return to_multiples(round_to)
    return MeasuredRounding(model, example_inputs, TimeCache())


def to_multiples(step: int) -> Rounding:
    """Round up, so that the channels of each group's first layer are a multiple."""

    def rounded(groups: Sequence[ChannelGroup], stay: Mapping[str, int]) -> dict[str, int]:
        return {group.name: round_up(group, stay[group.name], step) for group in groups}

    return rounded


def round_up(group: ChannelGroup, units: int, step: int) -> int:
    """Round the units of one group that stay up, so that the channels of its first layer are a multiple."""
    units_per_step = step // math.gcd(_width(group), step)
    return min(-(-units // units_per_step) * units_per_step, len(group.units))


class MeasuredRounding:
    """Rounds to the count nearby with which the layers of a group, and those that they feed, take the least time.

    Every layer is timed on the shape that it has in the model, in its fastest dense form, see
    :func:`sparsecore.tune.width.dense_time_us`; the other groups have the counts that they are to have.

    Args:
        model: The model before the cut; it is not changed.
        example_inputs: Inputs of the size that matters.
        cache: Where times are looked up and put; None measures all anew.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs, cache: TimeCache | None) -> None:
        for name, parameter in model.named_parameters():
            if parameter.device.type != "cpu":
                raise ValueError(f'round_to "{MEASURED}" times layers on the CPU, but {name} is on {parameter.device}')
        copied = copy_to(model, None)
        layers = {name: layer for name, layer in copied.named_modules() if _is_timed(layer)}
        calls = observe(copied, cloned(example_inputs), layers).calls
        # The layers lose their memory: only their sizes are read from here on.
        self._layers = {name: layer.to("meta") for name, layer in layers.items() if layer in calls}
        self._calls = {name: calls[layer] for name, layer in self._layers.items()}
        self._cache = cache

    def __call__(self, groups: Sequence[ChannelGroup], stay: Mapping[str, int]) -> dict[str, int]:
        """Round all groups, in their order."""
        stay = dict(stay)
        for group in groups:

            def time_us(count: int, group: ChannelGroup = group) -> float:
                return self._time_us(group, groups, {**stay, group.name: count})

            stay[group.name] = fastest_count(time_us, stay[group.name], len(group.units), _width(group))
        if self._cache is not None:
            self._cache.save()
        return stay

    def _time_us(self, changed: ChannelGroup, groups: Sequence[ChannelGroup], stay: Mapping[str, int]) -> float:
        """Time the layers that a group changes, all groups cut to the units that stay."""
        units = [unit for group in groups for unit in group.units[stay[group.name] :]]
        removed_out, removed_in = removed_channels(units)
        touched = dict.fromkeys(name for unit in changed.units for name in (*unit.channels, *unit.inputs))
        total = 0.0
        for name in touched.keys() & self._layers.keys():
            resized = _resized(self._layers[name], self._calls[name], removed_out[name], removed_in[name])
            total += dense_time_us(*resized, self._cache)
        return total


def _width(group: ChannelGroup) -> int:
    """Channels of a group's first layer in a unit."""
    return len(group.units[0].channels[group.name])


def _is_timed(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or is_conv1d_of_transformers(layer)


def _resized(
    layer: nn.Module, calls: Sequence[Call], removed_out: int, removed_in: int
) -> tuple[nn.Module, list[Call]]:
    """Return a layer with random weights in the size after a cut, and its calls."""
    sizes = sizes_after(layer, removed_out, removed_in)
    has_bias, dtype = getattr(layer, "bias", None) is not None, layer.get_parameter("weight").dtype
    if isinstance(layer, _CONVOLUTIONS):
        kind: Any = _CONVOLUTIONS[len(layer.kernel_size) - 1]
        inputs, outputs, dim = sizes["in_channels"], sizes["out_channels"], -len(layer.kernel_size) - 1
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, sizes.get("groups", 1))
        fresh: nn.Module = kind(inputs, outputs, *geometry, has_bias, layer.padding_mode, dtype=dtype)
    else:
        weight = filters(layer, layer.get_parameter("weight"))
        inputs, outputs, dim = weight.shape[1] - removed_in, weight.shape[0] - removed_out, -1
        fresh = nn.Linear(inputs, outputs, has_bias, dtype=dtype)
    return fresh, [replace(call, shape=_with_size(call.shape, dim, inputs)) for call in calls]


def _with_size(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    place = dim % len(shape)
    return (*shape[:place], size, *shape[place + 1 :])
