"""Storages for GPUs: a CSR weight of 16 bits in the format that CUDA kernels take, and the product with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight, delta, fragment
from sparsecore.nn.base import WeightFormat
from sparsecore.nn.dense import activate
from sparsecore.nn.storage import CsrStorage, PackedStorage
from sparsecore.ops.cuda import expand_delta, expand_fragment, spmm_delta, spmm_fragment

GpuWeight: TypeAlias = FragmentWeight | DeltaWeight


class GpuStorage(PackedStorage, CsrStorage):
    """Float CSR of 16 bits, packed on the CPU for a GPU. Files and ``state_dict()`` hold CSR."""

    runs_on_cuda: ClassVar[bool] = True
    packed_type: ClassVar[type[GpuWeight]]
    # More rows of x than this are multiplied with the expanded weight, densely. To be measured (benchmarks/gpu.py).
    most_rows: ClassVar[int]
    settings: dict[str, Any]

    def _pack(self, weight: WeightFormat) -> Sequence[Tensor]:
        assert isinstance(weight, CsrWeight)
        packed = self.packed_type.pack(weight.to("cpu"))
        self.settings = packed.settings
        return packed.to(weight.device).tensors

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
        bias = self._wide_bias()
        if x.numel() <= self.most_rows * self.weight_shape[1]:
            return self._multiply_packed(x, bias, residual, activation)
        y = F.linear(x, self._expand(x), None if bias is None else bias.to(x.dtype))
        return activate(y if residual is None else y + residual, activation)

    def _multiply_packed(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
        """The product with the packed weight."""
        raise NotImplementedError

    def _expand(self, x: Tensor) -> Tensor:
        """The dense weight, of x's dtype."""
        raise NotImplementedError


class FragmentStorage(GpuStorage):
    """In the order of a GPU's tensor cores."""

    packed_type: ClassVar[type[GpuWeight]] = FragmentWeight
    packed_names: ClassVar[tuple[str, ...]] = fragment.TENSOR_NAMES
    most_rows: ClassVar[int] = 128

    def _multiply_packed(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
        weight = self.packed_weight
        assert isinstance(weight, FragmentWeight)
        return spmm_fragment(x, weight, bias, residual=residual, activation=activation)

    def _expand(self, x: Tensor) -> Tensor:
        weight = self.packed_weight
        assert isinstance(weight, FragmentWeight)
        return expand_fragment(x, weight)


class DeltaStorage(GpuStorage):
    """As distances and values, for very sparse weights."""

    packed_type: ClassVar[type[GpuWeight]] = DeltaWeight
    packed_names: ClassVar[tuple[str, ...]] = tuple(f"packed_{name}" for name in delta.TENSOR_NAMES)
    most_rows: ClassVar[int] = 48

    def _multiply_packed(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
        weight = self.packed_weight
        assert isinstance(weight, DeltaWeight)
        return spmm_delta(x, weight, bias, residual=residual, activation=activation)

    def _expand(self, x: Tensor) -> Tensor:
        weight = self.packed_weight
        assert isinstance(weight, DeltaWeight)
        return expand_delta(x, weight)
