"""FragmentWeight: exact round trips on any number of threads, 4-bit rounding, size in memory, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from csr_weights import assert_equal, random_csr, special_csr
from torch import Tensor
from torch.library import opcheck

from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight, FragmentWeight, fragment
from sparsecore.formats.fragment import TILE

DTYPES = (torch.float16, torch.bfloat16, torch.int8)
SHAPES = [(0, 0), (0, 7), (5, 0), (1, 1), (3, 300), (300, 3), (64, 64), (65, 129), (130, 700)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_csr(*shape, 0.6, dtype)
    packed = FragmentWeight.pack(weight)
    assert packed.shape == shape
    assert packed.dtype == dtype
    assert_equal(packed.unpack(), weight)


def test_threads_change_nothing() -> None:
    weight = random_csr(700, 900, 0.5, torch.float16)

    def run() -> list[Tensor]:
        packed = FragmentWeight.pack(weight)
        assert_equal(packed.unpack(), weight)
        return list(packed.tensors)

    assert_same_on_any_number_of_threads(run)


def test_special_values_and_stored_zeros_survive() -> None:
    weight = special_csr(torch.float16)
    assert_equal(FragmentWeight.pack(weight).unpack(), weight)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 16), (torch.int8, 8)])
def test_bytes(dtype: torch.dtype, bits: int) -> None:
    weight = random_csr(128, 128, 0.5, dtype)
    packed = FragmentWeight.pack(weight)
    padding = packed.blob.numel() - (128 * 128 / 8 + weight.nnz * bits / 8)
    assert 0 <= padding < 4 * 16
    assert packed.max_tile_bytes == int(packed.tile_ptr.diff().max()) * 16


def test_int4_rounds_to_the_nearest_of_its_group() -> None:
    weight = random_csr(70, 200, 0.5, torch.float16).to(torch.float32)
    unpacked = FragmentWeight.pack_int4(weight).unpack()
    assert torch.equal(unpacked.row_ptr, weight.row_ptr)
    assert torch.equal(unpacked.col_idx, weight.col_idx)
    dense, got = weight.to_dense(), unpacked.to_dense()
    for begin in range(0, 200, TILE):
        group, rounded = dense[:, begin : begin + TILE], got[:, begin : begin + TILE]
        largest = group.abs().amax(1, keepdim=True)
        scale = rounded.abs().amax(1, keepdim=True) / 7
        assert torch.equal(scale.half().float(), scale)
        assert bool((scale * 7 <= largest).all())
        assert bool((scale * 7 >= largest * (1 - 2**-10)).all()), "the next float16 above is too large"
        assert bool((rounded == (group / scale.clamp_min(1e-30)).round().clamp(-7, 7) * scale).all())


@pytest.mark.parametrize("magnitude", [1e-8, 1e-6, 1e-3, 1.0, 4e5])
def test_int4_rounded_again_stays_what_it_is(magnitude: float) -> None:
    """Scales down to the smallest that float16 has, which are rounded coarsely."""
    weight = random_csr(70, 200, 0.5, torch.float16).to(torch.float32)
    values = weight.values * torch.rand(len(weight.values)) * magnitude / weight.values.abs().max()
    packed = FragmentWeight.pack_int4(replace(weight, values=values))
    again = FragmentWeight.pack_int4(packed.unpack())
    for name, tensor in zip(fragment.TENSOR_NAMES, packed.tensors, strict=True):
        assert torch.equal(getattr(again, name), tensor), name


def test_refusals() -> None:
    weight = random_csr(5, 5, 0.5, torch.float16)
    with pytest.raises(FormatError, match="float16, bfloat16 or int8 values"):
        FragmentWeight.pack(weight.to(torch.float32))
    with pytest.raises(FormatError, match="expected float values to round"):
        FragmentWeight.pack_int4(random_csr(5, 5, 0.5, torch.int8))
    with pytest.raises(FormatError, match="expected finite values"):
        FragmentWeight.pack_int4(CsrWeight.from_dense(torch.full((2, 2), float("nan"))))
    with pytest.raises(RuntimeError, match="1 to 65536 blocks"):
        FragmentWeight.pack(weight, num_blocks=0)
    arrays = (weight.row_ptr, weight.col_idx, weight.values)
    with pytest.raises(RuntimeError, match="int8 values of 8 or 4"):
        raw.pack_fragment(*arrays, 5, 8, None, 1)
    with pytest.raises(RuntimeError, match="invalid CSR"):
        raw.pack_fragment(weight.row_ptr, weight.col_idx + 100, weight.values, 5, 16, None, 1)
    scales, nines = torch.ones(5, 1, dtype=torch.float16), torch.full_like(weight.values, 9).to(torch.int8)
    with pytest.raises(RuntimeError, match=r"in \[-8, 7\]"):
        raw.pack_fragment(*arrays[:2], nines, 5, 4, scales, 1)


def test_tampered_weights_are_refused() -> None:
    packed = FragmentWeight.pack(random_csr(100, 100, 0.5, torch.float16))

    def changed(tensor: Tensor, at: int, value: int) -> Tensor:
        result = tensor.clone()
        result[at] = value
        return result

    bad = {
        "tile_ptr": [changed(packed.tile_ptr, 0, 1), changed(packed.tile_ptr, 2, 1 << 30), packed.tile_ptr[:-1]],
        "blob": [changed(packed.blob, 0, int(packed.blob[0]) ^ 255), packed.blob[:-16], packed.blob[:-1]],
    }
    for name, tensors in bad.items():
        for tensor in tensors:
            with pytest.raises(RuntimeError, match="fragment weight"):
                replace(packed, **{name: tensor}).unpack()
    with pytest.raises(RuntimeError, match="16, 8 or 4 bits"):
        replace(packed, value_bits=5).unpack()


@pytest.mark.parametrize(("N", "K"), [(2**12, 2**31 - 1), (4, 2**31), (4, -1)])
def test_sizes_that_tiles_cannot_count(N: int, K: int) -> None:
    row_ptr, none = torch.zeros(N + 1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    with pytest.raises(
        RuntimeError, match=r"expected (K < 2\^31 and at most 2\^30 tiles|row_ptr \[N \+ 1\] and K >= 0)"
    ):
        raw.pack_fragment(row_ptr, none, none.half(), K, 16, None, 1)
    packed = FragmentWeight.pack(CsrWeight.from_dense(torch.zeros(4, 4).half()))
    for sizes in ([N, K], [K, N], [2**62, 2**62]):
        with pytest.raises(RuntimeError, match=r"at most 2\^30 tiles"):
            raw.unpack_fragment(list(packed.tensors), [*sizes, *packed.sizes[2:]])


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_more_than_2_31_positions(bits: int) -> None:
    """Entries in the first and the last column of the first and the last row; their bits are 270 MB."""
    size = 46_400
    assert size * size > 2**31
    row_ptr = torch.full((size + 1,), 2, dtype=torch.int32)
    row_ptr[0], row_ptr[-1] = 0, 4
    columns = torch.tensor([0, size - 1, 0, size - 1], dtype=torch.int32)
    values = torch.tensor([7.0, 14.0, 21.0, 28.0])
    if bits == 8:
        weight = CsrWeight(row_ptr, columns, values.to(torch.int8), (size, size), torch.ones(size))
    else:
        weight = CsrWeight(row_ptr, columns, values.half() if bits == 16 else values, (size, size))
    packed = FragmentWeight.pack_int4(weight) if bits == 4 else FragmentWeight.pack(weight)
    assert_equal(packed.unpack(), weight)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_opcheck(bits: int) -> None:
    csr = random_csr(70, 200, 0.5, torch.float16 if bits == 16 else torch.int8)
    values, scales = (csr.values.clamp(-8, 7), torch.ones(70, 4).half()) if bits == 4 else (csr.values, None)
    opcheck(raw.pack_fragment.default, (csr.row_ptr, csr.col_idx, values, 200, bits, scales, 3))
    packed = FragmentWeight.pack_int4(csr.to(torch.float32)) if bits == 4 else FragmentWeight.pack(csr)
    opcheck(raw.unpack_fragment.default, (list(packed.tensors), packed.sizes))
