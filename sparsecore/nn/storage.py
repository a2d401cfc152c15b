"""The storages: what buffers a layer has, and how activations are multiplied by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import (
    BitmapWeight,
    BlockCsrWeight,
    CsrWeight,
    Int8Weight,
    PanelWeight,
    bitmap,
    block_csr,
    panel,
)
from sparsecore.nn.base import CompressedModule, Layer, WeightFormat, widen
from sparsecore.quantize.affine import INPUT_MAX, INPUT_MIN, is_valid_scale

MAX_INT8_K = 65536  # int32 sums of longer rows could overflow: kMaxInt8K in csrc's ops.h


class CsrStorage(CompressedModule):
    """Float CSR."""

    weight_type: ClassVar[type[WeightFormat]] = CsrWeight
    takes_16_bits: ClassVar[bool] = True
    buffer_names: ClassVar[tuple[str, ...]] = ("row_ptr", "col_idx", "values")
    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return CsrWeight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)

    def _arguments(self) -> tuple[Any, ...]:
        row_ptr, col_idx, values = self._weight()
        return row_ptr, col_idx, widen(values), self._wide_bias()

    def _wide_bias(self) -> Tensor | None:
        """The bias as operations take it."""
        bias = self._parameters["bias"]
        return None if bias is None else widen(bias)


class PackedStorage(CsrStorage):
    """Float CSR, packed for kernels that want it in another order.

    In memory there is the packed form alone; ``state_dict()``, ``tensors()`` and bundles hold CSR.
    """

    packed_names: ClassVar[tuple[str, ...]]

    def _pack(self, weight: CsrWeight) -> PanelWeight | BlockCsrWeight | BitmapWeight:
        """Pack the weight; panels and blocks widen values to float32: they are read once for every activation."""
        raise NotImplementedError

    def _unpack_stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give row_ptr, col_idx and values back."""
        raise NotImplementedError

    def _hold(self, weight: WeightFormat) -> None:
        assert isinstance(weight, CsrWeight)
        packed = self._pack(weight)
        for name, tensor in zip(self.packed_names, packed.tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def _packed(self) -> list[Tensor]:
        buffers = cast("dict[str, Tensor]", self._buffers)
        return [buffers[name] for name in self.packed_names]

    def _stored(self) -> dict[str, Tensor]:
        return dict(zip(self.buffer_names, self._unpack_stored(), strict=True))

    def _apply(self: Layer, fn: Any, recurse: bool = True) -> Layer:
        assert isinstance(self, PackedStorage)
        packed = dict(self._buffers)
        super()._apply(fn, recurse)
        for name in self.packed_names:  # model.half() leaves the packed float32 values to their kernels
            tensor = self._buffers[name]
            if tensor is not None and tensor.dtype != packed[name].dtype:  # type: ignore[union-attr]
                self._buffers[name] = packed[name].to(tensor.device)  # type: ignore[union-attr]
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self._stored().items()})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        names = [name for name in self.buffer_names if prefix + name in state_dict]
        if names:
            given = {name: state_dict[prefix + name] for name in names}
            self._hold(self._checked_entry(prefix, given))
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in names}
        nn.Module._load_from_state_dict(self, rest, prefix, local_metadata, *args)
        missing_keys = args[1]  # after strict
        missing_keys.extend(prefix + name for name in self.buffer_names if name not in names)


class PanelStorage(PackedStorage):
    """Float CSR, packed for kernels that keep a panel of activations in the first-level cache.

    Args:
        panel_cols: columns of a panel.
    """

    keywords: ClassVar[tuple[str, ...]] = ("panel_cols",)
    packed_names: ClassVar[tuple[str, ...]] = panel.TENSOR_NAMES
    panel_cols: int

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        panel_cols: int,
        **options: Any,
    ) -> None:
        self.__dict__["panel_cols"] = panel_cols  # before nn.Module is set up: _hold() needs it
        super().__init__(weight, bias, **options)

    def _pack(self, weight: CsrWeight) -> PanelWeight:
        packed = PanelWeight.pack(weight.to(torch.float32), self.panel_cols)
        self.sizes = packed.sizes
        return packed

    def _unpack_stored(self) -> tuple[Tensor, Tensor, Tensor]:
        return raw.unpack_panel(self._packed(), self.sizes)

    def _arguments(self) -> tuple[Any, ...]:
        return self._packed(), self.sizes, self._wide_bias()


class BlockStorage(PackedStorage):
    """Float CSR of blocks of rows, for weights that were pruned in them (``pattern="4x1"``).

    Args:
        block_rows: 4 or 8.
    """

    keywords: ClassVar[tuple[str, ...]] = ("block_rows",)
    packed_names: ClassVar[tuple[str, ...]] = block_csr.TENSOR_NAMES
    block_rows: int

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        block_rows: int = block_csr.BLOCK_ROWS[0],
        **options: Any,
    ) -> None:
        self.__dict__["block_rows"] = block_rows  # before nn.Module is set up: _hold() needs it
        super().__init__(weight, bias, **options)

    def _pack(self, weight: CsrWeight) -> BlockCsrWeight:
        return BlockCsrWeight.pack(weight.to(torch.float32), self.block_rows)

    def _unpack_stored(self) -> tuple[Tensor, Tensor, Tensor]:
        return raw.unpack_block_csr(*self._packed())

    def _arguments(self) -> tuple[Any, ...]:
        return *self._packed(), self._wide_bias()


class BitmapStorage(PackedStorage):
    """Float CSR as a bitmap and packed values, the fewest bytes; 16-bit values stay such."""

    packed_names: ClassVar[tuple[str, ...]] = bitmap.TENSOR_NAMES

    def _pack(self, weight: CsrWeight) -> BitmapWeight:
        held = self._buffers.get("values")  # loading keeps the type of values, as in any torch module
        return BitmapWeight.pack(weight if held is None else weight.to(held.dtype))

    def _unpack_stored(self) -> tuple[Tensor, Tensor, Tensor]:
        return raw.unpack_bitmap(self._packed(), list(self.weight_shape))

    def _num_stored(self) -> int:
        return super()._num_stored() - bitmap.SLACK

    def _arguments(self) -> tuple[Any, ...]:
        return self._packed(), list(self.weight_shape), self._wide_bias()


class QuantizedStorage(CompressedModule):
    """int8 weight, and activations quantized on the way in. There are no gradients.

    Args:
        x_scale: scale of the activations, from calibration; None scales each row by its maximum.
        x_zero_point: the int8 value that stands for zero, with x_scale.
    """

    keywords: ClassVar[tuple[str, ...]] = ("x_scale", "x_zero_point")

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        x_scale: float | None = None,
        x_zero_point: int = 0,
        **options: Any,
    ) -> None:
        if weight.shape[1] > MAX_INT8_K:
            raise UnsupportedError(f"expected K of at most {MAX_INT8_K}, got {weight.shape[1]}")
        if bias is not None:
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        super().__init__(weight, bias, **options)
        self.x_scale, self.x_zero_point = _checked_input(x_scale, x_zero_point)

    def get_extra_state(self) -> Tensor:
        """Return [x_scale, x_zero_point], which come from data like weights; empty if dynamic."""
        state = [] if self.x_scale is None else [self.x_scale, self.x_zero_point]
        return torch.tensor(state, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.x_scale, self.x_zero_point = _input_from_state(state)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (state := state_dict.get(prefix + "_extra_state")) is not None:
            _input_from_state(state)  # raises before anything is changed
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _shared_arguments(self, group: int, groups: int) -> tuple[Any, ...]:
        """What both int8 operations take after the weight: bias, input, activation, kernel."""
        bias = self._parameters["bias"]
        part = None if bias is None else _rows(widen(bias), group, groups)
        return part, self.x_scale, self.x_zero_point, self.activation, self.kernel


def _checked_input(x_scale: Any, x_zero_point: Any) -> tuple[float | None, int]:
    if x_scale is not None and not is_valid_scale(x_scale):
        raise ValueError(f"expected a finite x_scale above 0, got {x_scale}")
    if type(x_zero_point) is not int or not INPUT_MIN <= x_zero_point <= INPUT_MAX:
        raise ValueError(f"expected an int8 x_zero_point, got {x_zero_point!r}")
    if x_scale is None and x_zero_point != 0:
        raise ValueError(f"expected an x_scale with x_zero_point={x_zero_point}")
    return None if x_scale is None else float(x_scale), x_zero_point


def _input_from_state(state: object) -> tuple[float | None, int]:
    values = state.tolist() if isinstance(state, Tensor) and state.dim() == 1 else None
    if values == []:
        return None, 0
    if values is None or len(values) != 2 or not float(values[1]).is_integer():
        raise FormatError(f"expected extra state [x_scale, x_zero_point] or nothing, got {state}")
    try:
        return _checked_input(values[0], int(values[1]))
    except ValueError as error:
        raise FormatError(str(error)) from None


def _rows(tensor: Tensor, group: int, groups: int) -> Tensor:
    """One of equal parts of a tensor."""
    size = tensor.shape[0] // groups
    return tensor if groups == 1 else tensor[group * size : (group + 1) * size]


class Int8Storage(QuantizedStorage):
    """Dense int8."""

    weight_type: ClassVar[type[WeightFormat]] = Int8Weight
    buffer_names: ClassVar[tuple[str, ...]] = ("q", "scale")
    q: Tensor
    scale: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> Int8Weight:
        return Int8Weight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Weight:
        return Int8Weight(**tensors)

    def _multiply(self, x: Tensor, group: int = 0, groups: int = 1) -> Tensor:
        weight = [_rows(tensor, group, groups) for tensor in self._weight()]
        return cast(Tensor, raw.gemm_int8(x, *weight, *self._shared_arguments(group, groups)))


class CsrInt8Storage(QuantizedStorage):
    """int8 CSR."""

    weight_type: ClassVar[type[WeightFormat]] = CsrWeight
    buffer_names: ClassVar[tuple[str, ...]] = ("row_ptr", "col_idx", "values", "scale")
    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor
    scale: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return Int8Weight.from_dense(weight).to_csr()

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)

    @classmethod
    def from_int8(cls: type[Layer], module: nn.Module) -> Layer:
        """Leave the zeros out of a dense int8 layer; the outputs stay equal."""
        if not isinstance(module, Int8Storage):
            raise UnsupportedError(f"expected a dense int8 layer, got {type(module).__name__}")
        return cls._rebuild(module, Int8Weight(module.q, module.scale).to_csr())

    @classmethod
    def from_sparse(cls: type[Layer], module: nn.Module, **options: Any) -> Layer:
        """Quantize a float CSR layer; options are x_scale and x_zero_point."""
        if not isinstance(module, CsrStorage):
            raise UnsupportedError(f"expected a float CSR layer, got {type(module).__name__}")
        weight = cast(CsrWeight, module.weight_format)
        return cls._rebuild(module, weight.quantize(), **options)

    def _multiply(self, x: Tensor, group: int = 0, groups: int = 1) -> Tensor:
        weight = self._weight() if groups == 1 else self._group(group, groups)
        arguments = self._shared_arguments(group, groups)
        return cast(Tensor, raw.spmm_csr_int8(x, *weight, *arguments))

    def _group(self, group: int, groups: int) -> list[Tensor]:
        """row_ptr, col_idx, values and scale of one of equal groups of rows."""
        raise NotImplementedError
