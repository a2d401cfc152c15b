"""What a model costs, by counting."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsecore.calibration import call_model, evaluation_mode, every_layer_called


@torch.no_grad()
def count_multiply_adds(model: nn.Module, inputs: Any) -> int:
    """Count the multiply-adds of one call, of the matrix products, convolutions and attention that really run.

    Products with stored zeros count; additions of a bias, activations and normalisation do not, and neither do the
    layers of :mod:`sparsecore.nn`.

    Args:
        model: Any module of PyTorch's own layers; it runs once, in evaluation mode.
        inputs: A tensor, a tuple or list of positional or a dict of keyword arguments.

    Returns:
        Multiply-adds of the whole batch; each is two floating-point operations.

    Example:
        >>> count_multiply_adds(nn.Linear(100, 10), torch.ones(4, 100))
        4000
    """
    counter = FlopCounterMode(display=False)
    with evaluation_mode(model), every_layer_called(), counter:
        call_model(model, inputs)
    return counter.get_total_flops() // 2
