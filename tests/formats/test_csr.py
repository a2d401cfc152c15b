"""CsrWeight: exact round trips, and no invalid array gets in."""

from __future__ import annotations

from itertools import pairwise

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight, Int8Weight

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (16, 16), (2, 3, 3, 3)]


def sparse(shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 40
    return (values * (torch.rand(shape, generator=generator) < density)).to(dtype)


def arrays(**changes: object) -> dict[str, object]:
    """A valid weight [[5, 0, 7], [0, 0, 0], [0, 9, 0]] with some fields changed."""
    valid: dict[str, object] = {
        "row_ptr": torch.tensor([0, 2, 2, 3], dtype=torch.int32),
        "col_idx": torch.tensor([0, 2, 1], dtype=torch.int32),
        "values": torch.tensor([5.0, 7.0, 9.0]),
        "shape": (3, 3),
    }
    return valid | changes


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips_are_exact(shape: tuple[int, ...], density: float, dtype: torch.dtype) -> None:
    dense = sparse(shape, density, dtype)
    matrix = dense.flatten(1)
    scale = torch.rand(shape[0]) + 0.5 if dtype == torch.int8 else None
    weight = CsrWeight.from_dense(dense, scale=scale)
    assert weight.shape == matrix.shape
    assert weight.nnz == int((dense != 0).sum())
    assert torch.equal(weight.to_dense(dequantize=False), matrix)

    back = CsrWeight.from_torch(weight.to_torch(dequantize=False), scale=scale)
    assert_same(back, weight)
    matrix_scipy = weight.to_scipy(dequantize=False)
    if dtype == torch.int8:
        back = CsrWeight.from_scipy(matrix_scipy, scale=scale)
    else:
        back = CsrWeight.from_scipy(matrix_scipy, dtype)
    assert_same(back, weight)


def assert_same(a: CsrWeight, b: CsrWeight) -> None:
    assert a.shape == b.shape
    for name in ("row_ptr", "col_idx", "values", "scale"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        assert left is None or (left.dtype == right.dtype and torch.equal(left, right))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.floats(0, 1), st.integers(0, 2**16))
def test_round_trip_of_any_shape(rows: int, cols: int, density: float, seed: int) -> None:
    dense = sparse((rows, cols), density, torch.float32, seed)
    weight = CsrWeight.from_dense(dense)
    assert torch.equal(weight.to_dense(), dense)
    assert torch.equal(weight.transpose().to_dense(), dense.T)
    assert torch.equal(torch.from_numpy(weight.to_scipy().toarray()), dense)
    assert_same(weight.transpose().transpose(), weight)


def test_sizes() -> None:
    weight = CsrWeight.from_dense(torch.tensor([[5.0, 0, 7], [0, 0, 0], [0, 9, 0]]))
    assert weight.row_ptr.tolist() == [0, 2, 2, 3]
    assert weight.col_idx.tolist() == [0, 2, 1]
    assert weight.values.tolist() == [5, 7, 9]
    assert (weight.nnz, weight.density, weight.sparsity) == (3, 3 / 9, 1 - 3 / 9)
    assert weight.nbytes == 4 * 4 + 3 * 4 + 3 * 4
    assert weight.dtype == torch.float32
    assert weight.device == torch.device("cpu")


def test_zeros_nan_and_masks() -> None:
    dense = torch.tensor([[float("nan"), 0.0, -0.0, float("inf")]])
    assert CsrWeight.from_dense(dense).col_idx.tolist() == [0, 3]
    kept = CsrWeight.from_dense(dense, torch.tensor([[False, True, True, False]]))
    assert kept.col_idx.tolist() == [1, 2]
    assert torch.signbit(kept.values).tolist() == [False, True]


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 4), [[True] * 4]],
    ids=["shape", "dtype", "list"],
)
def test_bad_mask(mask: object) -> None:
    with pytest.raises(FormatError, match="mask"):
        CsrWeight.from_dense(torch.ones(1, 4), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.ones(3), "2 or more dimensions"),
        (torch.ones(3, 3, dtype=torch.float64), "float64"),
        (torch.ones(3, 3).to_sparse(), "sparse_coo"),
        ([[1.0]], "list"),
        (torch.ones(3, 3, dtype=torch.int8), "scale"),
    ],
)
def test_bad_dense(weight: object, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        CsrWeight.from_dense(weight)  # type: ignore[arg-type]


def test_non_contiguous_arrays_become_contiguous() -> None:
    dense = sparse((6, 10), 0.5, torch.float32)
    assert torch.equal(CsrWeight.from_dense(dense.T).to_dense(), dense.T)
    doubled = torch.tensor([0, 9, 2, 9, 1, 9], dtype=torch.int32)
    weight = CsrWeight(**arrays(col_idx=doubled[::2]))  # type: ignore[arg-type]
    assert weight.col_idx.is_contiguous()
    assert weight.col_idx.tolist() == [0, 2, 1]


def test_masks_of_any_bytes() -> None:
    mask = torch.tensor([[2, 0], [255, 1]], dtype=torch.uint8).view(torch.bool)
    weight = CsrWeight.from_dense(torch.tensor([[1.0, 2], [3, 4]]), mask)
    assert weight.to_dense().tolist() == [[1, 0], [3, 4]]


def test_the_smallest_numbers_are_kept_when_arithmetic_flushes_them() -> None:
    dense = torch.tensor([[1e-45, 0.0, -1e-40, -0.0]])
    torch.set_flush_denormal(True)
    try:
        weight = CsrWeight.from_dense(dense)
    finally:
        torch.set_flush_denormal(False)
    assert weight.col_idx.tolist() == [0, 2]


def test_gradients_are_cut() -> None:
    dense = torch.eye(2, requires_grad=True)
    assert not CsrWeight.from_dense(dense).values.requires_grad


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"row_ptr": torch.tensor([0, 2, 2, 3])}, "row_ptr.*int32.*int64"),
        ({"row_ptr": int32(0, 2, 3)}, r"row_ptr of shape \[4\]"),
        ({"row_ptr": int32(1, 2, 2, 3)}, "from 0 to nnz"),
        ({"row_ptr": int32(0, 2, 2, 4)}, "from 0 to nnz"),
        ({"row_ptr": int32(0, 3, 2, 3)}, "never to fall"),
        ({"row_ptr": int32(0, -5, 2, 3)}, "never to fall"),
        ({"row_ptr": int32(0, 9, 2, 3)}, "never to fall"),
        ({"row_ptr": int32(0, 2, 2, 3)[None]}, "row_ptr of shape"),
        ({"col_idx": int32(0, 2)}, r"col_idx of shape \[3\]"),
        ({"col_idx": int32(0, 3, 1)}, r"col_idx in \[0, 3\)"),
        ({"col_idx": int32(-1, 2, 1)}, r"col_idx in \[0, 3\)"),
        ({"col_idx": int32(2, 0, 1)}, "ascending"),
        ({"col_idx": int32(2, 2, 1)}, "ascending"),
        ({"col_idx": None}, "col_idx.*NoneType"),
        ({"values": torch.ones(3, dtype=torch.float64)}, "values.*float64"),
        ({"values": torch.ones(3, 1)}, "values of shape"),
        ({"values": torch.ones(3, dtype=torch.int8)}, "scale exactly with int8"),
        ({"scale": torch.ones(3)}, "scale exactly with int8"),
        ({"values": torch.ones(3, device="meta")}, "one device"),
        ({"shape": (2, 3)}, "row_ptr of shape"),
        ({"shape": (3, 2)}, r"col_idx in \[0, 2\)"),
        ({"shape": (3, -1)}, "shape"),
        ({"shape": (3, 2**31)}, "shape"),
        ({"shape": (3,)}, "shape"),
        ({"shape": (3.0, 3)}, "shape"),
    ],
)
def test_invalid_arrays(changes: dict[str, object], text: str) -> None:
    CsrWeight(**arrays())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=text):
        CsrWeight(**arrays(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_scale(bad: float) -> None:
    values = torch.ones(3, dtype=torch.int8)
    scale = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(FormatError, match="scale finite"):
        CsrWeight(**arrays(values=values, scale=scale))  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-2, 5), min_size=4, max_size=4),
    st.lists(st.integers(-1, 4), max_size=4),
)
def test_validation_equals_a_loop(row_ptr: list[int], col_idx: list[int]) -> None:
    """Accepted exactly when plain loops over the rows accept."""

    def is_valid() -> bool:
        if row_ptr[0] != 0 or row_ptr[-1] != len(col_idx) or sorted(row_ptr) != row_ptr:
            return False
        rows = [col_idx[a:b] for a, b in pairwise(row_ptr)]
        return all(row == sorted(set(row)) for row in rows) and all(0 <= k < 4 for k in col_idx)

    def build() -> CsrWeight:
        values = torch.ones(len(col_idx))
        return CsrWeight(int32(*row_ptr), int32(*col_idx), values, (3, 4))

    if is_valid():
        assert build().nnz == len(col_idx)
    else:
        with pytest.raises(FormatError):
            build()


def test_scipy_is_canonicalised_and_copied() -> None:
    rows, cols = [0, 0, 1, 0], [2, 1, 0, 2]
    coo = scipy.sparse.coo_array(([1.0, 2.0, 0.0, 4.0], (rows, cols)), shape=(2, 3))
    weight = CsrWeight.from_scipy(coo)
    assert weight.dtype == torch.float32
    assert weight.col_idx.tolist() == [1, 2, 0]  # the explicit zero stays
    assert weight.values.tolist() == [2, 5, 0]

    unsorted = scipy.sparse.csr_array(([1.0, 2.0], [2, 0], [0, 2, 2]), shape=(2, 3))
    weight = CsrWeight.from_scipy(unsorted)
    assert weight.col_idx.tolist() == [0, 2]
    assert unsorted.indices.tolist() == [2, 0]
    unsorted.data[:] = 9
    assert weight.values.tolist() == [2, 1]


def test_scipy_int8_sum_must_fit() -> None:
    def twice(value: int) -> scipy.sparse.coo_array:
        data = torch.tensor([value, value], dtype=torch.int8).numpy()
        return scipy.sparse.coo_array((data, ([0, 0], [1, 1])), shape=(1, 2))

    assert CsrWeight.from_scipy(twice(-64), scale=torch.ones(1)).values.tolist() == [-128]
    with pytest.raises(FormatError, match="duplicates"):
        CsrWeight.from_scipy(twice(100), scale=torch.ones(1))


def test_foreign_matrices_are_checked() -> None:
    with pytest.raises(FormatError, match="scipy"):
        CsrWeight.from_scipy(torch.ones(2, 2).numpy())
    with pytest.raises(FormatError, match="int64"):
        CsrWeight.from_scipy(scipy.sparse.csr_array([[1, 2]]))
    with pytest.raises(FormatError, match="sparse_csr"):
        CsrWeight.from_torch(torch.ones(2, 2))
    # Indices that would wrap around to valid ones in int32.
    matrix = torch.sparse_csr_tensor(
        torch.tensor([0, 1]), torch.tensor([2**32]), torch.ones(1), (1, 3), check_invariants=False
    )
    with pytest.raises(FormatError, match="col_idx in"):
        CsrWeight.from_torch(matrix)


def test_float64_sparse_csr_is_rounded() -> None:
    matrix = torch.tensor([[0.1, 0.0]], dtype=torch.float64).to_sparse_csr()
    assert CsrWeight.from_torch(matrix).values.tolist() == torch.tensor([0.1]).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize_equals_the_dense_format(dtype: torch.dtype) -> None:
    dense = sparse((9, 31), 0.3, dtype)
    dense[4] = 0
    weight, expected = CsrWeight.from_dense(dense).quantize(), Int8Weight.from_dense(dense)
    assert torch.equal(weight.to_dense(dequantize=False), expected.q)
    assert torch.equal(weight.scale, expected.scale)  # type: ignore[arg-type]
    assert torch.equal(weight.to_dense(), expected.to_dense())
    assert weight.quantize() is weight


def test_quantize_refuses_nan() -> None:
    with pytest.raises(FormatError, match="NaN or infinity"):
        CsrWeight.from_dense(torch.tensor([[1.0, float("nan")]])).quantize()


def test_to() -> None:
    weight = CsrWeight.from_dense(sparse((4, 8), 0.5, torch.float32))
    assert torch.equal(weight.to(torch.bfloat16).to_dense(), weight.to_dense().bfloat16())
    int8 = weight.to(torch.int8)
    assert int8.dtype == torch.int8
    real = int8.to(torch.float32)
    assert real.scale is None
    assert torch.equal(real.to_dense(), int8.to_dense())
    assert_same(weight.to("cpu"), weight)
    with pytest.raises(FormatError, match="float64"):
        weight.to(torch.float64)
    with pytest.raises(FormatError, match="transpose"):
        int8.transpose()


def test_damaged_scipy_matrices_are_refused_before_scipy_converts_them() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    numpy = pytest.importorskip("numpy")
    coo = scipy_sparse.coo_matrix(numpy.eye(20, 30))
    coo.row[0] = 10**6
    csr = scipy_sparse.csr_matrix(numpy.eye(20, 30))
    csr.indptr[3] = -5
    csc = scipy_sparse.csc_array(numpy.eye(20, 30))
    csc.indices[3] = 999
    for damaged in (coo, csr, csc):
        with pytest.raises(FormatError):
            CsrWeight.from_scipy(damaged)
