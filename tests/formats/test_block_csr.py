"""BlockCsrWeight: exact round trips on any number of threads, what is stored, refusals."""

from __future__ import annotations

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from csr_weights import DAMAGES, assert_equal, damaged_csr
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import BlockCsrWeight, CsrWeight


def pruned_in_blocks(N: int, K: int, block_rows: int, density: float = 0.3) -> Tensor:
    keep = torch.rand(N // block_rows, K) < density
    return torch.randn(N, K) * keep.repeat_interleave(block_rows, 0)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (8, 0), (8, 1), (16, 300), (304, 3), (64, 129)])
@pytest.mark.parametrize("block_rows", [4, 8])
def test_round_trip_is_exact(shape: tuple[int, int], block_rows: int, density: float) -> None:
    weight = CsrWeight.from_dense(torch.randn(shape) * (torch.rand(shape) < density))
    packed = BlockCsrWeight.pack(weight, block_rows)
    assert packed.shape == shape
    assert packed.block_rows == block_rows
    assert_equal(packed.unpack(), weight)


@pytest.mark.parametrize("block_rows", [4, 8])
def test_a_column_is_stored_for_all_rows_of_a_block_or_for_none(block_rows: int) -> None:
    dense = torch.randn(32, 50) * (torch.rand(32, 50) < 0.1)
    packed = BlockCsrWeight.pack(CsrWeight.from_dense(dense), block_rows)
    blocks = dense.view(-1, block_rows, 50)
    is_used = blocks.ne(0).any(1)
    assert torch.equal(packed.block_ptr.diff(), is_used.sum(1).int())
    assert torch.equal(packed.block_col, is_used.nonzero()[:, 1].int())
    assert torch.equal(packed.values, blocks.transpose(1, 2)[is_used])
    assert packed.nnz == packed.values.numel() == int(is_used.sum()) * block_rows
    assert packed.nbytes == 4 * (packed.nnz + int(is_used.sum()) + 32 // block_rows + 1)


def test_blocks_that_fit_store_no_zeros() -> None:
    weight = CsrWeight.from_dense(pruned_in_blocks(64, 90, 4))
    assert BlockCsrWeight.pack(weight, 4).nnz == weight.nnz


def test_special_values_survive_and_stored_zeros_go() -> None:
    dense = torch.tensor([[float("nan"), -0.0, 1e-45]] + [[float("inf"), 2.0, -float("inf")]] * 3)
    weight = CsrWeight.from_dense(dense, torch.ones_like(dense, dtype=torch.bool))
    expected = CsrWeight.from_dense(dense)
    assert_equal(BlockCsrWeight.pack(weight, 4).unpack(), expected)


@pytest.mark.parametrize("shape", [(1104, 1000), (16, 90_000), (20_000, 60)])
def test_any_number_of_threads_packs_the_same_bits(shape: tuple[int, int]) -> None:
    weight = CsrWeight.from_dense(torch.randn(shape) * (torch.rand(shape) < 0.2))
    assert_same_on_any_number_of_threads(lambda: BlockCsrWeight.pack(weight, 8).tensors)


def test_rows_and_types_that_do_not_fit_are_refused() -> None:
    weight = CsrWeight.from_dense(torch.eye(12))
    for block_rows in (-4, 0, 1, 3, 5, 8, 12):
        with pytest.raises(FormatError, match=f"N a multiple of them, got {block_rows} and N = 12"):
            BlockCsrWeight.pack(weight, block_rows)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(FormatError, match="expected float32 values to pack"):
            BlockCsrWeight.pack(weight.to(dtype), 4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_csr_is_refused_wherever_it_is(damage: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with pytest.raises(RuntimeError, match="invalid CSR weight"):
        raw.pack_block_csr(*damaged_csr(damage), 500, 8)
