"""PanelWeight: exact round trips on any number of threads, size in memory, refusals."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight
from sparsecore.formats.panel import MAX_PANEL_COLS, TILE_COLUMNS, PanelWeight, fit_panel_cols


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_dense(N: int, K: int, sparsity: float) -> Tensor:
    """A weight whose rows have from none to twice the usual number of non-zeros."""
    density = (1 - sparsity) * 2 * torch.rand(N, 1)
    return torch.randn(N, K) * (torch.rand(N, K) < density)


def arrays(weight: CsrWeight) -> tuple[Tensor, ...]:
    return weight.row_ptr, weight.col_idx, weight.values


def equal_bits(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    pairs = zip(got, expected, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 0), (1, 1), (3, 300), (300, 3), (65, 129), (130, 700)])
@pytest.mark.parametrize(("panel_cols", "block_rows"), [(1, 1), (9, 64), (104, None), (255, 256)])
def test_round_trip_is_exact(shape: tuple[int, int], panel_cols: int, block_rows: int | None) -> None:
    weight = CsrWeight.from_dense(random_dense(*shape, 0.6))
    packed = PanelWeight.pack(weight, panel_cols, block_rows)
    assert packed.nnz == weight.nnz
    assert packed.shape == shape
    assert equal_bits(arrays(packed.unpack()), arrays(weight))


def test_special_values_survive() -> None:
    dense = torch.tensor([[float("nan"), -0.0, float("inf")], [1e-45, 0.0, -float("inf")]])
    weight = CsrWeight.from_dense(dense, torch.ones_like(dense, dtype=torch.bool))
    assert equal_bits(arrays(PanelWeight.pack(weight, 2).unpack()), arrays(weight))


@pytest.mark.parametrize("shape", [(1100, 1000), (16, 90_000), (20_000, 60)])
def test_any_number_of_threads_packs_the_same_bits(shape: tuple[int, int]) -> None:
    dense = random_dense(*shape, 0.6)
    mask = torch.rand(shape) < 0.4
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        weight = CsrWeight.from_dense(dense)
        packed = PanelWeight.pack(weight, 96)
        unpacked = arrays(packed.unpack())
        masked = arrays(CsrWeight.from_dense(dense, mask))
        results.append((*arrays(weight), *masked, *packed.tensors, *unpacked, weight.to_dense()))
    assert torch.equal(results[0][-1], dense)
    for result in results[1:]:
        assert equal_bits(result, results[0])


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
@pytest.mark.parametrize("damage", ["past K", "negative", "descending", "falling row_ptr", "short row_ptr"])
def test_damaged_csr_is_refused_wherever_it_is(damage: str, threads: int) -> None:
    torch.set_num_threads(threads)
    row_ptr, col_idx, values = (tensor.clone() for tensor in arrays(CsrWeight.from_dense(torch.ones(400, 500))))
    if damage == "falling row_ptr":
        row_ptr[399] = 5
    elif damage == "short row_ptr":
        row_ptr[400] -= 1
    else:
        col_idx[-1] = {"past K": 500, "negative": -1, "descending": 3}[damage]
    with pytest.raises(RuntimeError, match="invalid CSR weight"):
        raw.pack_panel(row_ptr, col_idx, values, 500, 64, 104)


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_panels_are_refused_wherever_they_are(threads: int) -> None:
    torch.set_num_threads(threads)
    packed = PanelWeight.pack(CsrWeight.from_dense(torch.ones(400, 500)), 104)
    packed.panel_col[-1] = 250
    with pytest.raises(RuntimeError, match="invalid panel weight"):
        packed.unpack()
