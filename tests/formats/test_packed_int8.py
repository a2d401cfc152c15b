"""PackedInt8Weight: exact round trips in every packing, sizes in memory, wrong arguments."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecore import _C, Int8Weight, ops
from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight, PackedInt8Weight
from sparsecore.formats.packed_int8 import READ_BEYOND, Shape
from sparsecore.formats.row_order import WINDOW

FORMATS = ("int8", "bitmap", "lookup")
PACKINGS = [(lanes, table, is_safe) for lanes in (4, 8, 16) for table in (16, 64, 256) for is_safe in (False, True)]

# taps, segments, groups
FILTERS = [(1, 1, 1), (9, 3, 1), (9, 9, 1), (9, 9, 2), (6, 2, 1), (1, 1, 4), (5, 1, 1)]

each_format = pytest.mark.parametrize("format", FORMATS)
each_packing = pytest.mark.parametrize("packing", PACKINGS, ids=str)


def random_weight(N: int, K: int, density: float = 0.4, lowest: int = -128, highest: int = 127) -> Int8Weight:
    q = torch.randint(lowest, highest + 1, (N, K)) * (torch.rand(N, K) < density)
    return Int8Weight(q.to(torch.int8), torch.rand(N) + 0.1)


def assert_round_trip(weight: Int8Weight, format: str, **settings: Any) -> PackedInt8Weight:
    packed = PackedInt8Weight.pack(weight, format, **settings)
    back = packed.unpack()
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.scale, weight.scale)
    assert torch.equal(packed.weight_sum, weight.q.long().sum(1).int())
    return packed


@each_packing
@each_format
def test_round_trip(format: str, packing: tuple[int, int, bool]) -> None:
    for taps, segments, groups in FILTERS:
        for rows, channels in ((1, 1), (3, 5), (16, 4), (17, 33), (40, 70)):
            weight = random_weight(rows * groups, channels * taps)
            settings = {"taps": taps, "segments": segments, "groups": groups, "packing": packing}
            assert_round_trip(weight, format, **settings)


@pytest.mark.parametrize(("lowest", "highest"), [(1, 127), (127, 127), (-128, -128), (-128, -100), (60, 70)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
@each_format
def test_round_trip_of_extremes(format: str, density: float, lowest: int, highest: int) -> None:
    for packing in ((16, 64, False), (8, 16, True), (4, 128, True)):
        assert_round_trip(random_weight(20, 150, density, lowest, highest), format, packing=packing)


@pytest.mark.parametrize(("N", "K"), [(0, 0), (0, 9), (3, 0)])
@each_format
def test_round_trip_of_nothing(format: str, N: int, K: int) -> None:
    assert_round_trip(random_weight(N, K), format)
    assert_round_trip(random_weight(N, K), format, taps=9, segments=3)


@each_format
def test_the_packing_of_this_machine_is_the_default(format: str) -> None:
    weight = random_weight(20, 70)
    default, same = (PackedInt8Weight.pack(weight, format, packing=p) for p in (None, _C.int8_packing()))
    assert default.shape == same.shape
    assert (default.shape.lanes, default.shape.table) == _C.int8_packing()[:2]
    assert all(map(torch.equal, default.tensors, same.tensors))


@each_packing
def test_products_are_exact_in_every_packing(packing: tuple[int, int, bool]) -> None:
    """Whichever kernel is chosen for it; large values of one sign, which 16 bits cannot add."""
    x = torch.full((3, 70), 127, dtype=torch.int8)
    for value in (127, -128):
        weight = Int8Weight(torch.full((5, 70), value, dtype=torch.int8), torch.ones(5))
        for format in FORMATS:
            packed = PackedInt8Weight.pack(weight, format, packing=packing)
            y = ops.linear_int8(x, packed, x_scale=1.0, x_zero_point=-128)
            assert (y == 255.0 * 70 * value).all(), format


# --- bytes ---


def blocks_of(shape: Shape) -> int:
    return shape.groups * math.ceil(shape.N / shape.groups / shape.lanes)


def by_block_and_segment(q: Tensor, shape: Shape) -> Tensor:
    """``[blocks, lanes, segments, columns]`` of q in the order of taps, filled up with zeros."""
    rows = shape.N // shape.groups
    q = q.view(shape.N, -1, shape.taps).transpose(1, 2).reshape(shape.groups, rows, shape.segments, -1)
    padded = torch.nn.functional.pad(q, (0, 0, 0, 0, 0, -rows % shape.lanes))
    return padded.view(-1, shape.lanes, shape.segments, padded.shape[-1])


@each_packing
@pytest.mark.parametrize(("taps", "segments", "groups"), FILTERS)
def test_nbytes(taps: int, segments: int, groups: int, packing: tuple[int, int, bool]) -> None:
    lanes, table, _ = packing
    weight = random_weight(20 * groups, 70 * taps, density=0.3, lowest=-60, highest=60)
    settings = {"taps": taps, "segments": segments, "groups": groups, "packing": packing}
    dense, bitmap, lookup = (PackedInt8Weight.pack(weight, format, **settings) for format in FORMATS)
    shape = dense.shape
    rows = weight.scale.nbytes + 4 * shape.N
    blocks = blocks_of(shape)

    padded = blocks * lanes * segments * 4 * math.ceil(shape.K / segments / 4)
    assert dense.nbytes == padded + rows
    nnz = int(weight.q.count_nonzero())
    assert bitmap.nbytes == padded // 8 + 4 * (blocks + 1) + nnz + READ_BEYOND + rows

    # A step holds four entries of each row of a block.
    row_place = lookup.tensors[5]
    stored = weight.q.clone()
    for row, place in enumerate(row_place.tolist()):
        stored[row - row % 20 + place] = weight.q[row]  # a group of 20 rows is one window
    parts = by_block_and_segment(stored, shape).split(table, dim=-1)
    steps = sum(int((part.count_nonzero(-1).amax(1) + 3).div(4, rounding_mode="floor").sum()) for part in parts)
    entries = lookup.tensors[2].numel()
    assert lookup.tensors[4].numel() == steps * 8 * lanes
    assert lookup.nbytes == 2 * 4 * (blocks + 1) + 3 * entries + steps * 8 * lanes + len(row_place) + rows


def test_sparse_formats_are_the_smaller_ones() -> None:
    weight = random_weight(256, 1024, density=0.1)
    dense, bitmap, lookup = (PackedInt8Weight.pack(weight, format).nbytes for format in FORMATS)
    assert 0.20 < bitmap / dense < 0.26, "an eighth, and a tenth of the values"
    assert bitmap < lookup < dense


# --- what a packed weight is ---


def test_shape_and_fields() -> None:
    weight = random_weight(12, 45)
    packed = PackedInt8Weight.pack(weight, "bitmap", taps=9, segments=3, packing=(8, 16, False))
    assert packed.shape == Shape(12, 45, 9, 3, 8, 16, 1)
    assert packed.shape.sizes == [12, 45, 3, 8, 16, 1, 0]
    assert packed.scale is weight.scale
    assert [tensor.dtype for tensor in packed.tensors] == [torch.uint8, torch.int32, torch.int8]
    with pytest.raises(dataclasses.FrozenInstanceError):
        packed.format = "int8"


def test_taps_are_outside_of_channels() -> None:
    """Pixels lie side by side in memory, each with its channels; torch flattens filters the other way round."""
    weight = Int8Weight(torch.tensor([[1, 2, 3, 4, 5, 6]], dtype=torch.int8), torch.ones(1))  # 2 channels of 3 taps
    packed = PackedInt8Weight.pack(weight, taps=3, segments=1, packing=(4, 16, False))
    quads = packed.tensors[0].view(2, 4, 4)[:, 0].flatten()
    assert quads.tolist() == [1, 4, 2, 5, 3, 6, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "csr"}, "expected a format of int8, bitmap, lookup, rows, fragment, delta, got 'csr'"),
        ({"taps": 4}, "expected K of whole channels"),
        ({"taps": 9, "segments": 2}, "expected K of whole channels"),
        ({"taps": 3, "segments": 9}, "expected K of whole channels"),
        ({"groups": 5}, "N of whole groups"),
        ({"groups": 24}, "N of whole groups"),
        ({"taps": 0}, "expected"),
        ({"taps": -1}, "expected"),
        ({"taps": 9, "segments": 0}, "expected"),
        ({"groups": 0}, "expected"),
        ({"groups": -2}, "expected"),
    ],
    ids=str,
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        PackedInt8Weight.pack(random_weight(12, 45), **settings)


def test_csr_becomes_int8_first() -> None:
    csr = CsrWeight.from_dense(torch.randn(6, 10)).quantize()
    packed = PackedInt8Weight.pack(Int8Weight.from_csr(csr), "lookup")
    assert torch.equal(packed.unpack().to_csr().values, csr.values)


def uneven_weight(N: int, K: int) -> Int8Weight:
    """Rows of very different numbers of non-zeros."""
    weight = random_weight(N, K, 1.0, 1, 127)
    kept = torch.rand(N, K) < torch.rand(N, 1) ** 3
    return Int8Weight(weight.q * kept, weight.scale)


@each_packing
@pytest.mark.parametrize("groups", [1, 2])
def test_uneven_rows_are_stored_in_another_order(packing: tuple[int, int, bool], groups: int) -> None:
    for N in (128, 150, 300):
        weight = uneven_weight(N, 256)
        packed = assert_round_trip(weight, "lookup", groups=groups, packing=packing)
        row_place = packed.tensors[5]
        assert len(row_place) == N
        for group in row_place.chunk(groups):
            for window in group.split(WINDOW):
                assert window.sort().values.tolist() == list(range(len(window)))


def test_an_order_takes_the_steps_of_rows_alike() -> None:
    """Two kinds of rows in turn: in order, every block would take the steps of the full ones."""
    q = torch.ones(256, 640, dtype=torch.int8)
    q[::2, 64:] = 0
    for lanes in (4, 8, 16):
        packed = PackedInt8Weight.pack(Int8Weight(q, torch.ones(256)), "lookup", packing=(lanes, 64, False))
        steps = packed.tensors[1].diff()
        assert sorted(steps.unique().tolist()) == [16, 160]
        assert (steps == 16).sum() == (steps == 160).sum()


def test_even_rows_stay_in_order() -> None:
    packed = PackedInt8Weight.pack(random_weight(256, 512, 0.2), "lookup", packing=(16, 64, False))
    assert len(packed.tensors[5]) == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_of_uneven_rows_are_exact(threads: int) -> None:
    """Threads may share a window."""
    torch.set_num_threads(threads)
    for rows, few in ((1, True), (3, False), (70, False)):
        weight = uneven_weight(300, 700)
        packed = PackedInt8Weight.pack(Int8Weight(weight.q, torch.ones(300)), "lookup", few_rows=few)
        x = torch.randint(-20, 21, (rows, 700), dtype=torch.int8)
        y = ops.linear_int8(x, packed, x_scale=1.0)
        assert torch.equal(y.long(), x.long() @ weight.q.long().T)


def test_a_damaged_order_is_refused() -> None:
    packed = PackedInt8Weight.pack(uneven_weight(300, 256), "lookup")
    *others, row_place = packed.tensors
    for damaged, text in ((row_place.clone().fill_(255), "window"), (row_place[:-1], "300")):
        broken = dataclasses.replace(packed, tensors=(*others, damaged))
        with pytest.raises(RuntimeError, match=text):
            ops.linear_int8(torch.zeros(2, 256, dtype=torch.int8), broken, x_scale=1.0)
