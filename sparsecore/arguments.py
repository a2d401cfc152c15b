"""Checks of arguments that many functions share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor, nn


def require_module(model: object, name: str = "the model") -> None:
    """Raise TypeError if something is no module.

    Example:
        >>> require_module([1])
        Traceback (most recent call last):
            ...
        TypeError: expected the model as a torch.nn.Module, got list
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected {name} as a torch.nn.Module, got {type(model).__name__}")


def is_real(value: object) -> bool:
    """Whether something is a real number, numpy's too, and no bool.

    Example:
        >>> is_real(0.5), is_real(True), is_real("0.5")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def finite_number(value: Any) -> float | None:
    """Return a finite number, also from a tensor or array with one element; None if it is none.

    Example:
        >>> import torch
        >>> finite_number(torch.tensor([2.0])), finite_number(float("nan")), finite_number("2")
        (2.0, None, None)
    """
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    elif hasattr(value, "item") and getattr(value, "size", None) == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def require_loss(value: Any) -> Tensor:
    """Return what a loss function gave, if a gradient can be taken of it.

    Raises:
        ValueError: It is no tensor with one element that has a gradient.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = f"{list(value.shape)}, gradient: {value.requires_grad}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"expected loss to return a tensor with one element and a gradient, got {shape}")
    return value.sum()
