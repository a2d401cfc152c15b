"""What a layer on a GPU can run as. Convolutions stay PyTorch's (cuDNN)."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.nn import DeltaLinear, FragmentLinear, SemiStructuredLinear, SparseLinear
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


def _packed(kind: type[FragmentLinear] | type[DeltaLinear]) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        assert isinstance(layer.weight, torch.Tensor)
        if layer.weight.dtype not in (torch.float16, torch.bfloat16):
            raise UnsupportedError(f"expected a float16 or bfloat16 weight, got {layer.weight.dtype}")
        if rows_of(shape) > kind.most_rows:
            raise UnsupportedError(
                f"expected at most {kind.most_rows} rows of activations; more are bound by arithmetic"
            )
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
    "fragment": _packed(FragmentLinear),
    "delta": _packed(DeltaLinear),
    "csr": _csr,
    "2:4": _semi_structured,
}

# As tune.candidates.CANDIDATES, for layers on a GPU. Of convolutions there is the dense form alone.
GPU_CANDIDATES: dict[type[nn.Module], dict[str, Maker]] = {
    nn.Linear: _LINEAR,
    nn.Conv2d: {DENSE: same},
    FragmentLinear: {DENSE: dense_form, "fragment": same},
    DeltaLinear: {DENSE: dense_form, "delta": same},
    SparseLinear: {DENSE: dense_form, "csr": same},
}

# Class -> format and kernel.
GPU_FORMATS: dict[type[nn.Module], tuple[str, str]] = {
    FragmentLinear: ("fragment", "spmm_fragment"),
    DeltaLinear: ("delta", "spmm_delta"),
    SemiStructuredLinear: ("2:4", "torch"),
}

# Shares of the read bandwidth that kernels are expected to reach, of dense fp16's: predictions (NOTES-cuda.md).
_READ_SHARE = 0.8
_DELTA_SHARE = 0.6
_GATHER_SHARE = 0.3
# The fragment decoder's instructions alone keep it from gaining more than this over dense.
_MOST_FRAGMENT_GAIN = 2.15
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
    if format_name == "fragment":
        return max((1 / 16 + density) / _READ_SHARE, 1 / (_MOST_FRAGMENT_GAIN * _READ_SHARE)) * max(
            rows / _ROWS_OF_FRAGMENT, 1.0
        )
    if format_name == "delta":
        return 1.5 * density / _DELTA_SHARE * math.ceil(max(rows, 1) / _TOKENS_OF_DELTA) / arithmetic
    return 3.0 * density / _GATHER_SHARE * math.ceil(max(rows, 1) / _TOKENS_OF_DELTA) / arithmetic
