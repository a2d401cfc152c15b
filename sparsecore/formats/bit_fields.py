"""Small numbers packed side by side: fields of 1 to 8 bits, the lowest bit of the first one first."""

from __future__ import annotations

import torch
from torch import Tensor


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
