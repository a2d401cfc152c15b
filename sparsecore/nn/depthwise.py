"""The dense depthwise convolution that stands between sparse 1x1 ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats.check import FLOAT_DTYPES, check_tensor
from sparsecore.nn.base import widen
from sparsecore.nn.conv import as_pair, resolve_padding
from sparsecore.nn.dense import ActivatedLayer, plain_layer
from sparsecore.ops.shared import check_activation

Layer = TypeVar("Layer", bound="DepthwiseConv2d")


class DepthwiseConv2d(ActivatedLayer, nn.Conv2d):
    """nn.Conv2d with as many groups as input channels, for activations in NCHW, and an activation of its own.

    The weight is an ordinary dense parameter ``[N, 1, KH, KW]``, so ``state_dict()`` is that of nn.Conv2d and
    gradients reach all parameters. 16-bit activations and parameters are widened, and the output has the type of x.

    Args:
        arguments: those of nn.Conv2d.
        activation: one of ``sparsecore.ops.ACTIVATIONS``, applied to the output.
        kernel: name of the kernel to run; empty takes the first that fits this machine.
        keywords: those of nn.Conv2d.

    Raises:
        UnsupportedError: groups are not the input channels, or padding is not zeros, or not the same at both ends.
        ValueError: there is no such activation.

    Example:
        >>> layer = DepthwiseConv2d(8, 8, 3, padding=1, groups=8, activation="relu6")
        >>> layer(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    own_attributes = ("activation", "kernel", "pixels_of_padding")

    def __init__(self, *arguments: Any, activation: str = "none", kernel: str = "", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        check_activation(activation)
        _check_groups(self)
        self.activation = activation
        self.kernel = kernel
        self.pixels_of_padding = resolve_padding(self)

    @classmethod
    def from_dense(cls: type[Layer], dense: nn.Module, activation: str = "none", kernel: str = "") -> Layer:
        """Make the layer from a depthwise convolution, with whose parameters it goes on.

        Args:
            dense: an nn.Conv2d: a convolution with as many groups as input channels.
            activation: see DepthwiseConv2d.
            kernel: see DepthwiseConv2d.

        Raises:
            UnsupportedError: dense is not a convolution that this layer does.
            ValueError: there is no such activation.
        """
        if not isinstance(dense, nn.Conv2d) or isinstance(dense, nn.modules.lazy.LazyModuleMixin):
            raise UnsupportedError(f"expected an initialized nn.Conv2d, got {type(dense).__name__}")
        _check_groups(dense)
        padding = resolve_padding(dense)
        layer = super().from_dense(dense, activation)
        layer.kernel = kernel
        layer.pixels_of_padding = padding
        return layer

    def to_dense_module(self) -> nn.Conv2d:
        """Return the nn.Conv2d with the same parameters, without the activation."""
        dense = cast(nn.Conv2d, plain_layer(self))
        dense.padding = self.pixels_of_padding
        return dense

    def config(self) -> dict[str, Any]:
        """Return everything but the tensors, ready for JSON."""
        settings = {"padding": self.pixels_of_padding, "activation": self.activation, "kernel": self.kernel}
        return settings | {name: getattr(self, name) for name in ("in_channels", "stride", "dilation")}

    def tensors(self) -> dict[str, Tensor]:
        """Return the weight and the bias, if there is one, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @classmethod
    def from_config(cls: type[Layer], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Layer:
        """Build the layer from ``config()`` and ``tensors()``, which may come from anywhere.

        Raises:
            FormatError: a tensor or setting is missing, invalid, or does not fit the others.
            ValueError: a setting has an impossible value.
        """
        expected = {"in_channels", "stride", "padding", "dilation", "activation", "kernel"}
        if set(config) != expected:
            raise FormatError(f"expected settings {sorted(expected)}, got {sorted(config)}")
        options = dict(config)
        if not isinstance(options["kernel"], str):
            raise FormatError(f"expected the name of a kernel, got {options['kernel']!r}")
        weight = check_tensor("weight", tensors.get("weight"), FLOAT_DTYPES, (None, 1, None, None))
        N, _, *kernel_size = weight.shape
        in_channels = as_pair("in_channels", options.pop("in_channels"), 1)[0]
        if N % in_channels or 0 in weight.shape:
            raise FormatError(f"expected a weight [N, 1, KH, KW], N a multiple of {in_channels}, got {[*weight.shape]}")
        for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
            options[name] = as_pair(name, options[name], least)
        bias = tensors.get("bias")
        layer = cls(in_channels, N, kernel_size, groups=in_channels, bias=bias is not None, device="meta", **options)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(check_tensor("bias", bias, FLOAT_DTYPES, (N,)))
        return layer

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(convolution(x) + residual)`` for ``[B, C, H, W]`` or ``[C, H, W]``.

        Args:
            x: float32, bfloat16 or float16, on the CPU.
            residual: of the shape and dtype of the result.
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise RuntimeError(f"expected x [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if x.dim() == 3:
            return self.forward(x[None], None if residual is None else residual[None])[0]
        bias = None if self.bias is None else widen(self.bias)
        settings = (self.kernel_size, self.stride, self.pixels_of_padding, self.dilation)
        y: Tensor = raw.depthwise_conv2d(x, widen(self.weight), bias, residual, *settings, self.activation, self.kernel)
        return y


def _check_groups(conv: nn.Conv2d) -> None:
    if conv.groups != conv.in_channels:
        raise UnsupportedError(
            f"expected as many groups as input channels, {conv.in_channels}, got {conv.groups}; use SparseConv2d"
        )
