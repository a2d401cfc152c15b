"""Small numbers packed side by side: fields of 1 to 8 bits, and rows of bits; the lowest bit of the first one first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.check import check_tensor


def num_field_bytes(count: int, bits: int) -> int:
    """Bytes that hold so many fields."""
    return (count * bits + 7) // 8


def pack_fields(numbers: Tensor, bits: int) -> Tensor:
    """Pack numbers below ``2**bits``; what is left of the last byte is zero.

    Args:
        numbers: ``[n]`` uint8.
        bits: Of a field, 1 to 8.

    Returns:
        ``[ceil(n * bits / 8)]`` uint8.

    Example:
        >>> pack_fields(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
        [33, 3]
    """
    if bits == 8:
        return numbers.clone()
    # Eight fields are `bits` whole bytes.
    groups = torch.nn.functional.pad(numbers, (0, -numbers.numel() % 8)).view(-1, 8).long()
    words = (groups << (bits * torch.arange(8, device=numbers.device))).sum(1)
    packed = (words[:, None] >> (8 * torch.arange(bits, device=numbers.device))) & 0xFF
    return packed.to(torch.uint8).flatten()[: num_field_bytes(numbers.numel(), bits)].clone()


def unpack_fields(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return ``[count]`` uint8 numbers, the inverse of ``pack_fields()``.

    Args:
        packed: uint8, at least as many bytes as that many fields take.
        bits: Of a field, 1 to 8.
        count: Fields to read.
    """
    if bits == 8:
        return packed[:count].clone()
    packed = packed[: num_field_bytes(count, bits)]
    groups = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).long()
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(1)
    numbers = (words[:, None] >> (bits * torch.arange(8, device=packed.device))) & (2**bits - 1)
    return numbers.to(torch.uint8).flatten()[:count].clone()


def pack_row_bits(bits: Tensor) -> Tensor:
    """Pack bool ``[N, K]`` to uint8 ``[N, ceil(K / 8)]``, column 0 in the lowest bit."""
    packed = np.packbits(bits.cpu().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(packed).to(bits.device)


def unpack_row_bits(packed: Tensor, cols: int) -> Tensor:
    """Return bool ``[N, cols]``, the inverse of ``pack_row_bits()``."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=cols, bitorder="little")
    return torch.from_numpy(bits).to(packed.device).bool()


def check_row_bits(name: str, packed: object, shape: tuple[int, int]) -> Tensor:
    """Return rows of bits of a matrix of that shape; those past K must be 0.

    Raises:
        FormatError: it is something else.
    """
    checked = check_tensor(name, packed, (torch.uint8,), (shape[0], -(-shape[1] // 8)))
    if shape[1] % 8 and bool((checked[:, -1] >> shape[1] % 8).any()):
        raise FormatError(f"expected no bits of {name} past column {shape[1]}; make it with from_dense()")
    return checked
