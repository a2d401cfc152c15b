"""2-D convolutions over the three storages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sparsecore import ops
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn.base import (
    CompressedModule,
    CsrInt8Storage,
    CsrStorage,
    Int8Storage,
    WeightFormat,
)

Pair = tuple[int, int]


class Conv2dGeometry(CompressedModule):
    """``x [B, C, H, W]`` or ``[C, H, W]`` to N channels; the weight is ``[N, C / groups * KH * KW]``.

    Args:
        weight: the weight.
        bias: ``[N]``, or None.
        kernel_size, stride, padding, dilation: an int or a pair of them; padding is with zeros.
        groups: parts that channels are split into.
        options: see CompressedModule and, for int8, QuantizedStorage.
    """

    keywords = ("kernel_size", "stride", "padding", "dilation", "groups")
    dense_type = nn.Conv2d

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        self.out_channels = weight.shape[0]
        super().__init__(weight, bias, **options)
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        self.dilation = _pair("dilation", dilation, 1)
        self.groups = _pair("groups", groups, 1)[0]
        rows, cols = weight.shape
        area = self.kernel_size[0] * self.kernel_size[1]
        if cols % area or rows % self.groups:
            raise FormatError(
                f"expected a weight [N, C * {area}] with N a multiple of groups={self.groups}, got {weight.shape}"
            )
        self.out_channels, self.in_channels = rows, cols // area * self.groups

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        assert isinstance(dense, nn.Conv2d)
        if dense.padding_mode != "zeros":
            raise UnsupportedError(
                f"expected padding with zeros, got {dense}; keep this layer dense"
            )
        keywords = {name: getattr(dense, name) for name in Conv2dGeometry.keywords}
        return keywords | {"padding": resolve_padding(dense)}

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x[None])[0] if x.dim() == 3 else self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def to_dense_module(self) -> nn.Conv2d:
        """Return the nn.Conv2d with the (dequantized) weight, without the fused activation."""
        geometry = {name: getattr(self, name) for name in Conv2dGeometry.keywords}
        dense = skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, bias=self.bias is not None, **geometry
        )
        self._fill_dense(dense)
        return dense

    def extra_repr(self) -> str:
        shown = {
            "kernel_size": None,
            "stride": (1, 1),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
        }
        geometry = [
            f"{name}={getattr(self, name)}"
            for name, usual in shown.items()
            if getattr(self, name) != usual
        ]
        return ", ".join(
            [str(self.in_channels), str(self.out_channels), *geometry, self._options_repr()]
        )


class SparseConv2d(Conv2dGeometry, CsrStorage):
    """A convolution with a float32 CSR weight, run directly, or as a matrix product if it is a plain 1x1.

    Example:
        >>> layer = SparseConv2d.from_dense(nn.Conv2d(3, 8, 3, padding="same"))
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def _convolve(self, x: Tensor) -> Tensor: ...


class QuantizedConv2d(Conv2dGeometry):
    """int8 convolution as a product: each output pixel's patch becomes a row of activations (F.unfold), and dynamic
    quantization scales each of these rows, per group. The patches take KH * KW times the memory of x.
    """

    def _convolve(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        rows = patches.unflatten(1, (self.groups, self.weight_shape[1])).transpose(
            2, 3
        )  # [B, groups, P, K]
        y = torch.cat(
            [self._multiply(rows[:, g], g, self.groups) for g in range(self.groups)], dim=-1
        )
        return y.transpose(1, 2).unflatten(2, self._out_size(x))

    def _out_size(self, x: Tensor) -> tuple[int, ...]:
        axes = zip(
            x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        )
        return tuple(
            (size + 2 * pad - dilation * (k - 1) - 1) // step + 1
            for size, k, step, pad, dilation in axes
        )


class Int8Conv2d(QuantizedConv2d, Int8Storage):
    """A convolution with a dense int8 weight; activations are quantized on the way in, patch by patch.

    Example:
        >>> Int8Conv2d.from_dense(nn.Conv2d(3, 8, 3, stride=2))
        Int8Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), bias=True)
    """


class SparseInt8Conv2d(QuantizedConv2d, CsrInt8Storage):
    """A convolution with an int8 CSR weight; the outputs equal those of Int8Conv2d.

    Example:
        >>> int8 = Int8Conv2d.from_dense(nn.Conv2d(3, 8, 3))
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.equal(SparseInt8Conv2d.from_int8(int8)(x), int8(x))
        True
    """


def resolve_padding(conv: nn.Conv2d) -> Pair:
    """Return the padding of a convolution in numbers.

    Raises:
        UnsupportedError: "same" that takes one more zero at one end than at the other.
    """
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = [
            dilation * (k - 1) for k, dilation in zip(conv.kernel_size, conv.dilation, strict=True)
        ]
        if any(size % 2 for size in total):
            raise UnsupportedError(
                f"expected padding of equal size at both ends, got {conv}; keep this layer dense"
            )
        return total[0] // 2, total[1] // 2
    return _pair("padding", conv.padding, 0)


def _pair(name: str, value: Any, least: int) -> Pair:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(type(size) is int and size >= least for size in pair):
        raise ValueError(
            f"expected {name} as an int or two ints of at least {least}, got {value!r}"
        )
    return pair
