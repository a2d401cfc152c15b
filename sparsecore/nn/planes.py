"""Layers on binary and ternary weights, which run from a bit (or two) for each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import BinaryWeight, PlanesWeight, TernaryWeight
from sparsecore.nn.base import WeightFormat, widen
from sparsecore.nn.conv import Conv2dGeometry
from sparsecore.nn.linear import LinearGeometry
from sparsecore.nn.storage import PackedStorage


class PlanesStorage(PackedStorage):
    """A bit for each weight and plane."""

    takes_16_bits: ClassVar[bool] = True
    packed_names: ClassVar[tuple[str, ...]] = ("words", "plane_scale")
    planes_type: ClassVar[type[BinaryWeight] | type[TernaryWeight]]

    @classmethod
    def _compress(cls, weight: Tensor) -> WeightFormat:
        return cls.planes_type.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WeightFormat:
        return cls.planes_type(**tensors, shape=shape)

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, BinaryWeight | TernaryWeight)
        return PlanesWeight.pack(weight).tensors

    def _unpack_stored(self) -> Sequence[Tensor]:
        words, scale = self._packed()
        weight = PlanesWeight(words, scale, self.weight_shape).unpack()
        return [getattr(weight, name) for name in self.buffer_names]

    def count_nonzero(self) -> int:
        return int(self.weight_format.to_dense().count_nonzero())

    def _arguments(self) -> tuple[Any, ...]:
        bias = self._parameters["bias"]
        return self._packed(), list(self.weight_shape), None if bias is None else widen(bias)


class BinaryStorage(PlanesStorage):
    """Plus or minus a scale per row: one bit each."""

    weight_type = planes_type = BinaryWeight
    buffer_names: ClassVar[tuple[str, ...]] = ("sign", "scale")


class TernaryStorage(PlanesStorage):
    """-a, 0 or +b, with scales a and b per row: two bits each."""

    weight_type = planes_type = TernaryWeight
    buffer_names: ClassVar[tuple[str, ...]] = ("nonzero", "sign", "positive_scale", "negative_scale")


class PlanesLinear(LinearGeometry, PlanesStorage):
    """What the linear layers on bit planes share."""

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.spmm_planes(x, *self._arguments(), residual, self.activation, "rows", self.kernel))


class PlanesConv2d(Conv2dGeometry, PlanesStorage):
    """What the convolutions on bit planes share: products with unfolded images, of KH * KW times their size.

    One group only.
    """

    def __init__(self, weight: WeightFormat, bias: Tensor | None = None, *, groups: int = 1, **options: Any) -> None:
        if groups != 1:
            raise UnsupportedError(f"expected 1 group, got {groups}; keep this layer dense")
        super().__init__(weight, bias, groups=groups, **options)

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        settings = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        size = [(n + 2 * pad - spread * (k - 1) - 1) // step + 1 for n, k, step, pad, spread in settings]
        columns = x if self.is_product else F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        added = residual if residual is None or self.is_product else residual.flatten(2)
        y = raw.spmm_planes(columns, *self._arguments(), added, self.activation, "columns", self.kernel)
        return cast(Tensor, y).view(x.shape[0], self.out_channels, *size)


class BinaryLinear(PlanesLinear, BinaryStorage):
    """A linear layer whose weights are plus or minus a scale per row: 1 bit each, in memory and where they are used.

    Courbariaux et al., BinaryConnect: Training Deep Neural Networks with binary weights during propagations, NeurIPS
    2015, trains such weights.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(64, 4)
        >>> with torch.no_grad():
        ...     _ = linear.weight.copy_(linear.weight.sign() * 0.5)
        >>> layer = BinaryLinear.from_dense(linear)
        >>> layer.tensors()["sign"].shape, torch.equal(layer.weight, linear.weight)
        (torch.Size([4, 8]), True)
    """


class TernaryLinear(PlanesLinear, TernaryStorage):
    """A linear layer whose weights are -a, 0 or +b, with scales a and b per row: 2 bits each.

    Zhu et al., Trained Ternary Quantization, ICLR 2017, trains such weights.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(8, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = linear.weight.copy_(torch.tensor([[0.5, 0, -0.25, 0, 0, 0.5, 0, 0]]))
        >>> TernaryLinear.from_dense(linear)(torch.arange(8.0))
        tensor([2.])
    """


class BinaryConv2d(PlanesConv2d, BinaryStorage):
    """BinaryLinear's weights in a convolution, which unfolds its images.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> with torch.no_grad():
        ...     _ = conv.weight.copy_(conv.weight.sign() * 0.5)
        >>> BinaryConv2d.from_dense(conv)(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """


class TernaryConv2d(PlanesConv2d, TernaryStorage):
    """TernaryLinear's weights in a convolution, which unfolds its images.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> with torch.no_grad():
        ...     _ = conv.weight.copy_(conv.weight.sign() * (conv.weight.abs() > 0.1))
        >>> TernaryConv2d.from_dense(conv)(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """
