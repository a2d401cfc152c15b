"""CodebookWeight and its packed form: exact round trips, fillers, the index of segments, refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats import CodebookWeight, PackedCodebookWeight
from sparsecore.formats.bit_fields import pack_fields


def shared_weight(N: int, K: int, density: float, num_values: int) -> Tensor:
    values = torch.randn(num_values) + 5.0 * torch.arange(1, num_values + 1)
    return values[torch.randint(0, num_values, (N, K))] * (torch.rand(N, K) < density)


CASES = [
    (7, 9, 0.3, 4),
    (1, 50, 0.1, 3),  # one row
    (50, 1, 0.1, 3),
    (5, 4, 0.0, 3),  # all zero
    (0, 4, 0.5, 2),
    (4, 0, 0.5, 2),
    (30, 30, 0.5, 1),  # one value
    (3, 3, 1.0, 2),
    (600, 30, 0.003, 15),  # gaps that overflow every field
    (64, 64, 0.9, 256),
    (100, 100, 0.05, 255),
]


@pytest.mark.parametrize("gap_bits", [None, *range(1, 9)])
@pytest.mark.parametrize(("N", "K", "density", "num_values"), CASES)
def test_round_trip(N: int, K: int, density: float, num_values: int, gap_bits: int | None) -> None:
    dense = shared_weight(N, K, density, num_values)
    if num_values == 256 and gap_bits == 1:
        with pytest.raises(FormatError, match="at most 255 different values beside zero, which fillers take, got 256"):
            CodebookWeight.from_dense(dense, gap_bits=gap_bits)
        return
    weight = CodebookWeight.from_dense(dense, gap_bits=gap_bits)
    assert torch.equal(weight.to_dense(), dense)
    assert weight.nnz == int(dense.count_nonzero())
    assert torch.equal(weight.to_csr().to_dense(), dense)
    assert weight.shape == (N, K)
    for block_rows in (1, 5, 1024):
        again = PackedCodebookWeight.pack(weight, block_rows).unpack()
        for name in ("codebook", "codes", "gaps"):
            assert torch.equal(getattr(again, name), getattr(weight, name))


def test_fillers_stand_where_eie_puts_them() -> None:
    """The column of section III of EIE: 15 zeros are the longest gap of 4 bits, a filler takes the 16th place."""
    column = torch.tensor([0, 0, 1, 2, *[0] * 18, 3.0])[:, None]
    weight = CodebookWeight.from_dense(column, gap_bits=4)
    assert weight.entry_values().tolist() == [1, 2, 0, 3]
    assert weight.unpacked_gaps().tolist() == [2, 0, 15, 2]


def test_the_number_of_fillers_is_that_of_overflowing_gaps() -> None:
    dense = shared_weight(500, 40, 0.01, 3)
    places = dense.t().flatten().nonzero().squeeze(1).tolist()
    gaps = [b - a - 1 for a, b in zip([-1, *places], places, strict=False)]
    for gap_bits in range(1, 9):
        fillers = sum(math.floor(gap / 2**gap_bits) for gap in gaps)
        assert CodebookWeight.from_dense(dense, gap_bits=gap_bits).num_entries == len(places) + fillers


def test_the_best_gap_bits_give_the_fewest_bytes() -> None:
    for density in (0.01, 0.1, 0.5, 1.0):
        dense = shared_weight(200, 50, density, 12)
        sizes = [CodebookWeight.from_dense(dense, gap_bits=g).nbytes for g in range(1, 9)]
        best = CodebookWeight.from_dense(dense)
        assert best.nbytes <= min(sizes) + 5  # a filler's zero in the codebook, and whole bytes


def test_bits_are_as_few_as_the_values_need() -> None:
    for num_values, bits in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8), (256, 8)):
        dense = torch.arange(1.0, num_values + 1).repeat(2)[:, None]
        assert CodebookWeight.from_dense(dense).bits == bits
    assert CodebookWeight.from_dense(dense[:3], bits=5).bits == 5
    with pytest.raises(FormatError, match="at most 4 different values beside zero, got 5"):
        CodebookWeight.from_dense(torch.arange(1.0, 6.0)[:, None], bits=2)


def test_16_bit_weights_and_negative_zero() -> None:
    dense = torch.tensor([[-0.0, 0.1], [0.3, 0.0]]).bfloat16()
    weight = CodebookWeight.from_dense(dense)
    assert weight.nnz == 2
    assert torch.equal(weight.to_dense(), dense.float())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.arange(1.0, 258.0)[None], "at most 256 different values beside zero, got 257.*k-means"),
        (torch.tensor([[torch.nan]]), "finite"),
        (torch.tensor([[torch.inf]]), "finite"),
        (torch.ones(3), "2 or more dimensions"),
        (torch.ones(3, 3, dtype=torch.int8), "float32"),
    ],
)
def test_weights_that_cannot_be_packed(weight: Tensor, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        CodebookWeight.from_dense(weight)


def test_gap_bits_out_of_range() -> None:
    for gap_bits in (0, 9, 2.0):
        with pytest.raises(FormatError, match="gap_bits in"):
            CodebookWeight.from_dense(torch.ones(2, 2), gap_bits=gap_bits)  # type: ignore[arg-type]


def fields(numbers: list[int], bits: int) -> Tensor:
    return pack_fields(torch.tensor(numbers, dtype=torch.uint8), bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": torch.ones(5)}, "at most 4 values"),
        ({"codebook": torch.tensor([0.0, torch.nan, 1.0])}, "finite"),
        ({"codebook": torch.ones(3).double()}, "float32"),
        ({"codes": fields([0, 1, 3], 2)}, "codes below 3"),
        ({"codes": fields([0, 1], 8)}, "codes of shape"),
        ({"codes": fields([0, 1, 2, 1], 2)}, "zeros behind the last of the codes"),
        ({"gaps": fields([3, 3, 2], 2)}, "position of 10"),
        ({"gaps": fields([0], 1)[:0]}, "gaps of shape"),
        ({"bits": 0}, "bits in"),
        ({"gap_bits": 9}, "gap_bits in"),
        ({"num_entries": -1}, "num_entries in"),
        ({"num_entries": True}, "num_entries in"),
        ({"shape": (2, -1)}, "shape"),
    ],
)
def test_damaged_weights_are_refused(change: dict[str, Any], message: str) -> None:
    valid = CodebookWeight(torch.tensor([0.0, 1.0, 2.0]), fields([0, 1, 2], 2), fields([3, 0, 1], 2), 2, 2, 3, (5, 2))
    assert valid.to_dense().t().flatten().tolist() == [0, 0, 0, 0, 1, 0, 2, 0, 0, 0]
    assert replace(valid, gaps=fields([3, 3, 1], 2)).positions().tolist() == [3, 7, 9]
    with pytest.raises(FormatError, match=message):
        replace(valid, **change)


def test_blocks_out_of_range() -> None:
    weight = CodebookWeight.from_dense(torch.ones(2, 2))
    for block_rows in (0, 1025):
        with pytest.raises(FormatError, match="block_rows in"):
            PackedCodebookWeight.pack(weight, block_rows)
