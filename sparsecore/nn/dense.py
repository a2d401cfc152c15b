"""Dense layers with what the compressed ones have: an activation and a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.ops import ACTIVATIONS

# In place where torch can.
_FUNCTIONS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "none": lambda y, inplace: y,
    "relu": lambda y, inplace: F.relu(y, inplace),
    "relu6": lambda y, inplace: F.relu6(y, inplace),
    "gelu": lambda y, inplace: F.gelu(y),
    "silu": lambda y, inplace: F.silu(y, inplace),
    "hardswish": lambda y, inplace: F.hardswish(y, inplace),
    "sigmoid": lambda y, inplace: y.sigmoid_() if inplace else y.sigmoid(),
    "hardsigmoid": lambda y, inplace: F.hardsigmoid(y, inplace),
}
assert tuple(_FUNCTIONS) == ACTIVATIONS


class DenseLayer(nn.Module):
    """A torch.nn layer whose output goes through ``activation(y + residual)``.

    Attributes:
        activation: one of ``sparsecore.ops.ACTIVATIONS``.
    """

    activation: str

    @classmethod
    def from_dense(cls, dense: nn.Module, activation: str = "none") -> DenseLayer:
        """Wrap a torch.nn layer; parameters are shared with it.

        Raises:
            ValueError: there is no such activation.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation of {ACTIVATIONS}, got {activation!r}")
        layer = cls.__new__(cls)
        layer.__dict__.update(dense.__dict__)
        for registry in ("_parameters", "_buffers", "_modules"):
            layer.__dict__[registry] = dict(dense.__dict__[registry])
        layer.activation = activation
        return layer

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        in_place = not torch.is_grad_enabled()  # nobody else has y
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return _FUNCTIONS[self.activation](y, in_place)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.activation == "none" else f"{shown}, activation={self.activation}"


class DenseConv2d(DenseLayer, nn.Conv2d):
    """``activation(conv2d(x) + residual)`` by PyTorch.

    Example:
        >>> DenseConv2d.from_dense(nn.Conv2d(3, 8, 3), "relu")
        DenseConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), activation=relu)
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._finish(super().forward(x), residual)


class DenseLinear(DenseLayer, nn.Linear):
    """``activation(linear(x) + residual)`` by PyTorch.

    Example:
        >>> DenseLinear.from_dense(nn.Linear(8, 4), "gelu")
        DenseLinear(in_features=8, out_features=4, bias=True, activation=gelu)
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._finish(super().forward(x), residual)


_DENSE_LAYERS: dict[type[nn.Module], type[DenseLayer]] = {nn.Conv2d: DenseConv2d, nn.Linear: DenseLinear}


def dense_layer(dense: nn.Module, activation: str = "none") -> DenseLayer:
    """The dense layer for an ``nn.Conv2d`` or ``nn.Linear``, which it shares its parameters with."""
    return _DENSE_LAYERS[type(dense)].from_dense(dense, activation)


def plain_layer(layer: Any) -> nn.Module:
    """The torch.nn layer of a dense layer, without its activation; parameters are shared."""
    kind = next(kind for kind, own in _DENSE_LAYERS.items() if isinstance(layer, own))
    plain = kind.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    del plain.__dict__["activation"]
    return plain
