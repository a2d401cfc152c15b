"""Running a model on calibration batches: what enters its layers, what comes out, and how far it is."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.calls import Call as Call
from sparsecore.calls import call_model as call_model


def check_batches(batches: Iterable[Any] | None, passes: int) -> Iterable[Any]:
    """Return batches that can be run that often, the same ones each time (a loader may shuffle).

    Raises:
        ValueError: there are none, they are one tensor, or they can be read once and that is not enough.
    """
    if isinstance(batches, Tensor):
        raise ValueError("expected batches as an iterable of inputs, got one tensor; put it in a list")
    if not isinstance(batches, Iterable):
        raise ValueError(f"expected calibration batches as an iterable of inputs, got {type(batches).__name__}")
    if passes == 1:
        return batches
    if isinstance(batches, Iterator):
        raise ValueError(
            f"expected a list of batches, for they are run more than once; got a {type(batches).__name__}, "
            "put list() around it"
        )
    return list(batches)


def run_batches(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the model's output on every batch, without gradients; its training flags are put back at the end.

    Args:
        model: any module; it runs in evaluation mode.
        batches: tensors, tuples or lists of positional, dicts of keyword arguments, or Call for both.

    Raises:
        TypeError: a batch is none of these.
        ValueError: there are none.
    """
    is_empty = True
    with evaluation_mode(model):
        for batch in batches:
            is_empty = False
            with torch.no_grad(), every_layer_called():
                output = call_model(model, batch)
            yield output
    if is_empty:
        raise ValueError("expected at least one calibration batch, got none")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and all its training flags back at the end."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def every_layer_called() -> Iterator[None]:
    """Keep nn.TransformerEncoder from its fast path, which packs padded batches as nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_names(layers: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    """Return the first name of each layer, in the order of the model."""
    names: dict[nn.Module, str] = {}
    for name, layer in layers.items():
        names.setdefault(layer, name)
    return names


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], see: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]
) -> Iterator[None]:
    """Call see(layer, inputs, y) after every call of a layer; a tensor that it returns takes the place of y.

    The inputs are in the order of the layer's signature, those given by name too. The layers stay in their places.
    What they call ``ValueError`` gets the name of the layer.
    """

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
            try:
                return see(layer, _positional(layer, args, kwargs) if kwargs else args, y)
            except ValueError as error:
                raise ValueError(f"{name or type(layer).__name__}: {error}") from error

        return layer.register_forward_hook(hook, with_kwargs=True, prepend=True)

    handles = [watch(name, layer) for layer, name in first_names(layers).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _positional(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call in the order of the layer's signature, with defaults."""
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


@contextmanager
def progress_line(enabled: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that rewrites a line on stderr, once a second and not in the first."""
    shown_at, width = time.monotonic(), 0

    def show(text: str) -> None:
        nonlocal shown_at, width
        if enabled and time.monotonic() - shown_at >= 1.0:
            shown_at, width = time.monotonic(), max(width, len(text))
            print(f"\r{text:<{width}}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if width:
            print(file=sys.stderr)


def counted(batches: Iterable[Any], show: Callable[[str], None], what: str) -> Iterator[Any]:
    """Yield the batches, and show how many are done."""
    for count, batch in enumerate(batches, start=1):
        yield batch
        show(f"{what}: {count} batches")
