"""Checks of arguments that many functions share."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor


def is_real(value: object) -> bool:
    """Whether something is a real number, numpy's too, and no bool.

    Example:
        >>> is_real(0.5), is_real(True), is_real("0.5")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def require_loss(value: Any) -> Tensor:
    """Return what a loss function gave, as a scalar.

    Raises:
        ValueError: It is no tensor with one element.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"expected loss to return a tensor with one element, got {found}")
    return value.sum()
