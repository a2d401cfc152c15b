"""What a layer can run as: a table from the class of a layer to its candidates, the dense one first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsecore import _C
from sparsecore.nn import (
    CompressedModule,
    Int8Conv2d,
    Int8Linear,
    SparseConv2d,
    SparseInt8Conv2d,
    SparseInt8Linear,
    SparseLinear,
)

DENSE = "dense"
_Maker = Callable[[nn.Module], nn.Module]


def _same(layer: nn.Module) -> nn.Module:
    return layer


_ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


def _dense(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, CompressedModule)
    dense = layer.to_dense_module()
    if layer.activation == "none":
        return dense
    return nn.Sequential(dense, _ACTIVATION_LAYERS[layer.activation]())


# Class of the layer -> format -> how to make it. Only formats that compute in the layer's own numeric type, except
# that an int8 layer may go back to float32 where that is faster: its weights stay those of int8.
CANDIDATES: dict[type[nn.Module], dict[str, _Maker]] = {
    nn.Linear: {DENSE: _same, "csr": SparseLinear.from_dense},
    nn.Conv2d: {DENSE: _same, "csr": SparseConv2d.from_dense},
    Int8Linear: {DENSE: _dense, "int8": _same, "csr int8": SparseInt8Linear.from_int8},
    Int8Conv2d: {DENSE: _dense, "int8": _same, "csr int8": SparseInt8Conv2d.from_int8},
    SparseLinear: {DENSE: _dense, "csr": _same},
    SparseConv2d: {DENSE: _dense, "csr": _same},
    SparseInt8Linear: {DENSE: _dense, "csr int8": _same},
    SparseInt8Conv2d: {DENSE: _dense, "csr int8": _same},
}

_OPERATIONS: dict[type[nn.Module], str] = {
    SparseLinear: "spmm",
    SparseConv2d: "conv2d",
    Int8Linear: "gemm_int8",
    Int8Conv2d: "gemm_int8",
    SparseInt8Linear: "spmm_int8",
    SparseInt8Conv2d: "spmm_int8",
}

_FORMATS: dict[type[nn.Module], str] = {
    SparseLinear: "csr",
    SparseConv2d: "csr",
    Int8Linear: "int8",
    Int8Conv2d: "int8",
    SparseInt8Linear: "csr int8",
    SparseInt8Conv2d: "csr int8",
}


@dataclass(frozen=True)
class WeightStatistics:
    """Size of a layer's weight matrix ``[N, K]``, and how many of its entries are not zero."""

    N: int
    K: int
    nnz: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.nnz / max(self.N * self.K, 1)


def candidates(layer: nn.Module) -> Mapping[str, _Maker]:
    """Format name to maker for a layer; empty for a class that has no other form."""
    return CANDIDATES.get(type(layer), {})


def weight_statistics(layer: nn.Module) -> WeightStatistics:
    """Count the non-zeros of a layer's weight."""
    if isinstance(layer, CompressedModule):
        N, K = layer.weight_shape
        stored = layer.get_buffer("values" if hasattr(layer, "values") else "q")
        return WeightStatistics(N, K, int(torch.count_nonzero(stored)))
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return WeightStatistics(len(weight), weight[0].numel() if len(weight) else 0, int(weight.count_nonzero()))


def format_of(layer: nn.Module) -> str:
    """Return ``dense``, ``csr``, ``int8`` or ``csr int8``."""
    return _FORMATS.get(type(layer), DENSE)


def operation_of(layer: nn.Module) -> str:
    """Return ``linear`` or ``conv2d``, with the size of a filter."""
    kernel_size = getattr(layer, "kernel_size", None)
    return "linear" if kernel_size is None else f"conv {'x'.join(map(str, kernel_size))}"


def kernel_of(layer: nn.Module) -> str:
    """Name of the kernel that runs the layer on this machine; ``torch`` for a dense one."""
    if not isinstance(layer, CompressedModule):
        return "torch"
    if layer.kernel:
        return layer.kernel
    operation = _OPERATIONS[type(layer)]
    if isinstance(layer, SparseConv2d) and layer.is_product:
        operation = "spmm"
    return next(k["name"] for k in _C.kernels() if k["op"] == operation and k["available"])
