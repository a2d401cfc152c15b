"""Layers become problems: weights like those of trained networks, masks, inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.problem import Problem
from sparsecore.prune import prune

# Sigma of the log-normal scales of rows and inputs: a stand-in for the unequal norms of trained layers.
SCALE_SIGMA = 0.3


def make_problem(layer: Layer, sparsity: float, mask: str, seed: int = 0) -> Problem:
    """Make a layer's weight, prune it, and make its input.

    Args:
        layer: Its sizes.
        sparsity: Share of zeros in the weight.
        mask: A name of `MASKS`.
        seed: Of the randomness; the same layer gets the same numbers at every sparsity.

    Returns:
        The problem.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(zlib.crc32(f"{layer.name} {seed}".encode()))
        module = _module(layer)
        nn.init.kaiming_normal_(module.weight)
        nn.init.normal_(module.bias, std=0.1)  # type: ignore[arg-type]
        x = torch.randn(layer.input_shape)
        MASKS[mask](module, sparsity)
    assert module.bias is not None
    weight, bias = (parameter.detach().numpy() for parameter in (module.weight, module.bias))
    return Problem(weight, bias, x.numpy(), layer.stride, layer.padding)


def _module(layer: Layer) -> nn.Linear | nn.Conv2d:
    if not layer.kernel:
        return nn.Linear(layer.C, layer.N)
    return nn.Conv2d(layer.C, layer.N, layer.kernel, layer.stride, layer.padding)


def _random(module: nn.Module, sparsity: float) -> None:
    """Zeros anywhere, all places alike."""
    prune(module, sparsity, criterion=lambda _, weight: torch.rand_like(weight))


def _magnitude(module: nn.Module, sparsity: float, pattern: str = "unstructured") -> None:
    """Rows and inputs of different scale, as training leaves them, so that magnitudes leave them unequally full."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    for dim in (0, 1):
        scales = weight.new_empty(weight.shape[dim]).log_normal_(std=SCALE_SIGMA)
        weight.mul_(scales.reshape([-1 if i == dim else 1 for i in range(weight.dim())]))
    prune(module, sparsity, pattern=pattern)


MASKS: dict[str, Callable[[nn.Module, float], None]] = {
    "magnitude": _magnitude,
    "random": _random,
    "4x1": partial(_magnitude, pattern="4x1"),
    "8x1": partial(_magnitude, pattern="8x1"),
}
