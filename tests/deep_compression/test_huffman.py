"""Tables and streams: exact round trips, bytes as foretold, means within a bit of the entropy."""

import pytest
import torch

from sparsecore.deep_compression import huffman
from sparsecore.errors import FormatError


@pytest.mark.parametrize("num_symbols", [1, 2, 5, 16, 256])
@pytest.mark.parametrize("count", [0, 1, 3, 20, 4000])
def test_round_trip_and_bytes(num_symbols: int, count: int) -> None:
    symbols = (torch.rand(count) ** 3 * num_symbols).to(torch.uint8)
    table, stream = huffman.encode(symbols, num_symbols)
    assert torch.equal(huffman.decode(table, stream, num_symbols, count), symbols)
    counts = symbols.long().bincount(minlength=num_symbols)
    assert table.numel() + stream.numel() == huffman.coded_bytes(counts)
    share = counts[counts > 0] / max(count, 1)
    entropy = -(share * share.log2()).sum().item()
    assert count * entropy - 1e-3 <= 8 * stream.numel() < count * (entropy + 1) + 8


def test_one_symbol_takes_no_stream() -> None:
    table, stream = huffman.encode(torch.full((1000,), 3, dtype=torch.uint8), 8)
    assert (table.numel(), stream.numel()) == (4, 0)
    assert huffman.decode(table, stream, 8, 1000).eq(3).all()


def test_damage_is_a_format_error() -> None:
    table, stream = huffman.encode(torch.arange(8, dtype=torch.uint8), 8)
    with pytest.raises(FormatError, match="shorter than its symbols"):
        huffman.decode(table, stream[:-1], 8, 8)
    with pytest.raises(FormatError, match="no complete code"):
        huffman.decode(torch.zeros_like(table) + 0x21, stream, 8, 8)
