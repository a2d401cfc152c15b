"""Network Slimming: train with a penalty on BatchNorm's scales, then remove the channels whose scales are small."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.calls import ExampleInputs
from sparsecore.errors import UnsupportedError, require_module
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.iterative import round_sparsity
from sparsecore.prune.oneshot import require_share
from sparsecore.prune.structured.compare import largest_difference
from sparsecore.prune.structured.cut import cut
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.gradients import before_steps
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, must_stay, prunable_channels
from sparsecore.prune.structured.layers import output_dim
from sparsecore.prune.structured.norms import BatchNorm, Scale, without_scales
from sparsecore.prune.structured.shifts import carry_shifts
from sparsecore.prune.structured.verify import TOLERANCE
from sparsecore.prune.weights import Selector


@dataclass(frozen=True)
class Slimmed:
    """What :func:`slim` did.

    Attributes:
        edits: What was removed.
        threshold: The largest abs(gamma) among those that were to go.
        channels: First layer of each group of channels -> how many it had, how many stay.
        left_out: First layers of groups that stay as they are because something reads their channels without the
            BatchNorm, so that its scale does not tell what they are worth, as shortcuts between preactivation blocks.
        shift_errors: Layer -> largest absolute error of its outputs on the example inputs, for what the removed
            channels gave it by their BatchNorm's shift (beta) alone: all of that if it was not carried over, what
            differs at zero-padded borders if it was.
    """

    edits: Edits
    threshold: float
    channels: Mapping[str, tuple[int, int]]
    left_out: tuple[str, ...]
    shift_errors: Mapping[str, float]


def penalize_scales(model: nn.Module, optimizer: Optimizer, strength: float = 1e-4) -> RemovableHandle:
    """Add ``strength * sign(gamma)`` to the gradient of all BatchNorm scales before every step of an optimizer.

    It is the gradient of ``strength * sum(abs(gamma))`` in the loss. Added at the step, it counts once however many
    backward passes are accumulated, and is not scaled with the loss by mixed precision.

    Args:
        model: A module with BatchNorm layers.
        optimizer: The optimizer that trains it; it steps without a closure.
        strength: The paper's lambda; 1e-4 for VGG, 1e-5 for ResNet and DenseNet.

    Returns:
        ``remove()`` it before fine-tuning.

    Raises:
        UnsupportedError: No BatchNorm has a scale, or the optimizer is LBFGS; a step with a closure, when it is taken.
        ValueError: The strength is negative, or the optimizer holds none of the scales.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = penalize_scales(model, optimizer, strength=0.5)
        >>> (0 * model(torch.randn(16, 4)).sum()).backward()
        >>> optimizer.step()
        >>> model[1].weight.detach()
        tensor([0.9500, 0.9500, 0.9500, 0.9500, 0.9500, 0.9500, 0.9500, 0.9500])

    Reference:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 3.
    """
    if not strength >= 0:
        raise ValueError(f"expected a strength of at least 0, got {strength}")
    scales = [module.get_parameter("weight") for module in model.modules() if _has_scale(module)]
    if not scales:
        raise UnsupportedError(f"{type(model).__name__} has no BatchNorm with a scale to penalize")

    def add_penalty() -> None:
        for scale in scales:
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=strength)

    return before_steps(optimizer, scales, add_penalty)


def slim(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ratio: float,
    *,
    exclude: Selector | Iterable[Selector] = (),
    round_to: int = 1,
    carry_shift: bool = False,
    dry_run: bool = False,
) -> Slimmed:
    """Remove the channels with the smallest BatchNorm scales, in place, by one threshold for the whole model.

    The threshold is the ``ratio`` percentile of abs(gamma) over all BatchNorm layers whose channels can be cut. A
    channel goes if all its scales are among the smallest: where layers are added to each other it has several. At
    least one channel of each layer stays, so less than ``ratio`` may go.

    Behind ReLU and its like the model computes what it computes with gamma = beta = 0 in the removed channels.
    ``carry_shift`` keeps what their beta gave to the next layers, in their bias or in the mean of the BatchNorm behind
    them, which is exact but for the zero-padded borders of feature maps.

    Args:
        model: A model trained under :func:`penalize_scales`, in any mode.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments that it runs on.
        ratio: Share of the scales that are to go, in [0, 1).
        exclude: Layers whose channels stay: names, fnmatch patterns or module types.
        round_to: Channels that stay are rounded up to a multiple of this.
        carry_shift: Whether the shifts of removed channels go on into the next layers.
        dry_run: Return what would be done, and leave the model as it is.

    Returns:
        The edits and what was lost. Build new optimizers: parameters that were cut are new ones.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ValueError: The ratio or ``round_to`` is out of range.
        FormatError: A scale is NaN or infinite.
        UnsupportedError: No channel that can be cut is read through a BatchNorm alone. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([0.9, 0.01, -0.7]))
        >>> slim(model, torch.randn(8, 4), 1 / 3).channels
        {'0': (3, 2)}
        >>> model[1].weight.detach()
        tensor([ 0.9000, -0.7000])

    Reference:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    """
    require_module(model)
    require_share(ratio)
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"expected round_to of at least 1, got {round_to!r}")
    for name, module in model.named_modules():
        if _has_scale(module):
            require_finite(f"{name}: the scale", module.get_parameter("weight"))
    candidates = [
        group
        for group in prunable_channels(model, example_inputs, exclude).prunable
        if all(_scales(model, unit) for unit in group.units)
    ]
    groups = _judged_by_norms_alone(model, example_inputs, candidates)
    if not groups:
        raise UnsupportedError(
            f"nothing to slim in {type(model).__name__}: expected a layer whose channels can be cut and are read "
            "through a BatchNorm with a scale; prunable_channels() says what cannot be cut and why"
        )
    ranks, rising = _ranked(model, groups)
    num_small = round(ratio * len(rising))
    going = {group.name: _going(group, ranks[group.name], num_small, round_to) for group in groups}
    units = [group.units[unit] for group in groups for unit in going[group.name]]
    channels = {group.name: group.channels_of(going[group.name]) for group in groups}
    edits = cut(model, example_inputs, channels, dry_run=True)
    errors = carry_shifts(model, _silent(model, units), example_inputs, units, dry_run=dry_run or not carry_shift)
    if not dry_run:
        edits.apply(model)
    counts = {group.name: (len(group.units), len(group.units) - len(going[group.name])) for group in groups}
    left_out = tuple(group.name for group in candidates if group.name not in counts)
    return Slimmed(edits, float(rising[num_small - 1]) if num_small else 0.0, counts, left_out, errors)


def slim_in_passes(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ratio: float,
    passes: int,
    train: Callable[[nn.Module], None],
    **arguments: Any,
) -> Edits:
    """Train and slim several times, each pass taking the same share of what is left.

    Args:
        model: The model, in place.
        example_inputs: As in :func:`slim`.
        ratio: Share of the scales that is gone after the last pass, in [0, 1).
        passes: How many.
        train: Trains the model before each pass, with a new optimizer and :func:`penalize_scales` on it.
        **arguments: Others of :func:`slim`.

    Returns:
        The edits of all passes as one list. Fine-tune afterwards.

    Raises:
        ValueError: ``passes`` or the ratio is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        >>> edits = slim_in_passes(model, torch.randn(8, 4), 0.75, 2, train=lambda model: None)
        >>> model[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    if passes < 1:
        raise ValueError(f"expected at least 1 pass, got {passes}")
    require_share(ratio)
    edits: Edits | None = None
    for _ in range(passes):
        train(model)
        slimmed = slim(model, example_inputs, round_sparsity(1, passes, ratio), **arguments)
        edits = edits.then(slimmed.edits) if edits else slimmed.edits
    assert edits is not None
    return edits


def _has_scale(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and module.weight is not None


def _scales(model: nn.Module, unit: Unit) -> list[Scale]:
    return [
        (name, channel)
        for name, channels in unit.others.items()
        if _has_scale(model.get_submodule(name))
        for channel in channels
    ]


def _ranked(model: nn.Module, groups: Iterable[ChannelGroup]) -> tuple[dict[str, list[int]], Tensor]:
    """Return the rank of every unit's largest scale among all scales, by group, and abs of all scales, rising."""
    scales = [scale for group in groups for unit in group.units for scale in _scales(model, unit)]
    values = {}
    for name in {name for name, _ in scales}:
        values[name] = model.get_submodule(name).get_parameter("weight").detach().double().abs().tolist()
    rising, order = torch.tensor([values[name][index] for name, index in scales], dtype=torch.float64).sort(stable=True)
    rank_of = {scales[place]: rank for rank, place in enumerate(order.tolist())}
    ranks = {
        group.name: [max(rank_of[scale] for scale in _scales(model, unit)) for unit in group.units] for group in groups
    }
    return ranks, rising


def _going(group: ChannelGroup, ranks: Sequence[int], num_small: int, round_to: int) -> list[int]:
    """Choose the units that go: all whose scales are small, but for those that must stay and those that round up."""
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    staying = must_stay(group, order)
    small = [unit for unit in order if ranks[unit] < num_small and unit not in staying]
    kept = -(-(len(ranks) - len(small)) // round_to) * round_to
    return sorted(small[: max(len(ranks) - kept, 0)])


def _judged_by_norms_alone(
    model: nn.Module, example_inputs: ExampleInputs, groups: Sequence[ChannelGroup]
) -> list[ChannelGroup]:
    """Leave out groups whose channels are also read without their BatchNorm, found by halves."""
    units = [unit for group in groups for unit in group.units[1::2]]
    if _are_silent(model, example_inputs, units):
        return list(groups)
    if len(groups) == 1:
        return []
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    return [group for half in halves for group in _judged_by_norms_alone(model, example_inputs, half)]


def _are_silent(model: nn.Module, example_inputs: ExampleInputs, units: Sequence[Unit]) -> bool:
    """Whether without the scales nothing depends on what layers put into these channels."""
    masked = _silent(model, units)
    emptied = copy.deepcopy(masked)
    for unit in units:
        for name, channels in unit.channels.items():
            layer = emptied.get_submodule(name)
            weight, indices = layer.get_parameter("weight"), torch.tensor(channels)
            weight.data.index_fill_(output_dim(layer), indices.to(weight.device), 0)
    return largest_difference(masked, emptied, example_inputs) <= TOLERANCE


def _silent(model: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """A copy in which units have no scale but still their shift."""
    return without_scales(model, [scale for unit in units for scale in _scales(model, unit)], keep_shifts=True)
