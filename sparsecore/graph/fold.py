"""BatchNorm into the layer before it, where one run shows that nothing else reads between them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from sparsecore.calls import ExampleInputs
from sparsecore.graph.copy import copy_model
from sparsecore.graph.observe import Observation, observe

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(model: nn.Module, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy in eval mode whose BatchNorm is folded into convolutions and linear layers.

    A BatchNorm is folded if in one run on the example it alone read the output of a plain layer, both ran once, and
    the layer's weight is not shared. It becomes nn.Identity; zeros of the weight stay zeros.

    Args:
        model: any module; it stays as it is.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of the model.

    Returns:
        The folded copy.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> fold_batchnorm(model, torch.randn(1, 3, 5, 5))[1]
        Identity()
    """
    folded = copy_model(model).eval()
    fold_batchnorm_(folded, observe(folded, example_inputs, foldable_layers(folded)))
    return folded


def foldable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that folding has to watch."""
    return {
        name: module for name, module in model.named_modules() if type(module) in (nn.Linear, *_CONVOLUTIONS, *_NORMS)
    }


def fold_batchnorm_(model: nn.Module, seen: Observation) -> list[str]:
    """Fold in place what the observation allows; return the names of the BatchNorms that became nn.Identity."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    folded = []
    for norm in [module for module in names if type(module) in _NORMS]:
        layer = seen.source(norm)
        if layer is None or not _can_fold(layer, norm, seen, owners):
            continue
        _fold(layer, norm)
        for name in names[norm]:
            model.set_submodule(name, nn.Identity().eval())
            folded.append(name)
    return folded


def _can_fold(layer: nn.Module, norm: nn.Module, seen: Observation, owners: Counter[int]) -> bool:
    # Linear puts its features last and BatchNorm takes them from dimension 1: the same for a matrix only.
    fits = type(layer) in _CONVOLUTIONS or (type(layer) is nn.Linear and len(seen.calls[layer][0].shape) == 2)
    return (
        fits
        and norm.running_mean is not None
        and not norm.training
        and seen.readers.get(layer) == [F.batch_norm]
        and all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
        and not (layer._forward_hooks or layer._forward_pre_hooks or norm._forward_hooks)
    )


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if type(layer) is nn.Linear else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight,
        layer.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
