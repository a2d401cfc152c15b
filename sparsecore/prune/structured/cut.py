"""Cutting channels out of a model: physically smaller layers, the outputs those of the masked model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sparsecore.calls import ExampleInputs
from sparsecore.errors import UnsupportedError, require_module
from sparsecore.lookup import close_matches
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.graph import UNSEEN, Unit, find_units
from sparsecore.prune.structured.layers import is_producer, num_channels
from sparsecore.prune.structured.removal import edits_without
from sparsecore.prune.structured.verify import find_difference


def cut(
    model: nn.Module,
    example_inputs: ExampleInputs,
    channels: Mapping[str, Sequence[int]],
    *,
    dry_run: bool = False,
) -> Edits:
    """Remove output channels of layers, in place, with everything that depends on them.

    What goes with a channel: its BatchNorm, the next layers' inputs, the same channel of layers it is added to, of
    depthwise convolutions between them, and the whole group where it belongs to a grouped convolution. The cut is
    tried on a copy first: it has to compute what the model computes with the same channels zero.

    Parameters that are cut are new ones afterwards: build optimizers after the cut. Masks of :func:`prune` belong to
    the shapes before it: cut first.

    Args:
        model: Any module in any mode; it runs on the inputs in evaluation mode.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        channels: Name of a convolution or linear layer -> indices of its output channels (filters, neurons) to go.
        dry_run: Check everything and return the edits, but leave the model as it is.

    Returns:
        The edits, for :func:`save` and to be replayed on a fresh model.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ModelError: The model does not run on the inputs.
        TypeError: The model is no module, or ``channels`` no mapping to lists.
        ValueError: A layer or channel does not exist, or nothing would stay of one.
        UnsupportedError: Something cannot be cut; the message names it and says why. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> edits = cut(model, torch.randn(1, 4), {"0": [1, 5]})
        >>> model[0].weight.shape, model[2].weight.shape
        (torch.Size([6, 4]), torch.Size([2, 6]))
    """
    wanted = _wanted(model, channels)
    units = [unit for unit in find_units(model, example_inputs) if _is_wanted(unit, wanted)]
    _require_known(units, wanted)
    for unit in units:
        if unit.reason:
            asked = [name for name in unit.channels if name in wanted]
            raise UnsupportedError(f"cannot cut channels of {', '.join(asked)}: {unit.reason}")
    return remove_units(model, example_inputs, units, dry_run=dry_run)


def remove_units(
    model: nn.Module, example_inputs: ExampleInputs, units: Sequence[Unit], *, dry_run: bool = False
) -> Edits:
    """Remove units that :func:`prunable_channels` found, in place, after a trial; otherwise as :func:`cut`."""
    edits = edits_without(model, units)
    if edits and (difference := find_difference(model, example_inputs, edits)):
        layers = list(dict.fromkeys(name for unit in units for name in unit.channels))
        raise UnsupportedError(f"cannot cut channels of {', '.join(layers)}: {difference}")
    if not dry_run:
        edits.apply(model)
    return edits


def _wanted(model: nn.Module, channels: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Check that the layers and channels exist."""
    require_module(model)
    if not isinstance(channels, Mapping):
        raise TypeError(f"expected channels as {{layer: indices}}, got {type(channels).__name__}")
    modules = dict(model.named_modules())
    channels = {name: _as_list(name, indices) for name, indices in channels.items()}
    for name, indices in channels.items():
        if name not in modules:
            raise ValueError(f"no layer is called {name!r}{close_matches(name, modules)}")
        if not is_producer(modules[name]):
            kind = type(modules[name]).__name__
            raise ValueError(f"{name} is a {kind}: expected a convolution or linear layer; its channels follow theirs")
        count = num_channels(modules[name])
        if bad := [index for index in indices if type(index) is not int or not 0 <= index < count]:
            raise ValueError(f"expected channels of {name} in 0..{count - 1}, got {bad[0]!r}")
    return {name: set(indices) for name, indices in channels.items() if len(indices)}


def _as_list(name: str, indices: Any) -> list[Any]:
    """Read a sequence, array or tensor of indices."""
    indices = indices.tolist() if hasattr(indices, "tolist") else indices
    if not isinstance(indices, Iterable):
        raise TypeError(f"expected a list of channels of {name}, got {indices!r}")
    return list(indices)


def _is_wanted(unit: Unit, wanted: Mapping[str, set[int]]) -> bool:
    return any(not wanted.get(name, set()).isdisjoint(indices) for name, indices in unit.channels.items())


def _require_known(units: Sequence[Unit], wanted: Mapping[str, set[int]]) -> None:
    met = {name for unit in units for name in unit.channels}
    for name in wanted:
        if name not in met:
            raise UnsupportedError(f"cannot cut channels of {name}: {UNSEEN}")
