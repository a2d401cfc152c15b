"""CodebookWeight: a sparse weight whose values are few, as codes of a codebook with relative positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import num_field_bytes, pack_fields, unpack_fields
from sparsecore.formats.check import (
    FLOAT_DTYPES,
    MAX_INT32,
    as_matrix,
    check_finite,
    check_same_device,
    check_shape,
    check_tensor,
)
from sparsecore.formats.csr import CsrWeight

MAX_BITS = 8
MAX_VALUES = 2**MAX_BITS


@dataclass(frozen=True, eq=False)
class CodebookWeight:
    """A weight ``[N, K]`` with at most 256 different values, column by column; validated when built.

        [ 5 . ]   entries in order of position k * N + n: 5 at 0, 4 at 4
        [ . 4 ]   gaps: zeros before each entry; 0 and 3, of which a field of 1 bit holds at most 1,
        [ . . ]   so that a filler stands at position 2: gaps 0 1 1, codes 2 0 1, codebook 0 4 5

    Position ``k * N + n`` is entry (n, k). Entry i lies ``gaps[i]`` positions behind the one after entry i - 1. Where
    more zeros than ``2**gap_bits - 1`` come before an entry, there are fillers: entries with that largest gap whose
    value in the codebook is zero, which contribute nothing. The order by columns lets an operation skip those whose
    activation is zero.

    Args:
        codebook: ``[n]`` float32, the values; finite, at most ``2**bits``.
        codes: uint8, ``num_entries`` fields of ``bits`` bits (``bit_fields.py``).
        gaps: uint8, ``num_entries`` fields of ``gap_bits`` bits.
        bits: Of a code, 1 to 8.
        gap_bits: Of a gap, 1 to 8.
        num_entries: Entries, fillers included.
        shape: ``(N, K)``.

    Raises:
        FormatError: A tensor has the wrong type, size or content.

    Reference:
        Han, Mao and Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
        Huffman Coding, ICLR 2016, section 2 and figure 2; columns as in Han et al., EIE, ISCA 2016, section III.

    Example:
        >>> weight = CodebookWeight.from_dense(torch.tensor([[5.0, 0], [0, 4], [0, 0]]), gap_bits=1)
        >>> weight.num_entries, weight.codebook.tolist()
        (3, [0.0, 4.0, 5.0])
    """

    codebook: Tensor
    codes: Tensor
    gaps: Tensor
    bits: int
    gap_bits: int
    num_entries: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, cols = check_shape(self.shape)
        for name, value, least, most in (
            ("bits", self.bits, 1, MAX_BITS),
            ("gap_bits", self.gap_bits, 1, MAX_BITS),
            ("num_entries", self.num_entries, 0, MAX_INT32),
        ):
            if type(value) is not int or not least <= value <= most:
                raise FormatError(f"expected {name} in [{least}, {most}], got {value!r}")
        codebook = check_finite(check_tensor("codebook", self.codebook, (torch.float32,), (None,)))
        if codebook.numel() > 2**self.bits:
            raise FormatError(f"expected at most {2**self.bits} values for {self.bits} bits, got {codebook.numel()}")
        tensors = {"codebook": codebook}
        for name, fields, bits in (("codes", self.codes, self.bits), ("gaps", self.gaps, self.gap_bits)):
            tensors[name] = check_tensor(name, fields, (torch.uint8,), (num_field_bytes(self.num_entries, bits),))
        check_same_device(tensors)
        for name, checked in (*tensors.items(), ("shape", (rows, cols))):
            object.__setattr__(self, name, checked)
        self._check_entries()

    def _check_entries(self) -> None:
        for name, fields, bits in (("codes", self.codes, self.bits), ("gaps", self.gaps, self.gap_bits)):
            unused = 8 * fields.numel() - self.num_entries * bits
            if unused and int(fields[-1]) >> (8 - unused):
                raise FormatError(f"expected zeros behind the last of the {name}; read the weight again")
        if self.num_entries == 0:
            return
        highest = int(self.unpacked_codes().max())
        if highest >= self.codebook.numel():
            raise FormatError(f"expected codes below {self.codebook.numel()}, the size of the codebook, got {highest}")
        reached = int(self.unpacked_gaps().sum(dtype=torch.int64)) + self.num_entries
        if reached > self.shape[0] * self.shape[1]:
            raise FormatError(f"expected gaps that stay inside {self.shape}, got a position of {reached - 1}")

    def __repr__(self) -> str:
        N, K = self.shape
        return f"CodebookWeight({N}x{K}, entries={self.num_entries}, bits={self.bits}, gap_bits={self.gap_bits})"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return self.codebook.nbytes + self.codes.nbytes + self.gaps.nbytes

    @property
    def device(self) -> torch.device:
        return self.codebook.device

    @property
    def nnz(self) -> int:
        """Entries that are not zero: all but the fillers."""
        return int((self.entry_values() != 0).sum())

    def unpacked_codes(self) -> Tensor:
        """Return the codes, uint8 ``[num_entries]``."""
        return unpack_fields(self.codes, self.bits, self.num_entries)

    def unpacked_gaps(self) -> Tensor:
        """Return the gaps, uint8 ``[num_entries]``."""
        return unpack_fields(self.gaps, self.gap_bits, self.num_entries)

    def entry_values(self) -> Tensor:
        """Return the value of every entry, float32; zero for fillers."""
        return self.codebook[self.unpacked_codes().long()]

    def positions(self) -> Tensor:
        """Return the position ``k * N + n`` of every entry, int64, rising."""
        return (self.unpacked_gaps().long() + 1).cumsum(0) - 1

    @classmethod
    def from_dense(cls, weight: Tensor, *, bits: int | None = None, gap_bits: int | None = None) -> CodebookWeight:
        """Pack a dense weight that has few different values; -0.0 counts as zero.

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16 or bfloat16, finite.
            bits: Of a code; None takes as few as the values need. Fillers need one value, zero.
            gap_bits: Of a gap; None takes what gives the fewest bytes.

        Returns:
            The packed weight on the weight's device; ``to_dense()`` gives the matrix back exactly, as float32.

        Raises:
            FormatError: More different values than ``2**bits``, or than 256; not finite; wrong type or shape.
        """
        entries = find_entries(weight)
        if gap_bits is None:
            gap_bits = min(range(1, MAX_BITS + 1), key=lambda g: _num_bits(entries, g, bits))
        return entries.pack(gap_bits, bits)

    def to_dense(self) -> Tensor:
        """Return the matrix ``[N, K]``, float32."""
        N, K = self.shape
        columns = torch.zeros(N * K, device=self.device)
        columns[self.positions()] = self.entry_values()
        return columns.view(K, N).t().contiguous()

    def to_csr(self) -> CsrWeight:
        """Return the entries that are not zero as float32 CSR."""
        return CsrWeight.from_dense(self.to_dense())


@dataclass(frozen=True)
class Entries:
    """The values that are not zero, before fields and fillers are chosen.

    Attributes:
        values: ``[v]`` float32, the different values, rising; no zero.
        which: ``[nnz]`` int64, index in ``values`` of each entry, by columns.
        zeros: ``[nnz]`` int64, zeros before each entry.
        shape: ``(N, K)``.
    """

    values: Tensor
    which: Tensor
    zeros: Tensor
    shape: tuple[int, int]

    def num_fillers(self, gap_bits: int) -> int:
        """Count the fillers that gaps of so many bits need."""
        return int((self.zeros >> gap_bits).sum())

    def min_bits(self, gap_bits: int) -> int:
        """Return the bits of a code: values and, if there are fillers, zero."""
        num_values = self.values.numel() + (self.num_fillers(gap_bits) > 0)
        return max(num_values - 1, 1).bit_length()

    def pack(self, gap_bits: int, bits: int | None = None) -> CodebookWeight:
        """Write the fields; a filler takes ``2**gap_bits`` positions, the last of which is its own."""
        if type(gap_bits) is not int or not 1 <= gap_bits <= MAX_BITS:
            raise FormatError(f"expected gap_bits in [1, {MAX_BITS}], got {gap_bits!r}")
        needed = self.min_bits(gap_bits)
        bits = needed if bits is None else bits
        if bits < needed or needed > MAX_BITS:
            raise FormatError(_too_many(self.values.numel(), min(bits, MAX_BITS), needed))
        fillers = self.zeros >> gap_bits
        num_fillers = int(fillers.sum())
        place = torch.arange(fillers.numel(), device=fillers.device) + fillers.cumsum(0)
        num_entries = fillers.numel() + num_fillers
        if num_entries > MAX_INT32:
            raise FormatError(f"expected fewer than 2^31 entries, got {num_entries}; take more gap_bits")
        codes = torch.zeros(num_entries, dtype=torch.uint8, device=fillers.device)
        gaps = torch.full_like(codes, 2**gap_bits - 1)
        has_fillers = num_fillers > 0
        codes[place] = (self.which + has_fillers).to(torch.uint8)
        gaps[place] = (self.zeros & (2**gap_bits - 1)).to(torch.uint8)
        codebook = torch.cat([self.values.new_zeros(int(has_fillers)), self.values])
        packed = pack_fields(codes, bits), pack_fields(gaps, gap_bits)
        return CodebookWeight(codebook, *packed, bits, gap_bits, num_entries, self.shape)


def find_entries(weight: Tensor) -> Entries:
    """Find the different values of a dense weight and where they are.

    Raises:
        FormatError: More than 256 of them, not finite, or not a weight.
    """
    matrix = check_finite(as_matrix(weight, FLOAT_DTYPES))
    N, K = matrix.shape
    flat = matrix.t().flatten().float()
    position = flat.nonzero().squeeze(1)
    values, which = flat[position].unique(return_inverse=True)
    if values.numel() > MAX_VALUES:
        raise FormatError(_too_many(values.numel(), MAX_BITS, MAX_BITS + 1))
    zeros = position.diff(prepend=position.new_tensor([-1])) - 1
    return Entries(values, which, zeros, (N, K))


def _too_many(num_values: int, bits: int, needed: int) -> str:
    for_fillers = num_values <= 2**bits and needed > bits
    return (
        f"expected at most {2**bits - for_fillers} different values beside zero"
        f"{', which fillers take' if for_fillers else ''}, got {num_values}; "
        "let layers share their weights by k-means first"
    )


def _num_bits(entries: Entries, gap_bits: int, bits: int | None) -> int:
    """Bits of codes and gaps."""
    needed = entries.min_bits(gap_bits)
    width = needed if bits is None or needed > bits else bits
    # A width that does not fit is the last choice.
    penalty = 2**62 if needed > (bits or MAX_BITS) else 0
    return penalty + (entries.zeros.numel() + entries.num_fillers(gap_bits)) * (width + gap_bits)
