"""ggml, the library of llama.cpp: dense weights of 4 and 8 bits, called through the libraries in ``llama-cpp-python``.

Every 32 neighbours along K share a float16 scale: q4_0 takes 4.5 bits a weight, q8_0 8.5. Each call quantizes x to
q8_0 and multiplies integers. Zeros of the weight are computed like any other value.

Reference: https://github.com/ggml-org/llama.cpp, ggml/include and block_q4_0 of ggml/src/ggml-common.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import partial
from importlib.metadata import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecore.bench.kernels.problem import Floats, Problem
from sparsecore.bench.peers.candidate import INT4, INT8, Builders, Candidate
from sparsecore.errors import UnsupportedError

DISTRIBUTION = "llama-cpp-python"
LIBRARY_FILES = ("llama_cpp/lib/libggml-cpu.so", "llama_cpp/lib/libggml-cpu.dylib")
BLOCK = 32  # values that share a scale
FLOAT32 = 0  # GGML_TYPE_F32
CONTEXT_BYTES = 1 << 20  # descriptions of tensors and of the graph, not their data
EXTRA_BUFFER_TYPES = b"ggml_backend_dev_get_extra_bufts"
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """A type of quantized weights: its number in ``enum ggml_type``, and what the multiplications are called here."""

    number: int
    dtype: str


FORMATS = {"q4_0": Format(2, INT4), "q8_0": Format(8, INT8)}


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# Result and arguments; ctypes would cut pointers to 32 bits.
PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (InitParams,)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_get_device": (c_void_p, (c_void_p,)),
    "ggml_backend_dev_backend_reg": (c_void_p, (c_void_p,)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_dev_supports_op": (c_bool, (c_void_p, c_void_p)),
    "ggml_backend_buft_name": (c_char_p, (c_void_p,)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
}


def _load() -> ctypes.CDLL:
    for file in files(DISTRIBUTION) or ():
        if file.as_posix() in LIBRARY_FILES:
            library = ctypes.CDLL(str(file.locate()))  # libggml-base comes with it
            for name, (result, arguments) in PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    raise ImportError(f"expected one of {LIBRARY_FILES} in the package {DISTRIBUTION}, found none")


GGML = _load()
BACKEND = GGML.ggml_backend_cpu_init()


def prepare(threads: int) -> None:
    """Set the number of threads."""
    GGML.ggml_backend_cpu_set_n_threads(BACKEND, threads)


def candidates(problem: Problem) -> Builders:
    """Both formats as they are in a file, and in the layout that llama.cpp brings them into when it loads a model."""
    if problem.is_conv or problem.x.shape[1] % BLOCK:
        return {}
    builders: dict[str, Callable[[], Candidate]] = {}
    for name in FORMATS:
        builders[name] = partial(_plain, problem, name)
        builders[f"{name} packed"] = partial(_packed, problem, name)
    return builders


def quantize(weight: Floats, name: str) -> Bytes:
    """Quantize a weight with ggml's own function.

    Args:
        weight: float32 ``[N, K]``, K a multiple of `BLOCK`.
        name: Of `FORMATS`.

    Returns:
        uint8 ``[N, bytes of a row]``.
    """
    N, K = weight.shape
    weight = np.ascontiguousarray(weight)
    quantized = np.empty((N, GGML.ggml_row_size(FORMATS[name].number, K)), np.uint8)
    GGML.ggml_quantize_chunk(FORMATS[name].number, weight.ctypes.data, quantized.ctypes.data, 0, N, K, None)
    return quantized


def dequantize(quantized: Bytes, name: str) -> NDArray[np.float64]:
    """Give back what the bytes stand for, float64 ``[N, K]``; computed here, not by ggml.

    A block is its float16 scale, then its 32 values: int8 in q8_0; in q4_0 16 bytes, of which the low halves are
    values 0 to 15 and the high halves 16 to 31, all 8 too large.
    """
    rows = len(quantized)
    blocks = quantized.reshape(rows, -1, 2 + (BLOCK // 2 if name == "q4_0" else BLOCK))
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float64)
    values = np.ascontiguousarray(blocks[..., 2:])
    if name == "q4_0":
        q = np.concatenate([values & 15, values >> 4], axis=2).astype(np.int8) - 8
    else:
        q = values.view(np.int8)
    return (scale * q).reshape(rows, -1)


def exact_output(problem: Problem, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute in float64 what a format's candidates compute, and how far they may be from it.

    Of every 32 values of x the scale is the largest magnitude / 127, in float16: rounding x is wrong by at most half a
    scale, rounding the scale by 127 * 2^-11 of one. Sums are in float32.

    Args:
        problem: A linear layer.
        name: Of `FORMATS`.

    Returns:
        The output of the dequantized weight, and the bound, both ``[M, N]``.
    """
    weight = dequantize(quantize(problem.matrix, name), name)
    x = problem.x.astype(np.float64)
    scale = np.abs(x.reshape(len(x), -1, BLOCK)).max(axis=2).repeat(BLOCK, axis=1) / 127
    roundings = (x.shape[1] + 2) * 2.0**-24
    bound = (scale * (0.5 + 127 * 2.0**-11) + roundings * np.abs(x)) @ np.abs(weight).T
    return x @ weight.T + problem.bias, bound + roundings * np.abs(problem.bias)


def _plain(problem: Problem, name: str) -> Candidate:
    return Product(problem, name, GGML.ggml_backend_cpu_buffer_type()).candidate("as in a file")


def _packed(problem: Problem, name: str) -> Candidate:
    for buffer_type in _extra_buffer_types():
        product = Product(problem, name, buffer_type)
        if product.is_supported:
            return product.candidate(GGML.ggml_backend_buft_name(buffer_type).decode())
    raise UnsupportedError(f"expected a packed layout of {name} for this CPU and N = {len(problem.weight)}, found none")


def _extra_buffer_types() -> Iterator[int]:
    """Memory whose tensors are repacked when they are filled, the best first, as llama.cpp asks for it."""
    device = GGML.ggml_backend_get_device(BACKEND)
    registry = GGML.ggml_backend_dev_backend_reg(device)
    address = GGML.ggml_backend_reg_get_proc_address(registry, EXTRA_BUFFER_TYPES)
    if address:
        for buffer_type in ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device):
            if not buffer_type:
                return
            yield buffer_type


class Memory:
    """Tensors that are described first and get memory together; freed with this object."""

    def __init__(self) -> None:
        self.context = GGML.ggml_init(InitParams(CONTEXT_BYTES, None, True))
        self.buffer: int | None = None

    def tensor(self, kind: int, columns: int, rows: int) -> int:
        """Describe a row-major tensor ``[rows, columns]``."""
        found: int = GGML.ggml_new_tensor_2d(self.context, kind, columns, rows)
        return found

    def allocate(self, buffer_type: int) -> None:
        """Give memory to all that were described."""
        self.buffer = GGML.ggml_backend_alloc_ctx_tensors_from_buft(self.context, buffer_type)
        if not self.buffer:
            raise MemoryError("ggml could not allocate its tensors")

    def __del__(self) -> None:
        if self.buffer:
            GGML.ggml_backend_buffer_free(self.buffer)
        GGML.ggml_free(self.context)


class Product:
    """``ggml_mul_mat`` of a quantized weight and float32 x ``[M, K]``, in memory of ggml's.

    Args:
        problem: A linear layer.
        name: Of `FORMATS`.
        buffer_type: Memory of the weight, a ``ggml_backend_buffer_type_t``.
    """

    def __init__(self, problem: Problem, name: str, buffer_type: int) -> None:
        (M, K), N = problem.x.shape, len(problem.weight)
        self._problem, self._name = problem, name
        self._weights, self._rest = Memory(), Memory()
        self._weight = self._weights.tensor(FORMATS[name].number, K, N)
        self._x = self._rest.tensor(FLOAT32, K, M)
        self._y = GGML.ggml_mul_mat(self._rest.context, self._weight, self._x)
        self._graph = GGML.ggml_new_graph(self._rest.context)
        GGML.ggml_build_forward_expand(self._graph, self._y)
        self._weights.allocate(buffer_type)
        self._rest.allocate(GGML.ggml_backend_cpu_buffer_type())

    @property
    def is_supported(self) -> bool:
        """Whether ggml has a kernel for a weight of this type and size in this memory."""
        return bool(GGML.ggml_backend_dev_supports_op(GGML.ggml_backend_get_device(BACKEND), self._y))

    def candidate(self, layout: str) -> Candidate:
        """Fill the tensors in, and offer the product."""
        _set(self._weight, quantize(self._problem.matrix, self._name))
        _set(self._x, np.ascontiguousarray(self._problem.x))
        note = f"x [M, K], y [M, N]; quantizing x is timed; weight {layout}; no bias"
        return Candidate(self._call, self._output, FORMATS[self._name].dtype, note=note)

    def _call(self) -> None:
        status = GGML.ggml_backend_graph_compute(BACKEND, self._graph)
        if status:
            raise RuntimeError(f"expected ggml's status 0, got {status} (enum ggml_status of ggml.h)")

    def _output(self) -> Floats:
        y = np.full(self._problem.output_shape, np.nan, np.float32)
        _set(self._y, y)  # what stood there before cannot pass for a result
        self._call()
        GGML.ggml_backend_tensor_get(self._y, y.ctypes.data, 0, y.nbytes)
        return y + self._problem.bias


def _set(tensor: int, array: NDArray[Any]) -> None:
    GGML.ggml_backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
