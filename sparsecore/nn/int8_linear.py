"""Linear layers over the int8 storages, for CPUs and for GPUs."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import DeltaWeight, FragmentWeight, delta, fragment
from sparsecore.nn.base import Layer, WeightFormat, widen
from sparsecore.nn.gpu_storage import DeltaInt8Storage, FragmentInt8Storage, RowsInt8Storage
from sparsecore.nn.linear import LinearGeometry
from sparsecore.nn.storage import BitmapInt8Storage, Int4Storage, Int8Storage, LookupStorage, QuantizedStorage
from sparsecore.ops.cuda import GpuWeight, check_cuda, spmm_packed


class QuantizedLinear(LinearGeometry, QuantizedStorage):
    """What the int8 linear layers share: moving a layer makes it the class that runs there."""

    runs_on_cuda: ClassVar[bool] = True

    def _num_channels(self) -> int:
        return self.weight_shape[1]

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.linear_int8(x, *self._arguments(residual), *self._output_arguments()))

    def _hold(self, weight: WeightFormat) -> None:
        if weight.device.type == "cuda":  # made from a layer that is there
            self.__class__ = _INT8_ON_GPU.get(type(self), type(self))
        super()._hold(weight)

    def _apply(self: Layer, fn: Any, recurse: bool = True) -> Layer:
        assert isinstance(self, QuantizedLinear)
        target = fn(torch.empty(0)).device
        if target.type == "cuda":  # packing is done on the CPU
            self._check_device(target)
            self._become(_INT8_ON_GPU.get(type(self), type(self)))
        super()._apply(fn, recurse)
        if target.type == "cpu":
            self._become(_INT8_ON_CPU.get(type(self), type(self)))
        return self

    def _become(self, kind: type[QuantizedLinear]) -> None:
        """Hold the weight as another class does; what else the layer has stays."""
        if kind is type(self):
            return
        weight = self._int8_weight()
        for name in self.packed_names:
            del self._buffers[name]
        self.__class__ = kind
        if issubclass(kind, LookupStorage):
            self.__dict__.setdefault("few_rows", False)
        self._hold(weight)


class Int8Linear(QuantizedLinear, Int8Storage):
    """A linear layer with a dense int8 weight; activations are quantized on the way in.

    Moved to a GPU, it becomes a RowsInt8Linear; moved back, an Int8Linear again.

    Example:
        >>> Int8Linear.from_dense(nn.Linear(8, 4))
        Int8Linear(in_features=8, out_features=4, bias=True)
    """


class SparseInt8Linear(QuantizedLinear, LookupStorage):
    """A linear layer with an int8 weight without its zeros, run by table lookup; the outputs equal Int8Linear's.

    Moved to a GPU, it becomes a FragmentInt8Linear; moved back, a SparseInt8Linear again.

    Example:
        >>> import torch
        >>> int8 = Int8Linear.from_dense(nn.Linear(8, 4))
        >>> x = torch.randn(2, 8)
        >>> torch.equal(SparseInt8Linear.from_int8(int8)(x), int8(x))
        True
    """


class BitmapInt8Linear(QuantizedLinear, BitmapInt8Storage):
    """SparseInt8Linear packed as a bitmap, for a few rows of activations; the outputs are equal.

    Example:
        >>> import torch
        >>> int8 = Int8Linear.from_dense(nn.Linear(8, 4))
        >>> x = torch.randn(2, 8)
        >>> torch.equal(BitmapInt8Linear.from_int8(int8)(x), int8(x))
        True
    """


class SparseInt4Linear(QuantizedLinear, Int4Storage):
    """A linear layer with a 4-bit weight without its zeros, and a scale per row and group of columns, for CPUs.

    Activations are quantized to int8 on the way in. About half the bytes of SparseInt8Linear, for a few rows of
    activations; ``from_dense()`` takes ``group_size`` and ``scales`` as Int4Weight.from_dense() does.

    Example:
        >>> import torch
        >>> layer = SparseInt4Linear.from_dense(nn.Linear(8, 4), group_size=16)
        >>> layer(torch.randn(2, 8)).shape, layer.weight_format.group_size
        (torch.Size([2, 4]), 16)
    """

    runs_on_cuda: ClassVar[bool] = False


class GpuQuantizedLinear(QuantizedLinear):
    """What the int8 linear layers for GPUs share."""

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        check_cuda(x.device, type(self).__name__)
        return super()._run(x, residual)

    def _output_arguments(self) -> tuple[Any, ...]:
        return self.activation, self.y_scale, self.y_zero_point, ""  # kernels are those of CPUs


class RowsInt8Linear(GpuQuantizedLinear, RowsInt8Storage):
    """Int8Linear on a GPU: what ``Int8Linear.to("cuda")`` becomes; the integers are the same.

    The weight is read once for every 32 rows of activations.

    Example:
        >>> layer = RowsInt8Linear.from_dense(nn.Linear(8, 4))
        >>> layer.weight_format.shape
        (4, 8)
    """


class FragmentInt8Linear(GpuQuantizedLinear, FragmentInt8Storage):
    """SparseInt8Linear on a GPU: what ``SparseInt8Linear.to("cuda")`` becomes; outputs equal RowsInt8Linear's.

    Example:
        >>> layer = FragmentInt8Linear.from_dense(nn.Linear(8, 4))
        >>> layer.weight_format.shape
        (4, 8)
    """


class WeightOnlyLinear(GpuQuantizedLinear):
    """What layers on int8 weights share that leave float16 and bfloat16 activations as they are.

    Their outputs are closer to the float layer's than those of the other int8 layers. ``x_scale`` waits for the way
    back to a CPU, where activations are quantized.
    """

    packed_type: ClassVar[type[GpuWeight]]

    def __init__(self, weight: WeightFormat, bias: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, bias, **options)
        if self.y_scale is not None:
            raise UnsupportedError(f"expected no y_scale, got {self.y_scale}: outputs have the type of x")

    @property
    def packed_weight(self) -> GpuWeight:
        """The weight as operations take it; it shares this layer's tensors."""
        *tensors, scale, _ = self._packed()
        fields: dict[str, Any] = dict(zip(_TENSOR_NAMES[self.packed_type], (*tensors, scale), strict=True))
        settings: dict[str, Any] = {"shape": self.weight_shape}
        if self.packed_type is FragmentWeight:
            settings |= {"value_bits": 8, "dtype": torch.int8, "max_tile_bytes": self.packed_shape.tile_bytes}
        return self.packed_type(**fields, **settings)

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        inverse, bias = self._buffers["x_channel_inverse"], self._parameters["bias"]
        x = x if inverse is None else x * inverse.to(x.dtype)
        wide = None if bias is None else widen(bias)
        return spmm_packed(x, self.packed_weight, wide, residual=residual, activation=self.activation)


class FragmentWeightOnlyLinear(WeightOnlyLinear, FragmentInt8Storage):
    """A linear layer on a GPU with an int8 weight without its zeros, and activations of 16 bits, on tensor cores.

    Example:
        >>> FragmentWeightOnlyLinear.from_dense(nn.Linear(8, 4)).weight_format.shape
        (4, 8)
    """

    packed_type: ClassVar[type[GpuWeight]] = FragmentWeight


class DeltaWeightOnlyLinear(WeightOnlyLinear, DeltaInt8Storage):
    """A linear layer on a GPU with a very sparse int8 weight, and activations of 16 bits.

    Example:
        >>> DeltaWeightOnlyLinear.from_dense(nn.Linear(8, 4)).weight_format.shape
        (4, 8)
    """

    packed_type: ClassVar[type[GpuWeight]] = DeltaWeight


_TENSOR_NAMES: dict[type[GpuWeight], tuple[str, ...]] = {
    FragmentWeight: fragment.TENSOR_NAMES,
    DeltaWeight: delta.TENSOR_NAMES,
}

_INT8_ON_GPU: dict[type[nn.Module], type[QuantizedLinear]] = {
    Int8Linear: RowsInt8Linear,
    SparseInt8Linear: FragmentInt8Linear,
    BitmapInt8Linear: FragmentInt8Linear,
}
_INT8_ON_CPU: dict[type[nn.Module], type[QuantizedLinear]] = {
    RowsInt8Linear: Int8Linear,
    FragmentInt8Linear: SparseInt8Linear,
    FragmentWeightOnlyLinear: SparseInt8Linear,
    DeltaWeightOnlyLinear: SparseInt8Linear,
}
