"""DeltaWeight: exact round trips on any number of threads, size in memory, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from csr_weights import assert_equal, random_csr, special_csr
from torch import Tensor
from torch.library import opcheck

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight, DeltaWeight
from sparsecore.ops.cuda import spmm_packed

DTYPES = (torch.float16, torch.bfloat16, torch.int8)
SHAPES = [(0, 0), (0, 7), (5, 0), (1, 1), (3, 300), (300, 3), (2, 4096), (3, 4097), (65, 9000)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", [0.5, 0.95, 0.999])
def test_round_trip_is_exact(shape: tuple[int, int], sparsity: float, dtype: torch.dtype) -> None:
    weight = random_csr(*shape, sparsity, dtype)
    packed = DeltaWeight.pack(weight)
    assert packed.shape == shape
    assert packed.dtype == dtype
    assert_equal(packed.unpack(), weight)


def test_threads_change_nothing() -> None:
    weight = random_csr(700, 9000, 0.9, torch.float16)

    def run() -> list[Tensor]:
        packed = DeltaWeight.pack(weight)
        assert_equal(packed.unpack(), weight)
        return list(packed.tensors)

    assert_same_on_any_number_of_threads(run)


def test_special_values_and_stored_zeros_survive() -> None:
    weight = special_csr(torch.float16)
    assert_equal(DeltaWeight.pack(weight).unpack(), weight)


@pytest.mark.parametrize(("dtype", "bytes_per_entry"), [(torch.float16, 3), (torch.int8, 2)])
def test_bytes_are_those_of_what_is_stored(dtype: torch.dtype, bytes_per_entry: int) -> None:
    dense = torch.zeros(100, 4096)
    dense[:, ::100] = torch.randn(100, 41)  # no wide gaps
    weight = CsrWeight.from_dense(dense).quantize() if dtype == torch.int8 else CsrWeight.from_dense(dense.to(dtype))
    packed = DeltaWeight.pack(weight)
    padding = packed.codes.nbytes + packed.values.nbytes - bytes_per_entry * weight.nnz
    assert 0 <= padding <= 100 * 3 * bytes_per_entry  # a quad is filled up


def test_refusals() -> None:
    weight = random_csr(8, 8, 0.5, torch.float16)
    with pytest.raises(FormatError, match="float16, bfloat16 or int8 values to pack"):
        DeltaWeight.pack(weight.to(torch.float32))
    with pytest.raises(RuntimeError, match="1 to 65536 blocks, got 0"):
        DeltaWeight.pack(weight, 0)
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        spmm_packed(torch.ones(2, 8, dtype=torch.float16), DeltaWeight.pack(weight))


def tampered(packed: DeltaWeight, name: str, at: int, value: float) -> DeltaWeight:
    tensor: Tensor = getattr(packed, name).clone()
    tensor[at] = value
    return replace(packed, **{name: tensor})


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("codes", 1, 0, "columns must rise inside their panel"),
        ("codes", 0, 254, "columns must rise inside their panel"),
        ("values", 3, 1.0, "must have no value"),
        ("quad_ptr", 1, 5, "must rise inside the arrays"),
        ("quad_ptr", 1, -1, "must rise inside the arrays"),
        ("quad_ptr", 2, 1, "from 0 to the end"),
    ],
)
def test_tampered_arrays_are_refused(name: str, at: int, value: float, message: str) -> None:
    weight = CsrWeight.from_dense(torch.tensor([[1.0, 2, 3, 0], [0, 0, 4, 5]], dtype=torch.float16))
    with pytest.raises(RuntimeError, match=message):
        tampered(DeltaWeight.pack(weight), name, at, value).unpack()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(7, dtype=torch.uint8)}, "fit together"),
        ({"quad_ptr": torch.zeros(2, dtype=torch.int32)}, "fit together"),
        ({"values": torch.zeros(8)}, "values, got float32"),
        ({"quad_ptr": torch.zeros(3)}, "int32 quad_ptr"),
        ({"codes": torch.zeros(16, dtype=torch.uint8)[::2]}, "contiguous codes"),
        ({"shape": (1 << 31, 1)}, r"in \[0, 2\^31\)"),
        ({"shape": (1 << 30, 1 << 14)}, r"fewer than 2\^31 rows of panels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    weight = CsrWeight.from_dense(torch.tensor([[1.0, 2, 3, 0], [0, 0, 4, 5]], dtype=torch.float16))
    with pytest.raises(RuntimeError, match=message):
        replace(DeltaWeight.pack(weight), **change).unpack()  # type: ignore[arg-type]


def test_the_operation_has_a_fake() -> None:
    weight = DeltaWeight.pack(random_csr(70, 100, 0.9, torch.float16)).to("meta")
    x = torch.empty(2, 3, 100, dtype=torch.float16, device="meta")
    y = raw.spmm_delta(x, list(weight.tensors), weight.sizes, None, None, "none")
    assert y.shape == (2, 3, 70)
    assert y.dtype == torch.float16


@pytest.mark.parametrize("shape", [(70_000, 70_000), (2, 2**31 - 1), (2**20, 4097)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_than_2_31_positions(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Entries in the first and the last column of the first and the last row."""
    N, K = shape
    row_ptr = torch.full((N + 1,), 2, dtype=torch.int32)
    row_ptr[0], row_ptr[-1] = 0, 4
    columns = torch.tensor([0, K - 1, 0, K - 1], dtype=torch.int32)
    values = torch.tensor([1, 2, 3, 4]).to(dtype)
    weight = CsrWeight(row_ptr, columns, values, shape, torch.ones(N) if dtype == torch.int8 else None)
    assert_equal(DeltaWeight.pack(weight).unpack(), weight)


@pytest.mark.parametrize(("N", "K"), [(8192, 2**31 - 1), (4, 2**31), (4, -1)])
def test_sizes_that_positions_cannot_count(N: int, K: int) -> None:
    row_ptr, none = torch.zeros(N + 1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"expected a delta weight with N and K in \[0, 2\^31\)"):
        raw.pack_delta(row_ptr, none, none.half(), K, 1)
    tensors = DeltaWeight.pack(CsrWeight.from_dense(torch.zeros(4, 4).half())).tensors
    with pytest.raises(RuntimeError, match=r"expected a delta weight with N and K in \[0, 2\^31\)"):
        raw.unpack_delta(list(tensors), [N, K])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    csr = random_csr(30, 5000, 0.9, dtype)
    opcheck(raw.pack_delta.default, (csr.row_ptr, csr.col_idx, csr.values, 5000, 3))
    packed = DeltaWeight.pack(csr)
    opcheck(raw.unpack_delta.default, (list(packed.tensors), packed.sizes))
