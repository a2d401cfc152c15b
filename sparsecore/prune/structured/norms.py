"""Which BatchNorm reads the output of which layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.prune.structured.copies import copy_to
from sparsecore.prune.structured.layers import is_producer

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Scale = tuple[str, int]  # BatchNorm, channel


@torch.no_grad()
def norms_after(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, str]:
    """Find the BatchNorm behind each layer in a run on the example inputs.

    Args:
        model: Any module; it is not changed.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments that it runs on.

    Returns:
        Layer -> BatchNorm with running statistics that takes its output as it is; both ran once. Something else may
        read that output too.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> norms_after(model, torch.randn(1, 3, 8, 8))
        {'0': '1'}
    """
    watched = copy_to(model, None)
    made: dict[str, Tensor] = {}
    pairs: dict[str, str] = {}
    runs: Counter[str] = Counter()

    def after_layer(name: str, output: Any) -> None:
        runs[name] += 1
        made[name] = output

    def before_norm(name: str, x: Any) -> None:
        runs[name] += 1
        pairs.update({layer: name for layer, output in made.items() if output is x})

    for name, module in watched.named_modules():
        if is_producer(module):
            module.register_forward_hook(lambda _, inputs, output, name=name: after_layer(name, output))
        elif isinstance(module, BatchNorm) and module.running_mean is not None:
            module.register_forward_pre_hook(lambda _, inputs, name=name: before_norm(name, inputs[0]))
    call_model(watched, cloned(example_inputs))
    return {layer: norm for layer, norm in pairs.items() if runs[layer] == runs[norm] == 1}


@torch.no_grad()
def without_scales(model: nn.Module, scales: Iterable[Scale], *, keep_shifts: bool = False) -> nn.Module:
    """Return a copy in evaluation mode in which some of BatchNorm's gammas are zero, and betas too if not kept."""
    masked = copy_to(model, None)
    for name, channel in scales:
        norm = masked.get_submodule(name)
        norm.get_parameter("weight")[channel] = 0
        if norm.bias is not None and not keep_shifts:
            norm.get_parameter("bias")[channel] = 0
    return masked
