"""What the modules of operations share: the activations with their gradients, and checks of arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight

aten = torch.ops.aten

# Gradient of each activation from the gradient of its output and its input.
ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, x: grad,
    "relu": lambda grad, x: aten.threshold_backward(grad, x, 0),
    "relu6": lambda grad, x: aten.hardtanh_backward(grad, x, 0.0, 6.0),
    "gelu": lambda grad, x: aten.gelu_backward(grad, x),
    "silu": lambda grad, x: aten.silu_backward(grad, x),
    "hardswish": lambda grad, x: aten.hardswish_backward(grad, x),
    "sigmoid": lambda grad, x: aten.sigmoid_backward(grad, x.sigmoid()),
    "hardsigmoid": lambda grad, x: aten.hardsigmoid_backward(grad, x),
}
ACTIVATIONS = tuple(ACTIVATION_GRADIENTS)


def output_gradients(
    ctx: Any, grad: Tensor, bias: Tensor | None, recompute: Callable[[], Tensor], feature_dim: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the product, the bias and the residual in ``activation(product + bias + residual)``.

    Args:
        ctx: with ``activation``, ``has_residual`` and ``bias_index``, the place of the bias among the inputs.
        grad: gradient of the output.
        bias: ``[N]``, or None.
        recompute: gives what went into the activation, whose gradient needs it.
        feature_dim: dimension of the output that has N entries.
    """
    if ctx.activation != "none":
        grad = ACTIVATION_GRADIENTS[ctx.activation](grad, recompute())
    grad_bias = None
    if bias is not None and ctx.needs_input_grad[ctx.bias_index]:
        summed = [dim for dim in range(grad.dim()) if dim != feature_dim % grad.dim()]
        grad_bias = grad.sum(summed, dtype=bias.dtype) if summed else grad.to(bias.dtype)  # sum([]) sums over all
    return grad, grad_bias, grad if ctx.has_residual else None


def check_activation(name: object) -> None:
    """Raise ValueError unless it is one of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {name!r}")


def check_devices(x: Tensor, *others: Tensor | None) -> None:
    """Raise RuntimeError unless all are on x's device."""
    # The fakes also run when one argument is on the meta device and the others hold numbers.
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"expected all tensors on one device, got {x.device} and {other.device}")


def pair(value: int | Sequence[int]) -> list[int]:
    """Return the two entries of a setting that may be one number."""
    return [value, value] if isinstance(value, int) else list(value)


def require(weight: object, kind: type, dtype: torch.dtype) -> None:
    """Raise FormatError unless the weight is of that class and its values of that dtype."""
    if not isinstance(weight, kind):
        raise FormatError(
            f"expected a {kind.__name__}, got {type(weight).__name__}; make one with {kind.__name__}.from_dense()"
        )
    came = weight.values.dtype if isinstance(weight, CsrWeight) else dtype
    if came != dtype:
        way = "quantize()" if dtype == torch.int8 else "to(torch.float32)"
        raise FormatError(f"expected {dtype} values, got {came}; call weight.{way}")


def check_features(x: Tensor, dim: int, expected: int) -> None:
    """Raise RuntimeError unless x has that size in that dimension."""
    # Index arrays alone would take any x that is wide enough.
    if x.dim() > max(dim, 0) and x.shape[dim] != expected:
        raise RuntimeError(f"expected {expected} in dimension {dim} of x, got shape {list(x.shape)}")
