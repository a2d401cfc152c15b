"""Kernels, packing and CPU features of libsparsecore for numpy (csrc/python/module.cpp)."""

from typing import Any, TypedDict

from numpy import float32, int32
from numpy.typing import NDArray

class KernelRow(TypedDict):
    op: str
    name: str
    isa: str
    available: bool

class BuildInfo(TypedDict):
    version: str
    compiler: str
    cuda: bool

def kernels() -> list[KernelRow]: ...
def int8_packing(few_positions: bool = False) -> tuple[int, int, bool]: ...
def isa() -> str: ...
def isa_detected() -> str: ...
def cpu_name() -> str: ...
def build_info() -> BuildInfo: ...
def probe_fma_gflops(seconds: float) -> float: ...
def probe_read_gbps(bytes: int, seconds: float) -> float: ...
def pack_csr(
    weight: NDArray[float32], mask: NDArray[Any] | None = None
) -> tuple[NDArray[int32], NDArray[int32], NDArray[float32]]: ...
def unpack_csr(
    row_ptr: NDArray[int32], col_idx: NDArray[int32], values: NDArray[float32], cols: int
) -> NDArray[float32]: ...
def spmm_csr(
    x: NDArray[float32],
    row_ptr: NDArray[int32],
    col_idx: NDArray[int32],
    values: NDArray[float32],
    kernel: str = "",
) -> NDArray[float32]: ...
