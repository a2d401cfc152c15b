"""Copying a model that torch.nn.utils.prune holds in its hands."""

from __future__ import annotations

import copy

from torch import Tensor, nn


def copy_model(model: nn.Module) -> nn.Module:
    """Deep-copy a module, also one with computed tensors among its attributes.

    torch.nn.utils.prune leaves ``weight`` as the product of weight_orig and its mask, which torch refuses to copy
    because it has a history; here it is copied as plain numbers.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
