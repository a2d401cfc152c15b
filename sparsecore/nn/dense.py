"""Dense layers with what the compressed ones have: an activation of their own and a residual."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.ops import ACTIVATIONS
from sparsecore.ops.shared import check_activation

Activated = TypeVar("Activated", bound="ActivatedLayer")
Module = TypeVar("Module", bound=nn.Module)

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


def activate(y: Tensor, activation: str) -> Tensor:
    """Apply one of ``sparsecore.ops.ACTIVATIONS`` by PyTorch."""
    return _FUNCTIONS[activation](y, False)


class ActivatedLayer(nn.Module):
    """A torch.nn layer with an activation of its own.

    Attributes:
        activation: one of ``sparsecore.ops.ACTIVATIONS``.
    """

    activation: str
    own_attributes: ClassVar[tuple[str, ...]] = ("activation",)  # those that the torch.nn layer has not

    @classmethod
    def from_dense(cls: type[Activated], dense: nn.Module, activation: str = "none") -> Activated:
        """Wrap a torch.nn layer; parameters are shared with it.

        Raises:
            ValueError: there is no such activation.
        """
        check_activation(activation)
        layer = _sharing_parameters(cls, dense)
        layer.activation = activation
        return layer

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.activation == "none" else f"{shown}, activation={self.activation}"


def plain_layer(layer: ActivatedLayer) -> nn.Module:
    """The torch.nn layer of a layer, without its activation; parameters are shared."""
    kind = next(kind for kind in _DENSE_LAYERS if isinstance(layer, kind))
    plain = _sharing_parameters(kind, layer)
    for name in layer.own_attributes:
        plain.__dict__.pop(name, None)
    return plain


def _sharing_parameters(kind: type[Module], layer: nn.Module) -> Module:
    """A layer of another class with the attributes, parameters and hooks of this one; later ones are each its own."""
    other = kind.__new__(kind)
    other.__dict__.update(
        (name, copy.copy(value) if isinstance(value, dict) else value) for name, value in layer.__dict__.items()
    )
    return other


class DenseLayer(ActivatedLayer):
    """A torch.nn layer whose output goes through ``activation(y + residual)``, by PyTorch."""

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        in_place = not torch.is_grad_enabled()  # nobody else has y
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return _FUNCTIONS[self.activation](y, in_place)


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


# Activations that oneDNN applies itself: its name, scalars and algorithm.
_ONEDNN: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "sigmoid": ("sigmoid", [], ""),
    "hardsigmoid": ("hardsigmoid", [], ""),
}


class _PackedLayer(DenseLayer):
    """A dense layer whose weight is packed for oneDNN by the first call, beside ``weight``.

    Gradients, torch.compile and saving read ``weight``, and so does what oneDNN is not there for.
    """

    own_attributes = ("activation", "_packed")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self._suits(x):
            return cast(Tensor, super().forward(x, residual))
        weight = self.__dict__.get("_packed")
        if weight is None:
            weight = self.__dict__["_packed"] = self._pack(x)
        return self._call(x, weight, residual)

    def _suits(self, x: Tensor) -> bool:
        is_cpu_float = x.device.type == "cpu" and x.dtype == torch.float32
        return is_cpu_float and x.numel() > 0 and torch.backends.mkldnn.is_available()

    def _pack(self, x: Tensor) -> Tensor:
        """The weight as oneDNN wants it for inputs like x."""
        raise NotImplementedError  # oneDNN packs convolutions and linear layers by operations of their own

    def _call(self, x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        """The layer on its packed weight."""
        raise NotImplementedError  # as above

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("_packed", None)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class ChannelsLastConv2d(_PackedLayer, DenseConv2d):
    """DenseConv2d in PyTorch's fastest form on CPUs: channels-last, the weight packed for oneDNN, one pass for all.

    Channels-last inputs give channels-last outputs. The packed weight is made by the first call, beside ``weight``,
    which gradients, torch.compile and saving read.

    Example:
        >>> layer = ChannelsLastConv2d.from_dense(nn.Conv2d(3, 8, 3), "relu").eval()
        >>> with torch.no_grad():
        ...     layer(torch.randn(1, 3, 5, 5)).is_contiguous(memory_format=torch.channels_last)
        True
    """

    def _suits(self, x: Tensor) -> bool:
        return x.dim() == 4 and not isinstance(self.padding, str) and super()._suits(x)

    def _pack(self, x: Tensor) -> Tensor:
        settings = (self.padding, self.stride, self.dilation, self.groups, list(x.shape))
        return cast(Tensor, torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *settings))

    def _call(self, x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        settings = (self.padding, self.stride, self.dilation, self.groups)
        convolve = torch.ops.mkldnn._convolution_pointwise
        if residual is None:
            name, scalars, algorithm = _ONEDNN[self.activation]
            return cast(Tensor, convolve.default(x, weight, self.bias, *settings, name, scalars, algorithm))
        last = "relu" if self.activation == "relu" else None  # the only one that goes with a sum
        y: Tensor = convolve.binary(x, residual, weight, self.bias, *settings, "add", 1.0, last, [], "")
        return y if last else self._finish(y, None)


class PackedLinear(_PackedLayer, DenseLinear):
    """DenseLinear in PyTorch's fastest form on CPUs: the weight packed for oneDNN, one pass for all.

    The packed weight is made by the first call, beside ``weight``, which gradients, torch.compile and saving read.

    Example:
        >>> layer = PackedLinear.from_dense(nn.Linear(8, 4), "gelu").eval()
        >>> with torch.no_grad():
        ...     layer(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """

    def _suits(self, x: Tensor) -> bool:
        return self.weight.numel() > 0 and super()._suits(x)

    def _pack(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows))

    def _call(self, x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            name, scalars, algorithm = _ONEDNN[self.activation]
            return cast(Tensor, multiply.default(x, weight, self.bias, name, scalars, algorithm))
        return self._finish(multiply.binary(x, residual, weight, self.bias, "add"), None)


_DENSE_LAYERS: dict[type[nn.Module], type[DenseLayer]] = {nn.Conv2d: DenseConv2d, nn.Linear: DenseLinear}


def dense_layer(dense: nn.Module, activation: str = "none") -> DenseLayer:
    """The dense layer for an ``nn.Conv2d`` or ``nn.Linear``, which it shares its parameters with."""
    return _DENSE_LAYERS[type(dense)].from_dense(dense, activation)
