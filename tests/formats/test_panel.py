"""PanelWeight: exact round trips on any number of threads, size in memory, refusals."""

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from csr_weights import DAMAGES, arrays, assert_equal, damaged_csr, random_csr, special_csr
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight
from sparsecore.formats.panel import MAX_PANEL_COLS, TILE_COLUMNS, PanelWeight, fit_panel_cols


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 0), (1, 1), (3, 300), (300, 3), (65, 129), (130, 700)])
@pytest.mark.parametrize(("panel_cols", "block_rows"), [(1, 1), (9, 64), (104, None), (255, 256)])
def test_round_trip_is_exact(shape: tuple[int, int], panel_cols: int, block_rows: int | None) -> None:
    weight = random_csr(*shape, 0.6)
    packed = PanelWeight.pack(weight, panel_cols, block_rows)
    assert packed.nnz == weight.nnz
    assert packed.shape == shape
    assert_equal(packed.unpack(), weight)


def test_special_values_survive() -> None:
    weight = special_csr()
    assert_equal(PanelWeight.pack(weight, 2).unpack(), weight)


@pytest.mark.parametrize("shape", [(1100, 1000), (16, 90_000), (20_000, 60)])
def test_any_number_of_threads_packs_the_same_bits(shape: tuple[int, int]) -> None:
    dense = random_csr(*shape, 0.6).to_dense()
    mask = torch.rand(shape) < 0.4

    def run() -> list[Tensor]:
        weight = CsrWeight.from_dense(dense)
        assert torch.equal(weight.to_dense(), dense)
        packed = PanelWeight.pack(weight, 96)
        assert_equal(packed.unpack(), weight)
        return [*arrays(weight), *arrays(CsrWeight.from_dense(dense, mask)), *packed.tensors]

    assert_same_on_any_number_of_threads(run)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9, 0.95])
@pytest.mark.parametrize(("N", "K"), [(64, 256), (64, 576), (256, 256), (512, 4608), (1000, 2048), (33, 1027)])
def test_at_most_six_and_a_half_bytes_per_non_zero(N: int, K: int, sparsity: float) -> None:
    # Panels of products, and of 3x3 filters over planes of 28x28 and of 56x56.
    for panel_cols in (fit_panel_cols(TILE_COLUMNS), fit_panel_cols(456, 9), fit_panel_cols(624, 9)):
        weight = CsrWeight.from_dense(torch.randn(N, K) * (torch.rand(N, K) >= sparsity))
        packed = PanelWeight.pack(weight, panel_cols)
        assert packed.nbytes <= 6.5 * packed.nnz


def test_sizes_and_types_out_of_range_are_refused() -> None:
    weight = CsrWeight.from_dense(torch.eye(4))
    for sizes in ((0,), (MAX_PANEL_COLS + 1,), (4, 0), (4, 257)):
        with pytest.raises(FormatError, match="expected panel_cols in 1"):
            PanelWeight.pack(weight, *sizes)
    with pytest.raises(FormatError, match="expected float32 values to pack"):
        PanelWeight.pack(weight.to(torch.float16), 4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_csr_is_refused_wherever_it_is(damage: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with pytest.raises(RuntimeError, match="invalid CSR weight"):
        raw.pack_panel(*damaged_csr(damage), 500, 64, 104)


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_panels_are_refused_wherever_they_are(threads: int) -> None:
    torch.set_num_threads(threads)
    packed = PanelWeight.pack(CsrWeight.from_dense(torch.ones(400, 500)), 104)
    packed.panel_col[-1] = 250
    with pytest.raises(RuntimeError, match="invalid panel weight"):
        packed.unpack()
