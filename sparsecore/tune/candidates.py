"""What a layer can run as: a table from the class of a layer to its candidates, the dense one first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from sparsecore import _C
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats.packed_int8 import FEW_ROWS
from sparsecore.nn import (
    BinaryConv2d,
    BinaryLinear,
    BitmapInt8Linear,
    BitmapLinear,
    BlockConv2d,
    BlockLinear,
    CodebookLinear,
    CompressedModule,
    DenseConv2d,
    DenseLinear,
    DepthwiseConv2d,
    Int8Conv2d,
    Int8Linear,
    JitConv2d,
    JitLinear,
    PanelConv2d,
    PanelLinear,
    SemiStructuredLinear,
    SparseConv2d,
    SparseInt4Linear,
    SparseInt8Conv2d,
    SparseInt8Linear,
    SparseLinear,
    TernaryConv2d,
    TernaryLinear,
)
from sparsecore.nn.storage import QuantizedStorage
from sparsecore.tune.gpu import GPU_CANDIDATES, GPU_FORMATS, GPU_INTEGER_CANDIDATES, is_on_gpu
from sparsecore.tune.makers import DENSE, Maker, Shape, dense_form, rows_of, same


def _any_shape(make: Callable[[nn.Module], nn.Module]) -> Maker:
    return lambda layer, shape: make(layer)


# Rows of x up to which the bytes of a weight decide its time. A bitmap multiplies with its zeros too.
MOST_BITMAP_ROWS = 16
# With more rows lookups of 4-bit values, which take longer than those of int8, decide.
MOST_INT4_ROWS = 16


def _for_few_rows(make: Callable[[nn.Module], nn.Module]) -> Maker:
    def maker(layer: nn.Module, shape: Shape | None) -> nn.Module:
        if shape is None or rows_of(shape) > MOST_BITMAP_ROWS:
            raise UnsupportedError(f"expected at most {MOST_BITMAP_ROWS} rows of activations; bitmaps are for few")
        return make(layer)

    return maker


def _lookup(layer: nn.Module, shape: Shape | None) -> nn.Module:
    """Table lookup, packed for the rows of activations."""
    few_rows = shape is not None and rows_of(shape) <= FEW_ROWS
    if isinstance(layer, SparseInt8Linear) and layer.few_rows == few_rows:
        return layer
    return SparseInt8Linear.from_int8(layer, few_rows=few_rows)


def _lookup_int4(layer: nn.Module, shape: Shape | None) -> nn.Module:
    """Table lookup of 4-bit values, packed for the rows of activations."""
    rows = rows_of(shape)
    if rows > MOST_INT4_ROWS:
        raise UnsupportedError(f"expected at most {MOST_INT4_ROWS} rows of activations; 4 bits are for few")
    few_rows = 0 < rows <= FEW_ROWS
    if isinstance(layer, SparseInt4Linear):
        return layer if layer.few_rows == few_rows else layer.with_packing(few_rows=few_rows)
    if isinstance(layer, CompressedModule):
        return SparseInt4Linear.from_dense(layer.to_dense_module(), activation=layer.activation, few_rows=few_rows)
    return SparseInt4Linear.from_dense(layer, few_rows=few_rows)


def _panel(kind: type[PanelLinear] | type[PanelConv2d]) -> Maker:
    return lambda layer, shape: kind.from_dense(layer, **(kind.fit(layer, shape) if shape else {}))


# Weights that were pruned in blocks, but for a zero here and there. Others would multiply with many zeros.
LEAST_BLOCK_FILL = 0.9


# Rows of x from which on code is worth reading: 4096x4096 with 16 rows takes 2 to 4 times as long as panels (Zen 4).
LEAST_JIT_ROWS = 32


def _jit(kind: type[JitLinear] | type[JitConv2d]) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        if kind is JitLinear and shape is not None and rows_of(shape) < LEAST_JIT_ROWS:
            raise UnsupportedError(f"expected at least {LEAST_JIT_ROWS} rows of activations; use panels")
        made = kind.from_dense(layer)
        if not made.program.number:
            raise UnsupportedError("expected AVX-512, memory that may be executed and filters of few rows; use panels")
        return made

    return make


def _blocks(kind: type[BlockLinear] | type[BlockConv2d], block_rows: int) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        assert isinstance(layer.weight, torch.Tensor)
        if len(layer.weight) % block_rows:
            raise UnsupportedError(f"expected N that is a multiple of {block_rows}; use panels")
        block = kind.from_dense(layer, block_rows=block_rows)
        if weight_statistics(block).nnz < LEAST_BLOCK_FILL * block.values.numel():
            raise UnsupportedError(f"expected a weight that was pruned in blocks of {block_rows} rows; use panels")
        return block

    return make


def _planes(kind: type[CompressedModule]) -> Maker:
    def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
        try:
            return kind.from_dense(layer)
        except FormatError as error:  # nearly every weight
            raise UnsupportedError(str(error)) from None

    return make


def _depthwise(layer: nn.Module, shape: Shape | None) -> nn.Module:
    assert isinstance(layer, nn.Conv2d)
    return DepthwiseConv2d.from_dense(layer, getattr(layer, "activation", "none"))


def _by_dense(kind: type[CompressedModule]) -> Maker:
    """Another class for a compressed layer, by way of its dense weight: to int8 and back."""
    return lambda layer, shape: kind.from_dense(layer.to_dense_module(), activation=layer.activation)  # type: ignore[operator]


# Columns of weights up to which dense convolutions are tried in blocks: networks' first ones, which have few channels.
# With more of them PyTorch's dense kernels win.
MOST_DENSE_BLOCK_COLUMNS = 256
# Formats that hold zeros like any weight; int8, where it is allowed, is worth timing without any.
HOLD_ZEROS = frozenset({DENSE, "int8", "torch int8", "torch int8 weights", "torch int4 weights", "depthwise"})


def holds_zeros(layer: nn.Module, format_name: str) -> bool:
    """Whether a format is worth timing for a weight without zeros."""
    if format_name in ("4x1", "8x1"):
        return isinstance(layer, nn.Conv2d) and layer.weight[0].numel() <= MOST_DENSE_BLOCK_COLUMNS
    if format_name in ("binary", "ternary"):
        return True
    if format_name == "bitmap":  # 1000x2048, one row, weight not in cache: 444 us, PyTorch 688 (Zen 4)
        return isinstance(layer, nn.Linear)
    return format_name in HOLD_ZEROS


_LINEAR: dict[str, Maker] = {
    DENSE: same,
    "jit": _jit(JitLinear),
    "panel": _panel(PanelLinear),
    "4x1": _blocks(BlockLinear, 4),
    "8x1": _blocks(BlockLinear, 8),
    "bitmap": _for_few_rows(BitmapLinear.from_dense),
    "csr": _any_shape(SparseLinear.from_dense),
    # Of the rare weights that have such values. The second is a case of the first, with half of its bits.
    "ternary": _planes(TernaryLinear),
    "binary": _planes(BinaryLinear),
}
_CONV2D: dict[str, Maker] = {
    DENSE: same,
    "jit": _jit(JitConv2d),
    "panel": _panel(PanelConv2d),
    "4x1": _blocks(BlockConv2d, 4),
    "8x1": _blocks(BlockConv2d, 8),
    "csr": _any_shape(SparseConv2d.from_dense),
    "depthwise": _depthwise,
    "ternary": _planes(TernaryConv2d),
    "binary": _planes(BinaryConv2d),
}

# Class of the layer -> format -> how to make it. Only formats that compute in the layer's own numeric type, except
# that an int8 layer may go back to float32 where that is faster: its weights stay those of int8. The int8 formats of a
# float layer are those of its int8 form: see candidates().
CANDIDATES: dict[type[nn.Module], dict[str, Maker]] = {
    nn.Linear: _LINEAR,
    nn.Conv2d: _CONV2D,
    DenseLinear: _LINEAR,
    DenseConv2d: _CONV2D,
    Int8Linear: {
        DENSE: dense_form,
        "int8": same,
        "lookup int8": _lookup,
        "bitmap int8": _for_few_rows(BitmapInt8Linear.from_int8),
        "jit": _by_dense(JitLinear),
        "panel": _by_dense(PanelLinear),
    },
    Int8Conv2d: {
        DENSE: dense_form,
        "int8": same,
        "lookup int8": _any_shape(SparseInt8Conv2d.from_int8),
        "jit": _by_dense(JitConv2d),
        "panel": _by_dense(PanelConv2d),
    },
    JitLinear: {DENSE: dense_form, "jit": same},
    JitConv2d: {DENSE: dense_form, "jit": same},
    PanelLinear: {DENSE: dense_form, "panel": same},
    BitmapLinear: {DENSE: dense_form, "bitmap": same},
    PanelConv2d: {DENSE: dense_form, "panel": same},
    BinaryLinear: {DENSE: dense_form, "binary": same},
    TernaryLinear: {DENSE: dense_form, "ternary": same},
    BinaryConv2d: {DENSE: dense_form, "binary": same},
    TernaryConv2d: {DENSE: dense_form, "ternary": same},
    BlockLinear: {DENSE: dense_form, "block": same},
    BlockConv2d: {DENSE: dense_form, "block": same},
    SparseLinear: {DENSE: dense_form, "csr": same},
    SparseConv2d: {DENSE: dense_form, "csr": same},
    SparseInt8Linear: {
        DENSE: dense_form,
        "lookup int8": _lookup,
        "bitmap int8": _for_few_rows(BitmapInt8Linear.from_int8),
    },
    SparseInt8Conv2d: {DENSE: dense_form, "lookup int8": same},
    SparseInt4Linear: {DENSE: dense_form, "lookup int4": _lookup_int4},
    BitmapInt8Linear: {DENSE: dense_form, "bitmap int8": same, "lookup int8": _lookup},
}

# Format -> the numeric type that it computes in, for all but floats. Formats of a type give the same outputs up to
# rounding: what the type adds to a layer's error is measured once.
_INTEGER_TYPES: dict[str, str] = {
    **dict.fromkeys(("int8", "lookup int8", "bitmap int8", "fragment int8", "torch int8"), "int8"),
    **dict.fromkeys(("fragment int8 weights", "delta int8 weights"), "int8 weights"),
    **{name: name for name in ("lookup int4", "torch int8 weights", "fragment int4 weights", "torch int4 weights")},
}
INTEGER_FORMATS = frozenset(_INTEGER_TYPES)
FLOAT = "float"

# Dense class -> the int8 form of a float layer of it.
_INT8: dict[type[nn.Module], type[CompressedModule]] = {
    nn.Linear: Int8Linear,
    nn.Conv2d: Int8Conv2d,
    DenseLinear: Int8Linear,
    DenseConv2d: Int8Conv2d,
}

# Class -> format, and the operation whose table its kernel is in.
_RUNS_ON: dict[type[nn.Module], tuple[str, str]] = {
    SparseLinear: ("csr", "spmm"),
    SparseConv2d: ("csr", "conv2d"),
    JitLinear: ("jit", "spmm_jit"),
    JitConv2d: ("jit", "conv2d_jit"),
    PanelLinear: ("panel", "spmm_panel"),
    PanelConv2d: ("panel", "conv2d_panel"),
    BitmapLinear: ("bitmap", "spmm_bitmap"),
    CodebookLinear: ("codebook", "spmm_codebook"),
    BinaryLinear: ("binary", "spmm_planes"),
    TernaryLinear: ("ternary", "spmm_planes"),
    BinaryConv2d: ("binary", "spmm_planes"),
    TernaryConv2d: ("ternary", "spmm_planes"),
    BlockLinear: ("block", "spmm_block"),
    BlockConv2d: ("block", "conv2d_block"),
    DepthwiseConv2d: ("depthwise", "depthwise"),
    Int8Linear: ("int8", "gemm_int8"),
    Int8Conv2d: ("int8", "gemm_int8"),
    SparseInt8Linear: ("lookup int8", "lookup_int8"),
    SparseInt8Conv2d: ("lookup int8", "lookup_int8"),
    BitmapInt8Linear: ("bitmap int8", "bitmap_int8"),
    SparseInt4Linear: ("lookup int4", "lookup_int4"),
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


def candidates(layer: nn.Module, with_integers: bool = False) -> Mapping[str, Maker]:
    """Format name to maker for a layer; empty for a class that has no other form.

    Args:
        layer: any module.
        with_integers: give float layers the formats of integers too, with activations that are quantized dynamically
            or not at all.
    """
    if is_on_gpu(layer):
        makers = GPU_CANDIDATES.get(type(layer), {})
        return makers | GPU_INTEGER_CANDIDATES if with_integers and type(layer) is nn.Linear else makers
    makers = CANDIDATES.get(type(layer), {})
    is_float = numeric_type(format_of(layer)) == FLOAT
    return makers | _int8_candidates(layer) if with_integers and makers and is_float else makers


def _int8_candidates(layer: nn.Module) -> dict[str, Maker]:
    kind = _INT8[layer.dense_type if isinstance(layer, CompressedModule) else type(layer)]

    @cache
    def quantized() -> nn.Module:
        """The weight is rounded once for all formats."""
        return _by_dense(kind)(layer, None) if isinstance(layer, CompressedModule) else kind.from_dense(layer)

    def of_quantized(make: Maker) -> Maker:
        return lambda _, shape: make(quantized(), shape)

    made = {name: of_quantized(make) for name, make in CANDIDATES[kind].items() if name in INTEGER_FORMATS}
    return made | {"lookup int4": _lookup_int4} if kind is Int8Linear else made


def fixed_candidates(name: str, layer: nn.Module, wanted: str) -> dict[str, Maker]:
    """The candidate of a format, or that a kernel of ``sparsecore info`` runs, beside the dense one.

    Raises:
        ValueError: the layer has no such form.
    """
    makers = candidates(layer, with_integers=True)
    if not makers:
        raise ValueError(f"policy: {name} is a {type(layer).__name__}, which has no other form")
    if wanted in makers:
        return {form: makers[form] for form in {DENSE: None, wanted: None}}
    return {DENSE: makers[DENSE]} | _with_kernel(name, layer, makers, wanted)


def _with_kernel(name: str, layer: nn.Module, makers: Mapping[str, Maker], kernel: str) -> dict[str, Maker]:
    known = {k["name"]: k["op"] for k in _C.kernels() if k["available"]}

    def maker(form: str) -> Maker:
        def make(layer: nn.Module, shape: Shape | None) -> nn.Module:
            made: Any = makers[form](layer, shape)
            made.kernel = kernel
            return made

        return make

    formats = {form for form, op in _RUNS_ON.values() if known.get(kernel) in (op, op.replace("conv2d", "spmm"))}
    for form in makers:
        if ("block" if form in ("4x1", "8x1") else form) in formats:
            return {form: maker(form)}
    raise ValueError(
        f"policy: {name} cannot run as {kernel!r}; expected one of {sorted(makers)}, or a kernel of `sparsecore info`"
    )


def numeric_type(format_name: str) -> str:
    """What a format computes in: ``float`` or a type of integers; within one type outputs differ by rounding alone."""
    return _INTEGER_TYPES.get(format_name, FLOAT)


def weight_statistics(layer: nn.Module) -> WeightStatistics:
    """Count the non-zeros of a layer's weight."""
    if isinstance(layer, SemiStructuredLinear):
        return WeightStatistics(layer.out_features, layer.in_features, layer.nnz)
    if isinstance(layer, CompressedModule):
        return WeightStatistics(*layer.weight_shape, layer.count_nonzero())
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if weight.is_floating_point() and weight.itemsize == 1:  # float8 has no comparisons
        weight = weight.float()
    return WeightStatistics(len(weight), weight[0].numel() if len(weight) else 0, int(weight.count_nonzero()))


def format_of(layer: nn.Module) -> str:
    """Return ``dense``, ``depthwise`` or a format of sparse weights: a key of CANDIDATES, or ``codebook``."""
    if isinstance(layer, BlockLinear | BlockConv2d):
        return f"{layer.block_rows}x1"
    return (_RUNS_ON | GPU_FORMATS).get(type(layer), (DENSE, ""))[0]


def operation_of(layer: nn.Module) -> str:
    """Return ``linear`` or ``conv2d``, with the size of a filter."""
    kernel_size = getattr(layer, "kernel_size", None)
    return "linear" if kernel_size is None else f"conv {'x'.join(map(str, kernel_size))}"


def kernel_of(layer: nn.Module) -> str:
    """Name of the kernel that runs the layer on this machine; ``torch`` for a dense one."""
    if type(layer) in GPU_FORMATS:
        return GPU_FORMATS[type(layer)][1]
    if not isinstance(layer, CompressedModule | DepthwiseConv2d):
        return "torch"
    if is_on_gpu(layer):
        return "spmm_csr"
    if layer.kernel:
        return layer.kernel
    operation = _RUNS_ON[type(layer)][1]
    if getattr(layer, "is_product", False):  # a 1x1 convolution
        operation = operation.replace("conv2d", "spmm")
    names = [k["name"] for k in _C.kernels() if k["op"] == operation and k["available"]]
    has_wide_table = isinstance(layer, QuantizedStorage) and layer.packed_shape.table == 256
    return next(name for name in names if ("lookup256" in name) == has_wide_table)
