"""The storages: what buffers a layer has, and how activations are multiplied by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import (
    BitmapWeight,
    BlockCsrWeight,
    CodebookWeight,
    CsrWeight,
    Int4Weight,
    Int8Weight,
    JitProgram,
    PackedCodebookWeight,
    PackedInt4Weight,
    PackedInt8Weight,
    PanelWeight,
    bitmap,
    block_csr,
    packed_codebook,
    panel,
)
from sparsecore.formats.check import check_tensor
from sparsecore.nn.base import CompressedModule, Layer, WeightFormat, widen
from sparsecore.nn.scales import check_channel_scale, checked_scale, input_from_state, times_channels

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
        # GPUs take values of 16 bits as they are.
        return row_ptr, col_idx, values if values.is_cuda else widen(values), self._wide_bias()

    def _values_dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.get_buffer("values").dtype

    def _wide_bias(self) -> Tensor | None:
        """The bias as operations take it."""
        bias = self._parameters["bias"]
        return None if bias is None else widen(bias)


class PackedStorage(CompressedModule):
    """A weight that is packed for kernels which want it in another order than the stored one.

    In memory there is the packed form alone; ``state_dict()``, ``tensors()`` and bundles hold the stored one.
    """

    packed_names: ClassVar[tuple[str, ...]]

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        """Pack the weight, to tensors for packed_names."""
        raise NotImplementedError

    def _unpack_stored(self) -> Sequence[Tensor]:
        """Give the stored tensors back."""
        raise NotImplementedError

    def _hold(self, weight: WeightFormat) -> None:
        for name, tensor in zip(self.packed_names, self._pack(weight), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def _packed(self) -> list[Tensor]:
        buffers = cast("dict[str, Tensor]", self._buffers)
        return [buffers[name] for name in self.packed_names]

    def _stored(self) -> dict[str, Tensor]:
        return dict(zip(self.buffer_names, self._unpack_stored(), strict=True))

    def _fixed_dtype_names(self) -> tuple[str, ...]:
        return self.packed_names

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


class PanelStorage(PackedStorage, CsrStorage):
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

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        # Widened once: values are read as often as there are activations.
        packed = PanelWeight.pack(weight.to(torch.float32), self.panel_cols)
        self.sizes = packed.sizes
        return packed.tensors

    def _unpack_stored(self) -> Sequence[Tensor]:
        return raw.unpack_panel(self._packed(), self.sizes)

    def _arguments(self) -> tuple[Any, ...]:
        return self._packed(), self.sizes, self._wide_bias()


class JitStorage(PackedStorage, CsrStorage):
    """Float CSR, and machine code that was generated from it."""

    packed_names: ClassVar[tuple[str, ...]] = CsrStorage.buffer_names
    program: JitProgram

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        self.program = JitProgram(weight.to(torch.float32), self._filter())
        return self.program.arguments[:3]

    def _filter(self) -> Sequence[int]:
        """KH and KW of a convolution; empty for all else."""
        return ()

    def _unpack_stored(self) -> Sequence[Tensor]:
        return [tensor.clone() for tensor in self._packed()]  # the code would not follow a change

    def _arguments(self) -> tuple[Any, ...]:
        return *self._packed(), self.program.number, self._wide_bias()


class BlockStorage(PackedStorage, CsrStorage):
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

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        return BlockCsrWeight.pack(weight.to(torch.float32), self.block_rows).tensors

    def _unpack_stored(self) -> Sequence[Tensor]:
        return raw.unpack_block_csr(*self._packed())

    def _arguments(self) -> tuple[Any, ...]:
        return *self._packed(), self._wide_bias()


class BitmapStorage(PackedStorage, CsrStorage):
    """Float CSR as a bitmap and packed values, the fewest bytes; 16-bit values stay such."""

    packed_names: ClassVar[tuple[str, ...]] = bitmap.TENSOR_NAMES

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        held = self._buffers.get("values")  # loading keeps the type of values, as in any torch module
        return BitmapWeight.pack(weight if held is None else weight.to(held.dtype)).tensors

    def _unpack_stored(self) -> Sequence[Tensor]:
        return raw.unpack_bitmap(self._packed(), list(self.weight_shape))

    def _num_stored(self) -> int:
        return super()._num_stored() - bitmap.SLACK

    def _arguments(self) -> tuple[Any, ...]:
        return self._packed(), list(self.weight_shape), self._wide_bias()


class CodebookStorage(PackedStorage):
    """A weight of few different values as codes and gaps, which run as they are."""

    weight_type: ClassVar[type[WeightFormat]] = CodebookWeight
    takes_16_bits: ClassVar[bool] = True
    # sizes: bits of a code, bits of a gap, entries; int32
    buffer_names: ClassVar[tuple[str, ...]] = ("codebook", "codes", "gaps", "sizes")
    packed_names: ClassVar[tuple[str, ...]] = tuple(f"packed_{name}" for name in packed_codebook.TENSOR_NAMES)

    @classmethod
    def _compress(cls, weight: Tensor) -> CodebookWeight:
        return CodebookWeight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CodebookWeight:
        bits, gap_bits, num_entries = check_tensor("sizes", tensors["sizes"], (torch.int32,), (3,)).tolist()
        codebook, codes, gaps = (tensors[name] for name in cls.buffer_names[:3])
        return CodebookWeight(codebook, codes, gaps, bits, gap_bits, num_entries, shape)

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CodebookWeight)
        packed = PackedCodebookWeight.pack(weight)
        self.packed_sizes, self.num_values = packed.sizes, packed.num_values
        return packed.tensors

    def _unpack_stored(self) -> Sequence[Tensor]:
        weight = packed_codebook.unpack(self._packed(), self.packed_sizes, self.num_values)
        sizes = torch.tensor([weight.bits, weight.gap_bits, weight.num_entries], dtype=torch.int32)
        return weight.codebook, weight.codes, weight.gaps, sizes.to(weight.device)

    def _arguments(self) -> tuple[Any, ...]:
        bias = self._parameters["bias"]
        return self._packed(), self.packed_sizes, None if bias is None else widen(bias)

    def count_nonzero(self) -> int:
        return cast(CodebookWeight, self.weight_format).nnz

    def count_multiplies(self, x: Tensor) -> Tensor:
        """Count the multiplications that rows of x take: columns whose activation is zero are skipped.

        Args:
            x: ``[..., K]`` float32.

        Returns:
            ``[...]`` int64, the non-zeros of the columns where x is not zero.
        """
        return cast(Tensor, raw.codebook_multiplies(x, self._packed(), self.packed_sizes))


class QuantizedStorage(PackedStorage):
    """int8 weight, and activations quantized on the way in. There are no gradients.

    Args:
        x_scale: scale of the activations, from calibration; None scales each row (of a convolution, each image) by
            its maximum.
        x_zero_point: the int8 value that stands for zero, with x_scale.
        y_scale: scale of int8 outputs, from calibration, so that the next layer takes them as they are (its x_scale and
            x_zero_point are these); None gives floating point. Such a layer also takes int8 x, with x_scale.
        y_zero_point: the int8 value that stands for zero, with y_scale.
        x_channel_scale: ``[in_features]`` or ``[in_channels]`` float32, positive: activations are divided by it
            first, and the weight is already multiplied with it; None divides by nothing.
    """

    keywords: ClassVar[tuple[str, ...]] = ("x_scale", "x_zero_point", "y_scale", "y_zero_point")
    takes_16_bits: ClassVar[bool] = True
    packing: ClassVar[str]  # a format of PackedInt8Weight
    x_channel_scale: Tensor | None

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        x_scale: float | None = None,
        x_zero_point: int = 0,
        y_scale: float | None = None,
        y_zero_point: int = 0,
        x_channel_scale: Tensor | None = None,
        **options: Any,
    ) -> None:
        if weight.shape[1] > MAX_INT8_K:
            raise UnsupportedError(f"expected K of at most {MAX_INT8_K}, got {weight.shape[1]}")
        if bias is not None:
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        super().__init__(weight, bias, **options)
        self.x_scale, self.x_zero_point = checked_scale("x", x_scale, x_zero_point)
        self.y_scale, self.y_zero_point = checked_scale("y", y_scale, y_zero_point)
        self._hold_channel_scale(x_channel_scale)

    def _hold_channel_scale(self, scale: Tensor | None) -> None:
        if scale is not None:
            check_channel_scale(scale, self._num_channels())
        self.register_buffer("x_channel_scale", scale)
        self.register_buffer("x_channel_inverse", None if scale is None else scale.reciprocal(), persistent=False)

    def _num_channels(self) -> int:
        """Numbers that x_channel_scale has."""
        raise NotImplementedError

    @classmethod
    def _weight_of(cls, dense: nn.Module, options: Mapping[str, Any]) -> Tensor:
        weight, scale = super()._weight_of(dense, options), options.get("x_channel_scale")
        if scale is None:
            return weight
        check_channel_scale(scale, weight.shape[1] * getattr(dense, "groups", 1))
        return times_channels(weight, scale)

    def _fill_dense(self, dense: nn.Linear | nn.Conv2d) -> None:
        super()._fill_dense(dense)
        if self.x_channel_scale is not None:
            dense.weight = nn.Parameter(times_channels(dense.weight.detach(), self.x_channel_scale.reciprocal()))

    def _fixed_dtype_names(self) -> tuple[str, ...]:
        return (*super()._fixed_dtype_names(), "x_channel_scale", "x_channel_inverse")

    def _packing_settings(self) -> dict[str, Any]:
        """Arguments of PackedInt8Weight.pack() besides weight and format."""
        return {}

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        int8 = Int8Weight.from_csr(weight) if isinstance(weight, CsrWeight) else weight
        assert isinstance(int8, Int8Weight)
        packed = PackedInt8Weight.pack(int8, self.packing, **self._packing_settings())
        self.packed_shape = packed.shape
        return (*packed.tensors, packed.scale, packed.weight_sum)

    def _int8_weight(self) -> Int8Weight:
        *tensors, scale, weight_sum = self._packed()
        return PackedInt8Weight(self.packing, tuple(tensors), self.packed_shape, scale, weight_sum).unpack()

    def count_nonzero(self) -> int:
        return int(torch.count_nonzero(self._int8_weight().q))

    def _num_stored(self) -> int:
        return self.count_nonzero()

    def _output_arguments(self) -> tuple[Any, ...]:
        """What the operations take last."""
        return self.activation, self.y_scale, self.y_zero_point, self.kernel

    def _arguments(self, residual: Tensor | None) -> tuple[Any, ...]:
        """What the operations take after x."""
        *tensors, scale, weight_sum = self._packed()
        bias = self._parameters["bias"]
        quantization = (self.x_scale, self.x_zero_point, self._buffers["x_channel_inverse"])
        wide = None if bias is None else widen(bias)
        return tensors, self.packed_shape.sizes, self.packing, scale, weight_sum, wide, residual, *quantization

    def tensors(self) -> dict[str, Tensor]:
        scale = self.x_channel_scale
        return super().tensors() | ({} if scale is None else {"x_channel_scale": scale})

    @classmethod
    def from_config(cls: type[Layer], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Layer:
        layer = super().from_config(config, tensors)
        assert isinstance(layer, QuantizedStorage)
        try:
            layer._hold_channel_scale(tensors.get("x_channel_scale"))
        except ValueError as error:
            raise FormatError(str(error)) from None
        return layer

    @classmethod
    def _rebuild(cls: type[Layer], module: CompressedModule, weight: WeightFormat, **options: Any) -> Layer:
        if isinstance(module, QuantizedStorage):
            options = {"x_channel_scale": module.x_channel_scale} | options
        return super()._rebuild(module, weight, **options)

    def get_extra_state(self) -> Tensor:
        """Return [x_scale, x_zero_point], which come from data like weights; empty if dynamic."""
        state = [] if self.x_scale is None else [self.x_scale, self.x_zero_point]
        return torch.tensor(state, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.x_scale, self.x_zero_point = input_from_state(state)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (state := state_dict.get(prefix + "_extra_state")) is not None:
            input_from_state(state)  # raises before anything is changed
        channel_scale = state_dict.get(prefix + "x_channel_scale")
        if channel_scale is not None:
            try:
                check_channel_scale(channel_scale, self._num_channels())
            except ValueError as error:
                raise FormatError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if channel_scale is not None or self.x_channel_scale is not None:
            self._hold_channel_scale(self.x_channel_scale)


class Int8Storage(QuantizedStorage):
    """Dense int8."""

    weight_type: ClassVar[type[WeightFormat]] = Int8Weight
    buffer_names: ClassVar[tuple[str, ...]] = ("q", "scale")
    packing: ClassVar[str] = "int8"
    packed_names: ClassVar[tuple[str, ...]] = ("quads", "scale", "weight_sum")

    @classmethod
    def _compress(cls, weight: Tensor) -> Int8Weight:
        return Int8Weight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Weight:
        return Int8Weight(**tensors)

    def _unpack_stored(self) -> Sequence[Tensor]:
        weight = self._int8_weight()
        return weight.q, weight.scale


class CsrInt8Storage(QuantizedStorage):
    """int8 without the zeros: stored as CSR, packed for one of the sparse int8 kernels."""

    weight_type: ClassVar[type[WeightFormat]] = CsrWeight
    buffer_names: ClassVar[tuple[str, ...]] = ("row_ptr", "col_idx", "values", "scale")

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return Int8Weight.from_dense(weight).to_csr()

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)

    def _unpack_stored(self) -> Sequence[Tensor]:
        weight = self._int8_weight().to_csr()
        assert weight.scale is not None
        return weight.row_ptr, weight.col_idx, weight.values, weight.scale

    @classmethod
    def from_int8(cls: type[Layer], module: nn.Module, **options: Any) -> Layer:
        """Leave the zeros out of an int8 layer; the outputs stay equal. Options are those of the constructor."""
        if not isinstance(module, QuantizedStorage):
            raise UnsupportedError(f"expected an int8 layer, got {type(module).__name__}")
        return cls._rebuild(module, module._int8_weight().to_csr(), **options)

    @classmethod
    def from_sparse(cls: type[Layer], module: nn.Module, **options: Any) -> Layer:
        """Quantize a float CSR layer; options are those of the constructor."""
        if not isinstance(module, CsrStorage):
            raise UnsupportedError(f"expected a float CSR layer, got {type(module).__name__}")
        weight = cast(CsrWeight, module.weight_format)
        if (scale := options.get("x_channel_scale")) is not None:
            dense = module.to_dense_module()
            weight = CsrWeight.from_dense(cls._weight_of(dense, {"x_channel_scale": scale}).flatten(1))
        return cls._rebuild(module, weight.quantize(), **options)


class FewRowsStorage(QuantizedStorage):
    """Packed for table lookup.

    Args:
        few_rows: pack for few rows of activations, up to 4: fewer bytes, more work for each row.
    """

    keywords: ClassVar[tuple[str, ...]] = ("few_rows",)
    few_rows: bool

    def __init__(
        self, weight: WeightFormat, bias: Tensor | None = None, *, few_rows: bool = False, **options: Any
    ) -> None:
        self.__dict__["few_rows"] = bool(few_rows)  # before nn.Module is set up: _pack() needs it
        super().__init__(weight, bias, **options)


class LookupStorage(FewRowsStorage, CsrInt8Storage):
    """int8 values, packed for table lookup."""

    packing: ClassVar[str] = "lookup"
    packed_names: ClassVar[tuple[str, ...]] = (
        "entry_ptr",
        "step_ptr",
        "entry_group",
        "entry_steps",
        "slots",
        "row_place",
        "scale",
        "weight_sum",
    )

    def _packing_settings(self) -> dict[str, Any]:
        return {**super()._packing_settings(), "few_rows": self.few_rows}


class Int4Storage(FewRowsStorage):
    """Integers of 4 bits without the zeros, with a scale per row and group of columns, packed for table lookup."""

    weight_type: ClassVar[type[WeightFormat]] = Int4Weight
    buffer_names: ClassVar[tuple[str, ...]] = ("nonzero", "values", "scale", "group_size")
    compression_keywords: ClassVar[tuple[str, ...]] = ("group_size", "scales")
    packing: ClassVar[str] = PackedInt4Weight.format
    packed_names: ClassVar[tuple[str, ...]] = (
        "entry_ptr",
        "step_ptr",
        "entry_table",
        "entry_steps",
        "slots",
        "row_place",
        "group_scale",
        "group_sum",
    )

    @classmethod
    def _compress(cls, weight: Tensor, **options: Any) -> Int4Weight:
        return Int4Weight.from_dense(weight, **options)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int4Weight:
        nonzero, values, scale = (tensors[name] for name in cls.buffer_names[:3])
        group_size = check_tensor("group_size", tensors["group_size"], (torch.int32,), (1,)).item()
        return Int4Weight(nonzero, values, scale, shape, int(group_size))

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, Int4Weight)
        packed = PackedInt4Weight.pack(weight, few_rows=self.few_rows)
        self.packed_shape = packed.shape
        return (*packed.tensors, packed.scale, packed.weight_sum)

    def _int4_weight(self) -> Int4Weight:
        *tensors, scale, weight_sum = self._packed()
        return PackedInt4Weight(tuple(tensors), self.packed_shape, scale, weight_sum).unpack()

    def _int8_weight(self) -> Int8Weight:
        name = type(self).__name__
        raise UnsupportedError(f"expected an int8 layer, got {name}, whose groups have scales of their own")

    def _unpack_stored(self) -> Sequence[Tensor]:
        weight = self._int4_weight()
        return weight.nonzero, weight.values, weight.scale, torch.tensor([weight.group_size], dtype=torch.int32)

    def count_nonzero(self) -> int:
        return int(torch.count_nonzero(self._int4_weight().integers()))

    def with_packing(self: Layer, *, few_rows: bool) -> Layer:
        """Return the same layer packed for other numbers of rows of activations; the outputs are equal."""
        assert isinstance(self, Int4Storage)
        return type(self)._rebuild(self, self._int4_weight(), few_rows=few_rows)


class BitmapInt8Storage(CsrInt8Storage):
    """Packed as a bitmap and values: the fewest bytes, for weights that are read for a few activations."""

    packing: ClassVar[str] = "bitmap"
    packed_names: ClassVar[tuple[str, ...]] = ("masks", "value_ptr", "packed_values", "scale", "weight_sum")
