"""Calibration: watch the activations that enter layers while a model runs on examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsecore.calibration import counted, progress_line, run_batches, watching
from sparsecore.quantize.channels import channel_dim, channel_rows, divide_channels
from sparsecore.quantize.observers import Observer, check_finite, observer_factory

Seen = TypeVar("Seen")


def observe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    observer: str | Observer | Callable[[], Observer] = "minmax",
    channel_scales: Mapping[nn.Module, Tensor] | None = None,
    progress: bool = True,
) -> dict[nn.Module, tuple[float, float]]:
    """Run the model on every batch in evaluation mode, and return the range entering each layer.

    Args:
        model: any module; its training flags are put back.
        layers: the layers to watch, by name.
        batches: tensors, tuples of positional or dicts of keyword arguments.
        observer: a row of OBSERVERS, or such as ``Percentile(99.9)``.
        channel_scales: what the input channels of a layer are divided by before the observer sees them.
        progress: write a line to stderr once a second when it takes longer than that.

    Raises:
        ValueError: no batches, a NaN or infinite activation, or a layer that never ran.
    """
    make = observer_factory(observer)
    observers = {layer: make() for layer in layers.values()}
    scales = channel_scales or {}

    def see(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        observers[layer].update(divide_channels(x, scales[layer], channel_dim(layer)) if layer in scales else x)

    _watch(model, layers, batches, see, progress)
    return _reached(layers, {layer: watcher.range() for layer, watcher in observers.items()})


def observe_channels(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], *, progress: bool = True
) -> dict[nn.Module, Tensor]:
    """Run the model like observe(), and return the largest magnitude of each input channel: ``[C]`` float32."""
    absmax: dict[nn.Module, Tensor] = {}

    def see(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        if x.numel():
            check_finite(x)
            seen = channel_rows(x.detach(), layer).abs().amax(0).float()
            absmax[layer] = torch.maximum(absmax[layer], seen) if layer in absmax else seen

    _watch(model, layers, batches, see, progress)
    return _reached(layers, {layer: absmax.get(layer) for layer in layers.values()})


def _watch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    see: Callable[[nn.Module, Tensor, Tensor], None],
    progress: bool,
) -> None:
    with watching(layers, lambda layer, inputs, y: see(layer, inputs[0], y)), progress_line(progress) as show:
        for _ in run_batches(model, counted(batches, show, "calibrating")):
            pass


def _reached(layers: Mapping[str, nn.Module], seen: Mapping[nn.Module, Seen | None]) -> dict[nn.Module, Seen]:
    unseen = [name for name, layer in layers.items() if seen[layer] is None]
    if unseen:
        raise ValueError(f"no calibration batch reached {unseen}; leave out with exclude={unseen}")
    return {layer: value for layer, value in seen.items() if value is not None}
