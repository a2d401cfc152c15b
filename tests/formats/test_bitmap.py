"""BitmapWeight: exact round trips on any number of threads, size in memory, refusals."""

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from csr_weights import DAMAGES, assert_equal, damaged_csr, random_csr, special_csr
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import BitmapWeight, CsrWeight
from sparsecore.formats.bitmap import BLOCK_ROWS, SLACK

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 0), (1, 1), (3, 300), (300, 3), (65, 129), (130, 700)])
def test_round_trip_is_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_csr(*shape, 0.6, dtype)
    packed = BitmapWeight.pack(weight)
    assert packed.nnz == weight.nnz
    assert packed.shape == shape
    assert packed.values.dtype == dtype
    assert_equal(packed.unpack(), weight)


def test_what_is_documented() -> None:
    N, K = 20, 9
    dense = torch.randn(N, K) * (torch.rand(N, K) < 0.5)
    packed = BitmapWeight.pack(CsrWeight.from_dense(dense))
    ends, values = [0], []
    for block in range(2):
        rows = dense[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        for k in range(K):
            bits = sum(1 << r for r, value in enumerate(rows[:, k].tolist()) if value != 0)
            assert packed.masks[block, k].item() & 0xFFFF == bits
            values += [value for value in rows[:, k].tolist() if value != 0]
        ends.append(len(values))
    assert packed.block_ptr.tolist() == ends
    assert packed.values.tolist() == [*values, *[0.0] * SLACK]


def test_special_values_and_stored_zeros_survive() -> None:
    weight = special_csr()
    assert_equal(BitmapWeight.pack(weight).unpack(), weight)


@pytest.mark.parametrize("shape", [(1100, 1000), (16, 90_000), (20_000, 60)])
def test_any_number_of_threads_packs_the_same_bits(shape: tuple[int, int]) -> None:
    weight = random_csr(*shape, 0.6)

    def run() -> list[Tensor]:
        packed = BitmapWeight.pack(weight)
        assert_equal(packed.unpack(), weight)
        return list(packed.tensors)

    assert_same_on_any_number_of_threads(run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_bytes_are_an_eighth_per_weight_and_the_values(sparsity: float, dtype: torch.dtype) -> None:
    N = K = 4096  # float32: 42.0, 22.2 and 8.8 MB at 50, 70 and 90% zeros, of 67.1 dense
    kept = torch.rand(N, K) >= sparsity
    packed = BitmapWeight.pack(CsrWeight.from_dense(kept.to(dtype)))
    expected = N * K / 8 + packed.nnz * dtype.itemsize
    assert expected < packed.nbytes < expected + 2000
    dense = N * K * dtype.itemsize
    assert packed.nbytes == pytest.approx((1 / 8 / dtype.itemsize + 1 - sparsity) * dense, rel=0.01)


def test_int8_is_refused() -> None:
    with pytest.raises(FormatError, match=r"values to pack, got torch\.int8; call"):
        BitmapWeight.pack(CsrWeight.from_dense(torch.eye(4)).quantize())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_csr_is_refused_wherever_it_is(damage: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with pytest.raises(RuntimeError, match="invalid CSR weight"):
        raw.pack_bitmap(*damaged_csr(damage), 500)


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_bitmaps_are_refused_wherever_they_are(threads: int) -> None:
    torch.set_num_threads(threads)
    packed = BitmapWeight.pack(CsrWeight.from_dense(torch.ones(400, 500)))
    packed.masks[-1, -1] = 0
    with pytest.raises(RuntimeError, match="invalid bitmap weight: masks must have as many bits"):
        packed.unpack()
