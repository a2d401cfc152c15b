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
from sparsecore.prune.patterns import Groups, parse_pattern

# Sigma of the log-normal scales of rows and inputs: a stand-in for the unequal norms of trained layers.
SCALE_SIGMA = 0.3
# Patterns of ``prune`` by magnitude, each a mask of that name.
PATTERNS = ("4x1", "8x1", "8:16", "4:16")


def make_problem(layer: Layer, sparsity: float, mask: str, seed: int = 0) -> Problem:
    """Make a layer's weight, prune it, and make its input.

    Args:
        layer: Its sizes.
        sparsity: Share of zeros in the weight.
        mask: A name of `MASKS`.
        seed: Of the randomness; the same layer gets the same numbers at every sparsity.

    Returns:
        The problem.

    Raises:
        ValueError: The mask has another share of zeros by itself.
        FormatError: The mask does not fit the layer.
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


def own_sparsity(mask: str) -> float | None:
    """The one share of zeros that a mask has, None if any will do."""
    return parse_pattern(mask).sparsity if mask in PATTERNS else None


def is_for(layer: Layer, mask: str) -> bool:
    """Whether a mask fits a layer: one of groups needs a whole number of them along K."""
    pattern = parse_pattern(mask) if mask in PATTERNS else None
    return not isinstance(pattern, Groups) or layer.K % pattern.group == 0


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
    **{pattern: partial(_magnitude, pattern=pattern) for pattern in PATTERNS},
}
