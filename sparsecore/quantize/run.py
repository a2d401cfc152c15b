"""Running a model on calibration batches: what enters its layers, what comes out, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.quantize.layers import first_names


def run_batches(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the model's output on every batch, without gradients; its training flags are put back at the end.

    Args:
        model: any module; it runs in evaluation mode.
        batches: tensors, tuples or lists of positional or dicts of keyword arguments.

    Raises:
        ValueError: there are none.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    is_empty = True
    try:
        for batch in batches:
            is_empty = False
            with torch.no_grad(), _every_layer_called():
                output = _call(model, batch)
            yield output
    finally:
        for module, flag in flags.items():
            module.training = flag
    if is_empty:
        raise ValueError("expected at least one calibration batch, got none")


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


@contextmanager
def _every_layer_called() -> Iterator[None]:
    """Keep nn.TransformerEncoder from its fast path, which packs padded batches as nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], see: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]
) -> Iterator[None]:
    """Call see(layer, inputs, y) after every call of a layer; a tensor that it returns takes the place of y.

    The layers stay in their places. What they call ``ValueError`` gets the name of the layer.
    """

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
            try:
                return see(layer, (*args, *kwargs.values()), y)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

        return layer.register_forward_hook(hook, with_kwargs=True, prepend=True)

    handles = [watch(name, layer) for layer, name in first_names(layers).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
