"""Huffman coding of one stream of symbols, and what it costs; csrc's huffman.h has the code itself."""

from __future__ import annotations

from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import num_field_bytes, pack_fields, unpack_fields

LENGTH_BITS = 4  # lengths are at most 15


def coded_bytes(counts: Tensor) -> int:
    """Bytes of the table and the stream of symbols that occur so often.

    Args:
        counts: ``[n]`` int64, of each symbol; n at most 256.
    """
    lengths = raw.huffman_lengths(counts)
    used = int((lengths > 0).sum())
    stream_bits = int((counts * lengths).sum()) if used > 1 else 0
    return num_field_bytes(counts.numel(), LENGTH_BITS) + (stream_bits + 7) // 8


def encode(symbols: Tensor, num_symbols: int) -> tuple[Tensor, Tensor]:
    """Return the table and the stream of uint8 symbols below num_symbols, as bytes.

    Example:
        >>> import torch
        >>> table, stream = encode(torch.tensor([1, 0, 3, 1], dtype=torch.uint8), 4)
        >>> table.tolist(), stream.tolist()  # lengths 2 1 0 2; codes 0 10 11 0
        ([18, 32], [26])
    """
    lengths = raw.huffman_lengths(symbols.long().bincount(minlength=num_symbols))
    return pack_fields(lengths, LENGTH_BITS), raw.huffman_encode(symbols, lengths)


def decode(table: Tensor, stream: Tensor, num_symbols: int, count: int) -> Tensor:
    """Return the symbols, uint8 ``[count]``; the inverse of ``encode()``.

    Raises:
        FormatError: The table is no code, or the stream not one of so many symbols.
    """
    lengths = unpack_fields(table, LENGTH_BITS, num_symbols)
    try:
        symbols: Tensor = raw.huffman_decode(stream, lengths, count)
    except RuntimeError as error:
        raise FormatError(str(error).removeprefix("sparsecore: ")) from None
    return symbols
