"""The errors sparsecore raises on purpose: one line each, with the way out.

A wrong argument of a function is a plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch


class SparsecoreError(Exception):
    """Base of every error below: ``except SparsecoreError`` catches them all."""


class FormatError(SparsecoreError, ValueError):
    """A weight, a mask or an index array is not what its format promises."""


class BundleError(SparsecoreError, ValueError):
    """A file is damaged, of another version, or does not belong to the model."""


class UnsupportedError(SparsecoreError, NotImplementedError):
    """A model, a layer or an operation that sparsecore does not handle."""


class ModelError(SparsecoreError, ValueError):
    """The name of a model means nothing, or its weights or input do not fit."""


class RecipeError(SparsecoreError, ValueError):
    """A recipe is wrong; the message begins with file, line and column."""


class CheckpointError(SparsecoreError, ValueError):
    """A checkpoint is damaged, or belongs to another recipe or model."""


class MissingExtraError(SparsecoreError, ImportError):
    """A library of an optional extra is not installed."""


def require_module(model: Any, what: str = "") -> None:
    """Raise TypeError for anything but a torch.nn.Module; ``what`` it is, for the message."""
    if not isinstance(model, torch.nn.Module):
        expected = f"{what} as a torch.nn.Module" if what else "a torch.nn.Module"
        raise TypeError(f"expected {expected}, got {type(model).__name__}; pass the model itself")


def require_generator(generator: Any) -> None:
    """Raise TypeError for anything but a torch.Generator or None."""
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"expected a torch.Generator or None, got {type(generator).__name__}; for a seed pass "
            "torch.Generator().manual_seed(seed)"
        )


def require_extra(module: str, extra: str) -> ModuleType:
    """Import a library that belongs to an optional extra.

    Args:
        module: Name to import, such as ``"rich.table"``.
        extra: The extra of sparsecore that installs it, such as ``"cli"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: It is not installed; the message holds the command that installs it.

    Example:
        >>> require_extra("json", "cli").dumps([1])
        '[1]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'{error}; pip install "sparsecore[{extra}]"') from error
