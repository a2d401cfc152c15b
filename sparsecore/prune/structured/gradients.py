"""Changes to gradients between the backward pass and the step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.errors import UnsupportedError
from sparsecore.prune.masks import require_updates


def before_steps(optimizer: Optimizer, weights: Iterable[Tensor], change: Callable[[], None]) -> RemovableHandle:
    """Call a function before every step of an optimizer, which must hold some of the weights.

    There it runs once however many backward passes are accumulated, and sees gradients that mixed precision has
    scaled back.

    Raises:
        UnsupportedError: The optimizer is LBFGS; or, later, a step has a closure, which computes gradients anew.
        ValueError: The optimizer holds none of the weights.
    """
    require_updates(optimizer, weights)

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # torch gives the optimizer itself as the first of the arguments.
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise UnsupportedError(
                "a step with a closure computes new gradients, on which the change is lost; "
                "call backward() first, then step() without arguments"
            )
        change()

    return optimizer.register_step_pre_hook(hook)
