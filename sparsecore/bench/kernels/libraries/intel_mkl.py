"""Intel MKL's inspector-executor sparse routines, called through libmkl_rt of the PyPI package ``mkl``.

Reference: Intel oneMKL Developer Reference for C, Inspector-executor Sparse BLAS Routines.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from importlib.metadata import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecore.bench.kernels.problem import Floats, Problem
from sparsecore.bench.peers.candidate import Builders, Candidate, call_into

# mkl_spblas.h
NON_TRANSPOSE = 10
GENERAL, LOWER, NON_UNIT = 20, 40, 50
ROW_MAJOR, COLUMN_MAJOR = 101, 102
ZERO_BASED = 0
EXPECTED_CALLS = 100_000


class MatrixDescription(ctypes.Structure):
    """``struct matrix_descr``."""

    _fields_ = (("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int))


DESCRIPTION = MatrixDescription(GENERAL, LOWER, NON_UNIT)
ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)


def _load() -> ctypes.CDLL:
    for file in files("mkl") or ():
        if file.name.startswith(("libmkl_rt", "mkl_rt")):
            return ctypes.CDLL(str(file.locate()))
    raise ImportError("expected libmkl_rt in the package mkl, found none")


MKL = _load()


def prepare(threads: int) -> None:
    """Set the number of threads."""
    MKL.MKL_Set_Num_Threads(threads)


def candidates(problem: Problem) -> Builders:
    """CSR in both layouts of the activations, where the layer is one matrix product."""
    if not problem.is_product:
        return {}
    if problem.num_columns == 1:
        return {"csr": partial(_vector, problem)}
    builders: dict[str, Callable[[], Candidate]] = {"csr": partial(_columns, problem)}
    if not problem.is_conv:
        builders["csr rows"] = partial(_rows, problem)
    return builders


class CsrHandle:
    """``sparse_matrix_t`` over arrays that live as long as it does."""

    def __init__(self, matrix: Floats) -> None:
        rows, self.col_idx = (index.astype(np.int32) for index in np.nonzero(matrix))
        self.row_ptr = np.searchsorted(rows, np.arange(len(matrix) + 1)).astype(np.int32)
        self.values = matrix[rows, self.col_idx]
        self.handle = ctypes.c_void_p()
        ends = ctypes.c_void_p(self.row_ptr.ctypes.data + self.row_ptr.itemsize)
        arrays = (_pointer(self.row_ptr), ends, _pointer(self.col_idx), _pointer(self.values))
        _check(MKL.mkl_sparse_s_create_csr(ctypes.byref(self.handle), ZERO_BASED, *matrix.shape, *arrays))

    def optimize(self) -> None:
        """Inspect the matrix for the calls that were announced."""
        _check(MKL.mkl_sparse_optimize(self.handle))

    def __del__(self) -> None:
        MKL.mkl_sparse_destroy(self.handle)


def _vector(problem: Problem) -> Candidate:
    csr = CsrHandle(problem.matrix)
    _check(MKL.mkl_sparse_set_mv_hint(csr.handle, NON_TRANSPOSE, DESCRIPTION, EXPECTED_CALLS))
    csr.optimize()
    x = problem.columns()
    y = np.empty(len(problem.weight), np.float32)
    call = partial(MKL.mkl_sparse_s_mv, NON_TRANSPOSE, ONE, csr.handle, DESCRIPTION, _pointer(x), ZERO, _pointer(y))
    return _candidate(problem, call, (csr, x), y, "x [K], y [N]", problem.from_columns)


def _columns(problem: Problem) -> Candidate:
    x = problem.columns()
    y = np.empty((len(problem.weight), x.shape[1]), np.float32)
    return _product(problem, x, y, ROW_MAJOR, "x [K, P], y [N, P]", problem.from_columns)


def _rows(problem: Problem) -> Candidate:
    y = np.empty(problem.output_shape, np.float32)
    return _product(problem, problem.x, y, COLUMN_MAJOR, "x [M, K], y [M, N]", np.asarray)


def _product(
    problem: Problem, x: Floats, y: Floats, layout: int, note: str, arrange: Callable[[Floats], Floats]
) -> Candidate:
    csr = CsrHandle(problem.matrix)
    columns = problem.num_columns
    hint = (NON_TRANSPOSE, DESCRIPTION, layout, columns, EXPECTED_CALLS)
    _check(MKL.mkl_sparse_set_mm_hint(csr.handle, *hint))
    csr.optimize()
    call = partial(
        MKL.mkl_sparse_s_mm,
        *(NON_TRANSPOSE, ONE, csr.handle, DESCRIPTION, layout),
        *(_pointer(x), columns, x.shape[1], ZERO, _pointer(y), y.shape[1]),
    )
    return _candidate(problem, call, (csr, x), y, note, arrange)


def _candidate(
    problem: Problem,
    call: Callable[[], int],
    keep: Any,
    y: Floats,
    note: str,
    arrange: Callable[[Floats], Floats],
) -> Candidate:
    def output(keep: Any = keep) -> Floats:  # the call knows addresses only
        _check(call())
        return arrange(call_into(y, call)) + problem.per_output(problem.bias)

    return Candidate(call, output, sparse=True, note=f"{note}; no bias")


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"expected MKL's status 0, got {status} (sparse_status_t of mkl_spblas.h)")
