"""What a channel is worth, judged by what flows through it: mean activation, and the change of the loss without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.arguments import require_loss
from sparsecore.calls import call_model
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.structured.criteria import sum_over
from sparsecore.prune.structured.groups import ChannelGroup

#: (model, batch) -> the loss of the batch, a mean over its samples.
Loss = Callable[[nn.Module, Any], Tensor]


@torch.no_grad()
def score_activations(model: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Score units by the mean magnitude of what the next layers get from them.

    A unit that is never active, as one behind a ReLU can be, scores 0, and removing it changes nothing.

    Args:
        model: The model, in the mode in which it is to be judged; evaluation, as a rule.
        groups: Groups to score.
        batches: Inputs of the model: tensors, tuples of positional or dicts of keyword arguments.

    Returns:
        Name of the group -> float64 ``[units]``: the sum over all layers that read the unit.

    Raises:
        ValueError: There are no batches.
        FormatError: An activation is not finite.

    Reference:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017,
        section 2.2, "activation".
    """
    totals: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def watch(name: str, x: Tensor, dim: int) -> None:
        channels = x.detach().abs().double().movedim(dim, -1).flatten(0, -2)
        totals[name] = totals.get(name, 0) + channels.sum(0).cpu()
        counts[name] += len(channels)

    with _watched(model, groups, watch):
        for batch in batches:
            call_model(model, batch)
    if not counts:
        raise ValueError("expected batches to judge activations by, got none")
    means = {name: total / counts[name] for name, total in totals.items()}
    return {group.name: _of_units(group, means) for group in groups}


def score_taylor(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[Any], loss: Loss
) -> dict[str, Tensor]:
    """Score units by the change of the loss without them, to first order.

    For every sample the products of what the next layers get from a unit and its gradient are added up over all
    positions, which is the first-order change of the loss if the unit goes; their magnitudes are averaged over the
    samples and normalised to length 1 within each group. The paper takes the mean over positions; within a layer,
    which is then normalised, that is the same.

    Args:
        model: The model, in the mode in which it is to be judged. Gradients of parameters are left as they are.
        groups: Groups to score.
        batches: What ``loss`` takes.
        loss: ``(model, batch) -> loss``, a mean over samples, which come first in every layer's input.

    Returns:
        Name of the group -> float64 ``[units]``.

    Raises:
        ValueError: There are no batches, or the loss is no scalar.
        FormatError: A score is not finite.

    Reference:
        Molchanov et al., ICLR 2017, eqs. 6 to 8.
    """
    totals: dict[str, Tensor] = {group.name: torch.zeros(len(group.units), dtype=torch.float64) for group in groups}
    num_samples = 0
    for batch in batches:
        gates: dict[str, Tensor] = {}
        with torch.enable_grad(), _gated(model, groups, gates):
            value = require_loss(loss(model, batch))
        if not value.requires_grad:
            raise UnsupportedError("the loss does not depend on the channels; it must come from the model's output")
        names = list(gates)
        found = torch.autograd.grad(value, [gates[name] for name in names], allow_unused=True)
        size = max((len(gates[name]) for name in names), default=0)
        changes = {
            name: grad.double().cpu() * size if grad is not None else torch.zeros_like(gates[name]).double().cpu()
            for name, grad in zip(names, found, strict=True)
        }
        num_samples += size
        for group in groups:
            totals[group.name] += _per_sample(group, changes).abs().sum(0)
    if not num_samples:
        raise ValueError("expected batches to judge channels by, got none")
    scores = {name: total / num_samples for name, total in totals.items()}
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise FormatError(f"{name}: the gradient of the loss is not finite")
    return {name: score / score.norm().clamp_min(torch.finfo(score.dtype).tiny) for name, score in scores.items()}


def _of_units(group: ChannelGroup, means: dict[str, Tensor]) -> Tensor:
    scores = torch.stack([sum_over(means, unit.inputs) for unit in group.units])
    if not bool(scores.isfinite().all()):
        raise FormatError(f"{group.name}: an activation is not finite")
    return scores


def _per_sample(group: ChannelGroup, changes: dict[str, Tensor]) -> Tensor:
    """``[samples, units]``: the changes of the loss through all layers that read a unit, added."""
    sizes = {len(change) for change in changes.values()}
    if len(sizes) > 1:
        raise UnsupportedError(f"expected samples first in the input of every layer, got {sorted(sizes)} of them")
    (size,) = sizes
    sums = torch.zeros(size, len(group.units), dtype=torch.float64)
    for position, unit in enumerate(group.units):
        for name, indices in unit.inputs.items():
            if name in changes:
                sums[:, position] += changes[name][:, list(indices)].sum(1)
    return sums


def _readers(groups: Sequence[ChannelGroup]) -> list[str]:
    return sorted({name for group in groups for unit in group.units for name in unit.inputs})


@contextmanager
def _watched(
    model: nn.Module, groups: Sequence[ChannelGroup], watch: Callable[[str, Tensor, int], Tensor | None]
) -> Iterator[None]:
    """Show every input of the layers that read the groups' channels, as (layer, input, dimension of the channels).

    What ``watch`` returns, if anything, takes the input's place.
    """
    with ExitStack() as stack:
        for name in _readers(groups):
            layer = model.get_submodule(name)
            is_conv = isinstance(layer, nn.modules.conv._ConvNd)

            def hook(module: nn.Module, args: tuple[Any, ...], name: str = name, is_conv: bool = is_conv) -> Any:
                changed = watch(name, args[0], 1 if is_conv else -1)
                return None if changed is None else (changed, *args[1:])

            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def _gated(model: nn.Module, groups: Sequence[ChannelGroup], gates: dict[str, Tensor]) -> Iterator[None]:
    """Multiply every channel of every sample by a gate of 1, of which the gradient is wanted."""

    def watch(name: str, x: Tensor, dim: int) -> Tensor:
        if name not in gates:
            gates[name] = torch.ones(x.shape[0], x.shape[dim], dtype=x.dtype, device=x.device, requires_grad=True)
        shape = [1] * x.dim()
        shape[0], shape[dim] = gates[name].shape
        return x * gates[name].view(shape)

    with _watched(model, groups, watch):
        yield
