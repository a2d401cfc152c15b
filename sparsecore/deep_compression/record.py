"""A codebook weight as one run of bytes, its codes and gaps Huffman coded where that is shorter.

    16 bytes     flags (bit 0: codes are Huffman coded, bit 1: gaps are), bits, gap_bits, 0; then three uint32: values
                 in the codebook, entries, bytes of the codes
    codebook     float32
    tables       of the codes, then of the gaps, for those that are Huffman coded: 4 bits for the length of the code of
                 each symbol, of which there are as many as values in the codebook, and 2^gap_bits
    codes        a Huffman stream, or fields of `bits` bits
    gaps         the same with gap_bits; all that is left

Numbers are little-endian. The fields are those of ``CodebookWeight``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore.deep_compression import huffman
from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import num_field_bytes, pack_fields
from sparsecore.formats.codebook import MAX_BITS, CodebookWeight, Entries

_HEADER = struct.Struct("<BBBBIII")
_CODES, _GAPS = 1, 2


@dataclass(frozen=True)
class RecordBytes:
    """Where the bytes of a record are.

    Attributes:
        header: 16.
        codebook: Of the values.
        tables: Of Huffman codes.
        codes: Of the codes of entries.
        gaps: Of their gaps.
    """

    header: int
    codebook: int
    tables: int
    codes: int
    gaps: int

    @property
    def total(self) -> int:
        return self.header + self.codebook + self.tables + self.codes + self.gaps


def pack_best(entries: Entries, gap_bits: int | None, use_huffman: bool) -> CodebookWeight:
    """Choose the width of gaps, if it is not given, that makes the record smallest."""
    if gap_bits is None:
        gap_bits = min(range(1, MAX_BITS + 1), key=lambda g: _record_bits(entries, g, use_huffman))
    return entries.pack(gap_bits)


def _record_bits(entries: Entries, gap_bits: int, use_huffman: bool) -> int:
    """Bits of the record but for its header; more than any weight has where a code would be too long."""
    num_fillers, bits = entries.num_fillers(gap_bits), entries.min_bits(gap_bits)
    if bits > MAX_BITS:
        return 2**62
    num_entries = entries.which.numel() + num_fillers
    streams = []
    code_counts = entries.which.bincount(minlength=entries.values.numel())
    if num_fillers:
        code_counts = torch.cat([code_counts.new_tensor([num_fillers]), code_counts])
    gap_counts = (entries.zeros & (2**gap_bits - 1)).bincount(minlength=2**gap_bits)
    gap_counts[-1] += num_fillers
    for counts, width in ((code_counts, bits), (gap_counts, gap_bits)):
        plain = num_field_bytes(num_entries, width)
        streams.append(min(plain, huffman.coded_bytes(counts)) if use_huffman else plain)
    return 8 * sum(streams) + 32 * code_counts.numel()


def write_record(weight: CodebookWeight, use_huffman: bool = True) -> tuple[Tensor, RecordBytes]:
    """Return the bytes, uint8, and where they are.

    Args:
        weight: On the CPU.
        use_huffman: Whether streams may be Huffman coded; each is where it becomes shorter, its table included.
    """
    flags, tables, streams = 0, [], []
    for flag, fields, symbols, num_symbols in (
        (_CODES, weight.codes, weight.unpacked_codes(), weight.codebook.numel()),
        (_GAPS, weight.gaps, weight.unpacked_gaps(), 2**weight.gap_bits),
    ):
        table, stream = huffman.encode(symbols, num_symbols)
        if use_huffman and table.numel() + stream.numel() < fields.numel():
            flags |= flag
            tables.append(table)
            streams.append(stream)
        else:
            streams.append(fields)
    codebook = weight.codebook.view(torch.uint8)
    sizes = (weight.codebook.numel(), weight.num_entries, streams[0].numel())
    header = _HEADER.pack(flags, weight.bits, weight.gap_bits, 0, *sizes)
    parts = [torch.frombuffer(bytearray(header), dtype=torch.uint8), codebook, *tables, *streams]
    used = RecordBytes(
        len(header), codebook.numel(), sum(t.numel() for t in tables), streams[0].numel(), streams[1].numel()
    )
    return torch.cat(parts), used


def read_record(record: Tensor, shape: tuple[int, int]) -> CodebookWeight:
    """Return the weight of shape (N, K) that ``write_record()`` wrote; the bytes may come from anywhere.

    Args:
        record: ``[bytes]`` uint8.
        shape: ``(N, K)``.

    Raises:
        FormatError: The bytes are no such record.
    """
    if record.dtype != torch.uint8 or record.dim() != 1 or record.numel() < _HEADER.size:
        raise FormatError(f"expected a record of bytes, got {record.dtype} {list(record.shape)}")
    header = bytes(record[: _HEADER.size].tolist())
    flags, bits, gap_bits, zero, num_values, num_entries, code_bytes = _HEADER.unpack(header)
    if flags > 3 or zero or not (1 <= bits <= MAX_BITS and 1 <= gap_bits <= MAX_BITS) or num_values > 2**bits:
        raise FormatError(f"expected a record of codes and gaps, got one that begins with {header.hex()}")
    if num_entries > shape[0] * shape[1]:
        raise FormatError(f"expected at most one entry for each of {shape[0]} x {shape[1]} weights, got {num_entries}")
    reader = _Reader(record, _HEADER.size)
    codebook = reader.take(4 * num_values).clone().view(torch.float32)
    code_table = reader.take(num_field_bytes(num_values, huffman.LENGTH_BITS) if flags & _CODES else 0)
    gap_table = reader.take(num_field_bytes(2**gap_bits, huffman.LENGTH_BITS) if flags & _GAPS else 0)
    codes, gaps = reader.take(code_bytes), reader.rest()
    if flags & _CODES:
        codes = _decoded(code_table, codes, num_values, num_entries, bits)
    if flags & _GAPS:
        gaps = _decoded(gap_table, gaps, 2**gap_bits, num_entries, gap_bits)
    return CodebookWeight(codebook, codes, gaps, bits, gap_bits, num_entries, shape)


def _decoded(table: Tensor, stream: Tensor, num_symbols: int, count: int, bits: int) -> Tensor:
    """Fields from a Huffman stream."""
    return pack_fields(huffman.decode(table.contiguous(), stream.contiguous(), num_symbols, count), bits)


class _Reader:
    """Takes bytes one part after another."""

    def __init__(self, record: Tensor, start: int) -> None:
        self._record, self._at = record, start

    def take(self, size: int) -> Tensor:
        end = self._at + size
        if end > self._record.numel():
            raise FormatError(f"expected a record of at least {end} bytes, got {self._record.numel()}")
        part, self._at = self._record[self._at : end], end
        return part

    def rest(self) -> Tensor:
        return self.take(self._record.numel() - self._at)
