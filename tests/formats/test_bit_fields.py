"""Fields of 1 to 8 bits: exact round trips against Python's integers."""

import pytest
import torch

from sparsecore.formats.bit_fields import num_field_bytes, pack_fields, unpack_fields


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 1000])
def test_round_trip(bits: int, count: int) -> None:
    numbers = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack_fields(numbers, bits)
    as_integer = sum(number << (i * bits) for i, number in enumerate(numbers.tolist()))
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == as_integer.to_bytes(num_field_bytes(count, bits), "little")
    assert torch.equal(unpack_fields(packed, bits, count), numbers)
