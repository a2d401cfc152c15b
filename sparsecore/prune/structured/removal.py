"""From units that go to the edits of a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from torch import nn

from sparsecore.prune.structured.edits import Edits, edit, shapes_of
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.layers import sizes_after


def edits_without(model: nn.Module, units: Iterable[Unit]) -> Edits:
    """Make the edits that remove units from a model; the model is not changed.

    Args:
        model: The model.
        units: Units of the model, each once.

    Returns:
        The edits.

    Raises:
        ValueError: Nothing of a layer would stay.
    """
    units = tuple(units)
    removed_out, removed_in = removed_channels(units)
    shapes = shapes_of(model)
    kept = {
        (name, dim): tuple(index for index in range(shapes[name][dim]) if index not in gone)
        for (name, dim), gone in sorted(removed_slices(units).items())
    }
    for (name, _), indices in kept.items():
        if not indices:
            raise ValueError(f"expected at least one channel to stay in every layer, got none in {name}")
    attributes = {
        (name, attribute): size
        for name in sorted(removed_out.keys() | removed_in.keys())
        for attribute, size in sizes_after(model.get_submodule(name), removed_out[name], removed_in[name]).items()
    }
    return edit(model, kept, attributes)


def removed_channels(units: Iterable[Unit]) -> tuple[Counter[str], Counter[str]]:
    """Count by layer the output channels (also those of layers that only have one count) and the inputs of units."""
    removed_out: Counter[str] = Counter()
    removed_in: Counter[str] = Counter()
    for unit in units:
        for counts, channels in (
            (removed_out, unit.channels),
            (removed_in, unit.inputs),
            (removed_out, unit.others),
        ):
            counts.update({name: len(indices) for name, indices in channels.items()})
    return removed_out, removed_in


def removed_slices(units: Iterable[Unit]) -> dict[tuple[str, int], set[int]]:
    """Return (tensor, dimension) -> the indices that go with units."""
    removed: dict[tuple[str, int], set[int]] = defaultdict(set)
    for unit in units:
        for place, indices in unit.slices.items():
            removed[place].update(indices)
    return removed
