"""What a layer on a GPU can run as. Convolutions stay PyTorch's (cuDNN)."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.nn import (
    DeltaLinear,
    DeltaWeightOnlyLinear,
    FragmentInt4Linear,
    FragmentInt8Linear,
    FragmentLinear,
    FragmentWeightOnlyLinear,
    RowsInt8Linear,
    SemiStructuredLinear,
    SparseLinear,
    TorchInt4WeightLinear,
    TorchInt8Linear,
    TorchInt8WeightLinear,
)
from sparsecore.nn.torch_int8 import INT_MM_ROWS
from sparsecore.tune.makers import DENSE, Maker, Shape, dense_form, rows_of, same

# More rows of x than this wait too long for CSR's gathers to be worth timing.
MOST_CSR_ROWS = 64
CONVOLUTIONS_STAY = (
    "convolutions on a GPU stay PyTorch's (cuDNN): with more than 128 output pixels they are bound by arithmetic, "
    "where zeros save nothing"
)


def device_of(layer: nn.Module) -> torch.device:
    """The device that holds a layer's weight."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        return tensor.device
    return torch.device("cpu")


def is_on_gpu(layer: nn.Module) -> bool:
    """Whether a layer is on a CUDA device."""
    return device_of(layer).type == "cuda"


# Rows of x that one reading of a dense int8 weight serves, times the readings that are still worth timing.
MOST_INT8_ROWS = 128


def _check_rows(shape: Shape | None, most: int) -> None:
    if rows_of(shape) > most:
        raise UnsupportedError(f"expected at most {most} rows of activations; more are bound by arithmetic")


def _check_16_bits(layer: nn.Module) -> None:
    assert isinstance(layer.weight, torch.Tensor)
    if layer.weight.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedError(f"expected a float16 or bfloat16 weight, got {layer.weight.dtype}")


def _packed(
    kind: type[FragmentLinear | FragmentInt4Linear | DeltaLinear | FragmentWeightOnlyLinear | DeltaWeightOnlyLinear],
    most_rows: int,
) -> Maker:
    """For activations of 16 bits."""

    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        _check_16_bits(layer)
        _check_rows(shape, most_rows)
        return kind.from_dense(layer)

    return make


def _int8(kind: type[RowsInt8Linear | FragmentInt8Linear]) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        _check_rows(shape, MOST_INT8_ROWS)
        return kind.from_dense(layer)

    return make


def _from_int8(layer: nn.Module, shape: Shape | None) -> nn.Module:
    return FragmentInt8Linear.from_int8(layer)


def _torch_int8(layer: nn.Module, shape: Shape | None) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    if rows_of(shape) <= INT_MM_ROWS:
        raise UnsupportedError(f"expected more than {INT_MM_ROWS} rows of activations")
    return TorchInt8Linear.from_dense(layer)


def _torch_weights(kind: type[TorchInt8WeightLinear | TorchInt4WeightLinear]) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        assert isinstance(layer, nn.Linear)
        _check_rows(shape, MOST_INT8_ROWS)
        return kind.from_dense(layer)

    return make


def _csr(layer: nn.Module, shape: Shape | None) -> nn.Module:
    if rows_of(shape) > MOST_CSR_ROWS:
        raise UnsupportedError(f"expected at most {MOST_CSR_ROWS} rows of activations")
    return SparseLinear.from_dense(layer)


def _semi_structured(layer: nn.Module, shape: Shape | None) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    return SemiStructuredLinear.from_dense(layer)


_LINEAR: dict[str, Maker] = {
    DENSE: same,
    "fragment": _packed(FragmentLinear, FragmentLinear.most_rows),
    "delta": _packed(DeltaLinear, DeltaLinear.most_rows),
    "csr": _csr,
    "2:4": _semi_structured,
}

# What a float layer can run as where an error is allowed: int8 activations, then int8 and int4 weights alone.
GPU_INTEGER_CANDIDATES: dict[str, Maker] = {
    "int8": _int8(RowsInt8Linear),
    "fragment int8": _int8(FragmentInt8Linear),
    "torch int8": _torch_int8,
    "fragment int8 weights": _packed(FragmentWeightOnlyLinear, FragmentLinear.most_rows),
    "delta int8 weights": _packed(DeltaWeightOnlyLinear, DeltaLinear.most_rows),
    "torch int8 weights": _torch_weights(TorchInt8WeightLinear),
    "fragment int4 weights": _packed(FragmentInt4Linear, FragmentLinear.most_rows),
    "torch int4 weights": _torch_weights(TorchInt4WeightLinear),
}

# As tune.candidates.CANDIDATES, for layers on a GPU. Of convolutions there is the dense form alone.
GPU_CANDIDATES: dict[type[nn.Module], dict[str, Maker]] = {
    nn.Linear: _LINEAR,
    nn.Conv2d: {DENSE: same},
    FragmentLinear: {DENSE: dense_form, "fragment": same},
    FragmentInt4Linear: {DENSE: dense_form, "fragment int4 weights": same},
    DeltaLinear: {DENSE: dense_form, "delta": same},
    SparseLinear: {DENSE: dense_form, "csr": same},
    RowsInt8Linear: {DENSE: dense_form, "int8": same, "fragment int8": _from_int8},
    FragmentInt8Linear: {DENSE: dense_form, "fragment int8": same},
    FragmentWeightOnlyLinear: {DENSE: dense_form, "fragment int8 weights": same},
    DeltaWeightOnlyLinear: {DENSE: dense_form, "delta int8 weights": same},
}

# Class -> format and kernel.
GPU_FORMATS: dict[type[nn.Module], tuple[str, str]] = {
    FragmentLinear: ("fragment", "spmm_fragment"),
    DeltaLinear: ("delta", "spmm_delta"),
    SemiStructuredLinear: ("2:4", "torch"),
    RowsInt8Linear: ("int8", "linear_int8"),
    FragmentInt8Linear: ("fragment int8", "spmm_fragment_int8"),
    TorchInt8Linear: ("torch int8", "torch"),
    FragmentWeightOnlyLinear: ("fragment int8 weights", "spmm_fragment"),
    DeltaWeightOnlyLinear: ("delta int8 weights", "spmm_delta"),
    TorchInt8WeightLinear: ("torch int8 weights", "torch"),
    FragmentInt4Linear: ("fragment int4 weights", "spmm_fragment"),
    TorchInt4WeightLinear: ("torch int4 weights", "torch"),
}

# Shares of the read bandwidth that kernels are expected to reach, of dense fp16's: predictions (NOTES-cuda.md).
_READ_SHARE = 0.8
_DELTA_SHARE = 0.6
_GATHER_SHARE = 0.3
# Bytes of a value, of scales for each weight, and what the decoder's instructions alone keep it from gaining more
# than, over dense.
_FRAGMENTS = {
    "fragment": (2, 0.0, 2.15),
    "fragment int8": (1, 0.0, 3.5),
    "fragment int8 weights": (1, 0.0, 2.7),
    "fragment int4 weights": (0.5, 2 / 64, 1.85),
}
# Dense int8 over dense float16, for so many rows of x in one reading of the weight; int4 in PyTorch, with 4 bytes for
# each 128 weights.
_INT8_TIME = 1 / 1.7
_INT4_TIME = (0.5 + 4 / 128) / 2 / _READ_SHARE
_TOKENS_OF_INT4 = 16
_TOKENS_OF_INT8 = 32
# Rows of x up to which decoding, not products, takes its instructions; and those for one reading of a weight.
_ROWS_OF_FRAGMENT = 32
_TOKENS_OF_DELTA = 8
# From here on dense products are bound by arithmetic (H200), and what is read does not matter.
_ARITHMETIC_ROWS = 184


def relative_gpu_time(format_name: str, density: float, rows: int) -> float:
    """Time of a format over the time of dense float16 on a GPU, predicted from bytes; never measured.

    Args:
        format_name: a format of ``GPU_CANDIDATES``.
        density: share of entries that are not zero.
        rows: of activations; 0 is unknown and counts as few.
    """
    if format_name == DENSE:
        return 1.0
    if format_name == "2:4":
        return (0.5 + 1 / 16) / _READ_SHARE
    arithmetic = max(rows / _ARITHMETIC_ROWS, 1.0)  # of what dense takes
    if format_name == "torch int8":
        return _INT8_TIME
    if format_name == "torch int8 weights":
        return max(_INT8_TIME, rows / _ARITHMETIC_ROWS) / arithmetic
    if format_name == "int8":
        return math.ceil(max(rows, 1) / _TOKENS_OF_INT8) * _INT8_TIME / arithmetic
    if format_name == "torch int4 weights":
        return math.ceil(max(rows, 1) / _TOKENS_OF_INT4) * _INT4_TIME / arithmetic
    if format_name in _FRAGMENTS:
        value_bytes, scale_bytes, most_gain = _FRAGMENTS[format_name]
        bytes_read = 1 / 16 + (value_bytes * density + scale_bytes) / 2
        return max(bytes_read / _READ_SHARE, 1 / (most_gain * _READ_SHARE)) * max(rows / _ROWS_OF_FRAGMENT, 1.0)
    readings = math.ceil(max(rows, 1) / _TOKENS_OF_DELTA)
    if format_name in ("delta", "delta int8 weights"):
        return (1.5 if format_name == "delta" else 1.0) * density / _DELTA_SHARE * readings / arithmetic
    return 3.0 * density / _GATHER_SHARE * readings / arithmetic
