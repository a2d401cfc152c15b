"""What float32 results may differ by from exact ones, and the exact ones: dense, float64, slow."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNIT = 2.0**-24

#: Activation in float64, its largest slope, and the error that a kernel may add relative to the result
#: (csrc/include/sparsecore/kernel.h).
ACTIVATIONS = {
    "none": (lambda y: y, 1.0, 0.0),
    "relu": (F.relu, 1.0, 0.0),
    "relu6": (F.relu6, 1.0, 0.0),
    "gelu": (F.gelu, 1.13, 4e-7),
    "silu": (F.silu, 1.1, 4e-7),
    "hardswish": (F.hardswish, 1.5, 2.0**-22),
    "sigmoid": (torch.sigmoid, 0.25, 4e-7),
    "hardsigmoid": (F.hardsigmoid, 1 / 6, 2.0**-22),
}


def gamma(n: Tensor | int) -> Tensor:
    """Higham's bound on the relative error of n float32 roundings."""
    n = torch.as_tensor(n, dtype=torch.float64)
    return n * UNIT / (1 - n * UNIT)


def dense_reference(
    layer: nn.Linear | nn.Conv2d, x: Tensor, activation: str = "none", residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the exact output of a dense layer, and how far each float32 element may be from it.

    The bound is gamma(n + 2) * sum |x| |w| over the n entries of the row that are not zero (and the residual, added
    before the activation), carried through the activation.
    """
    exact_layer = copy.deepcopy(layer).double()
    magnitude_layer = copy.deepcopy(exact_layer)
    with torch.no_grad():
        for parameter in magnitude_layer.parameters():
            parameter.abs_()
        y = exact_layer(x.double())
        magnitude = magnitude_layer(x.double().abs())
    terms = layer.weight.flatten(1).count_nonzero(1)
    if residual is not None:
        y, magnitude, terms = y + residual.double(), magnitude + residual.double().abs(), terms + 1
    if isinstance(layer, nn.Conv2d):
        terms = terms[:, None, None]
    function, slope, added = ACTIVATIONS[activation]
    bound = slope * gamma(terms + 2) * magnitude
    exact = function(y)
    return exact, bound + (added + UNIT) * (exact.abs() + bound)


def assert_within(found: Tensor, exact: Tensor, bound: Tensor) -> None:
    """Fail with the worst element if one is further from exact than its float32 bound; 16 bits round once more."""
    assert found.shape == exact.shape
    if found.dtype != torch.float32:
        info = torch.finfo(found.dtype)
        bound = bound + info.eps / 2 * (exact.abs() + bound + info.tiny)
    if found.numel() == 0:
        return
    error = (found.double() - exact).abs()
    excess = (error - bound).flatten()
    worst = int(excess.argmax())
    assert bool((error <= bound).all()), (
        f"element {worst}: got {found.flatten()[worst]}, expected {exact.flatten()[worst]} "
        f"within {bound.flatten()[worst]}"
    )
