"""Calibration: watch the activations that enter layers while a model runs on examples."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Observer(Protocol):
    """Sees every activation that enters one layer, and proposes a range."""

    def update(self, x: Tensor) -> None: ...

    def range(self) -> tuple[float, float] | None:
        """Return (low, high), or None when nothing was seen."""


class MinMax:
    """The extreme values seen: nothing is clipped, and one outlier widens every step."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        if x.numel():
            low, high = x.aminmax()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ValueError("expected finite activations, got NaN or infinity")
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    def range(self) -> tuple[float, float] | None:
        return (self.low, self.high) if self.low <= self.high else None


#: How to choose a range; a method is a row.
OBSERVERS: dict[str, Callable[[], Observer]] = {"minmax": MinMax}


def observe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    observer: str = "minmax",
    progress: bool = True,
) -> dict[nn.Module, tuple[float, float]]:
    """Run the model on every batch in evaluation mode, and return the range entering each layer.

    Args:
        model: any module; its training flags are put back.
        layers: the layers to watch, by name.
        batches: tensors, tuples of positional or dicts of keyword arguments.
        observer: a row of OBSERVERS.
        progress: write a line to stderr once a second when it takes longer than that.

    Raises:
        ValueError: no batches, a NaN or infinite activation, or a layer that never ran.
    """
    if observer not in OBSERVERS:
        raise ValueError(f"expected an observer of {', '.join(OBSERVERS)}, got {observer!r}")
    observers = {layer: OBSERVERS[observer]() for layer in layers.values()}
    count = 0
    with (
        _watching(layers, observers),
        _evaluating(model),
        torch.no_grad(),
        _progress_line(progress) as show,
    ):
        for count, batch in enumerate(batches, start=1):
            _call(model, batch)
            show(f"calibrating: {count} batches")
    if count == 0:
        raise ValueError("expected at least one calibration batch, got none")
    ranges = {layer: watcher.range() for layer, watcher in observers.items()}
    unseen = [name for name, layer in layers.items() if ranges[layer] is None]
    if unseen:
        raise ValueError(f"no calibration batch reached {unseen}; leave out with exclude={unseen}")
    return {layer: seen for layer, seen in ranges.items() if seen is not None}


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


@contextmanager
def _watching(layers: Mapping[str, nn.Module], observers: Mapping[nn.Module, Observer]) -> Iterator[None]:
    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            try:
                observers[layer].update((*args, *kwargs.values())[0].detach())
            except ValueError as error:
                raise ValueError(f"{name}: {error}; check the calibration batches and the weights before it") from None

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def _progress_line(enabled: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that rewrites a line on stderr, once a second and not in the first."""
    shown_at, is_shown = time.monotonic(), False

    def show(text: str) -> None:
        nonlocal shown_at, is_shown
        if enabled and time.monotonic() - shown_at >= 1.0:
            shown_at, is_shown = time.monotonic(), True
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if is_shown:
            print(file=sys.stderr)
