"""Storages for GPUs: weights of 16 and 8 bits in the formats that CUDA kernels take, and the product with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight, delta, fragment
from sparsecore.nn.base import WeightFormat
from sparsecore.nn.dense import activate
from sparsecore.nn.storage import CsrStorage, Int8Storage, LookupStorage, PackedStorage
from sparsecore.ops.cuda import GpuWeight, expand_packed, spmm_packed


class GpuStorage(PackedStorage, CsrStorage):
    """Float CSR of 16 bits, packed on the CPU for a GPU. Files and ``state_dict()`` hold CSR."""

    runs_on_cuda: ClassVar[bool] = True
    packed_type: ClassVar[type[GpuWeight]]
    # More rows of x than this are multiplied with the expanded weight, densely. To be measured (benchmarks/gpu.py).
    most_rows: ClassVar[int]
    settings: dict[str, Any]

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        packed = self._pack_csr(weight.to("cpu"))
        self.settings = packed.settings
        return packed.to(weight.device).tensors

    def _pack_csr(self, weight: CsrWeight) -> GpuWeight:
        return self.packed_type.pack(weight)

    @property
    def packed_weight(self) -> GpuWeight:
        """The weight as operations take it; it shares this layer's tensors."""
        names = (name.removeprefix("packed_") for name in self.packed_names)
        fields: dict[str, Any] = dict(zip(names, self._packed(), strict=True))
        return self.packed_type(**fields, **self.settings)

    def _unpack_stored(self) -> Sequence[Tensor]:
        weight = self.packed_weight
        csr = weight.unpack().to(weight.tensors[0].device)
        return csr.row_ptr, csr.col_idx, csr.values

    def _values_dtype(self) -> torch.dtype:
        return self.packed_weight.dtype

    def count_nonzero(self) -> int:
        """Count the weight's entries that are not zero."""
        return int(torch.count_nonzero(self.packed_weight.unpack().values))

    def _num_stored(self) -> int:
        return self.packed_weight.unpack().nnz

    def _multiply(self, x: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """``activation(x @ weight^T + bias + residual)``."""
        bias, weight = self._wide_bias(), self.packed_weight
        if x.numel() <= self.most_rows * self.weight_shape[1]:
            return spmm_packed(x, weight, bias, residual=residual, activation=activation)
        y = F.linear(x, expand_packed(x, weight), None if bias is None else bias.to(x.dtype))
        return activate(y if residual is None else y + residual, activation)


class FragmentStorage(GpuStorage):
    """In the order of a GPU's tensor cores."""

    packed_type: ClassVar[type[GpuWeight]] = FragmentWeight
    packed_names: ClassVar[tuple[str, ...]] = fragment.TENSOR_NAMES
    most_rows: ClassVar[int] = 128


class FragmentInt4Storage(FragmentStorage):
    """In the order of a GPU's tensor cores, rounded to 4 bits. Files and ``state_dict()`` hold the rounded values."""

    def _pack_csr(self, weight: CsrWeight) -> GpuWeight:
        return FragmentWeight.pack_int4(weight)


class DeltaStorage(GpuStorage):
    """As distances and values, for very sparse weights."""

    packed_type: ClassVar[type[GpuWeight]] = DeltaWeight
    packed_names: ClassVar[tuple[str, ...]] = tuple(f"packed_{name}" for name in delta.TENSOR_NAMES)
    most_rows: ClassVar[int] = 48


class RowsInt8Storage(Int8Storage):
    """Dense int8 as a GPU's kernels take it: the stored rows."""

    packing: ClassVar[str] = "rows"
    packed_names: ClassVar[tuple[str, ...]] = ("rows", "scale", "weight_sum")


class FragmentInt8Storage(LookupStorage):
    """int8 without its zeros in the order of a GPU's tensor cores; ``few_rows`` waits for the way back."""

    packing: ClassVar[str] = "fragment"
    packed_names: ClassVar[tuple[str, ...]] = (*fragment.TENSOR_NAMES, "weight_sum")


class DeltaInt8Storage(LookupStorage):
    """int8 as distances and values; ``few_rows`` waits for the way back."""

    packing: ClassVar[str] = "delta"
    packed_names: ClassVar[tuple[str, ...]] = (
        *(f"packed_{name}" for name in delta.TENSOR_NAMES if name != "scale"),
        "scale",
        "weight_sum",
    )
