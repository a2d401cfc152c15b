"""Records: exact round trips, bytes where they are said to be, the width of gaps, damage."""

import pytest
import torch
from torch import Tensor

from sparsecore.deep_compression.record import pack_best, read_record, write_record
from sparsecore.errors import FormatError
from sparsecore.formats import CodebookWeight
from sparsecore.formats.codebook import find_entries


def shared_weight(N: int, K: int, density: float, num_values: int) -> Tensor:
    """Gaussian weights in equal steps."""
    step = 6 / num_values
    weight = (torch.randn(N, K) / step).round().clamp(-num_values // 2 + 1, num_values // 2) * step + step / 3
    return weight * (torch.rand(N, K) < density)


CASES = [(40, 30, 0.2, 15), (300, 60, 0.01, 7), (1, 9, 1.0, 1), (5, 5, 0.0, 2), (0, 3, 0.5, 2), (64, 80, 0.8, 250)]


@pytest.mark.parametrize("use_huffman", [False, True])
@pytest.mark.parametrize("gap_bits", [None, 1, 4, 8])
@pytest.mark.parametrize(("N", "K", "density", "num_values"), CASES)
def test_round_trip(N: int, K: int, density: float, num_values: int, gap_bits: int | None, use_huffman: bool) -> None:
    dense = shared_weight(N, K, density, num_values)
    weight = pack_best(find_entries(dense), gap_bits, use_huffman)
    record, used = write_record(weight, use_huffman)
    assert used.total == record.numel()
    assert used.total <= used.header + weight.nbytes
    again = read_record(record, (N, K))
    assert torch.equal(again.to_dense(), dense)
    assert (again.bits, again.gap_bits) == (weight.bits, weight.gap_bits)
    for name in ("codebook", "codes", "gaps"):
        assert torch.equal(getattr(again, name), getattr(weight, name))


@pytest.mark.parametrize("use_huffman", [False, True])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.95])
def test_the_best_gap_bits_make_the_smallest_record(density: float, use_huffman: bool) -> None:
    entries = find_entries(shared_weight(120, 40, density, 15))
    sizes = [write_record(entries.pack(g), use_huffman)[0].numel() for g in range(1, 9)]
    best = pack_best(entries, None, use_huffman)
    assert write_record(best, use_huffman)[0].numel() == min(sizes)


def test_huffman_coding_is_used_where_it_is_shorter() -> None:
    small = CodebookWeight.from_dense(torch.tensor([[1.0, 2.0, 3.0]]))
    assert write_record(small)[1].tables == 0  # a table would be longer
    large, used = write_record(CodebookWeight.from_dense(shared_weight(300, 300, 0.1, 31), gap_bits=6))
    assert used.tables == (31 + 1) // 2 + 64 // 2
    assert large[0] == 3


def test_damaged_records_are_refused_or_another_weight() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = shared_weight(60, 40, 0.1, 15)
    record, _ = write_record(CodebookWeight.from_dense(dense, gap_bits=4))
    refused = 0
    for _ in range(400):
        damaged = record.clone()
        place = int(torch.randint(0, record.numel(), (), generator=generator))
        damaged[place] = int(torch.randint(0, 256, (), generator=generator))
        try:
            weight = read_record(damaged, (60, 40))
        except FormatError:
            refused += 1
            continue
        again = read_record(write_record(weight)[0], (60, 40))
        assert torch.equal(again.to_dense(), weight.to_dense())
    assert 0 < refused < 400
    for size in range(record.numel()):
        with pytest.raises(FormatError):
            read_record(record[:size], (60, 40))


def test_what_is_no_record_is_refused() -> None:
    record, _ = write_record(CodebookWeight.from_dense(torch.ones(3, 3)))
    with pytest.raises(FormatError, match="record of bytes"):
        read_record(record.int(), (3, 3))
    with pytest.raises(FormatError, match="record of bytes"):
        read_record(record[None], (3, 3))
    with pytest.raises(FormatError, match="one entry for each of 2 x 2 weights, got 9"):
        read_record(record, (2, 2))
    with pytest.raises(FormatError):
        read_record(torch.cat([record, record[:1]]), (3, 3))
    for place, value in ((0, 4), (1, 0), (1, 9), (2, 0), (3, 1), (4, 3), (5, 1)):  # the last two: too many values
        wrong = record.clone()
        wrong[place] = value
        with pytest.raises(FormatError, match="record of codes and gaps"):
            read_record(wrong, (3, 3))
