"""Int4Weight and PackedInt4Weight: exact round trips in every packing, errors of rounding, and nothing invalid."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int4_oracle import PACKINGS, random_int4

from sparsecore import _C
from sparsecore.errors import FormatError
from sparsecore.formats import Int4Weight, PackedInt4Weight
from sparsecore.formats.row_order import WINDOW

SMALLEST = torch.finfo(torch.float32).smallest_normal
each_packing = pytest.mark.parametrize("packing", PACKINGS, ids=str)


# --- Int4Weight ---


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("N", "K"), [(0, 0), (0, 9), (3, 0), (1, 1), (3, 5), (17, 33), (5, 300)])
def test_integers_round_trip(N: int, K: int, density: float) -> None:
    q = torch.randint(-8, 8, (N, K)).to(torch.int8) * (torch.rand(N, K) < density)
    scale = torch.rand(N, -(-K // 16)) + 0.1
    weight = Int4Weight.from_integers(q, scale, 16)
    assert torch.equal(weight.integers(), q)
    columns = torch.arange(K) // 16
    assert torch.equal(weight.to_dense(), q.float() * scale[:, columns])
    assert weight.nbytes == N * -(-K // 8) + -(-int(q.count_nonzero()) // 2) + 4 * scale.numel()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(0, 70),
    st.sampled_from([16, 48, 2048]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(-40, 30),
    st.integers(0, 2**16),
)
def test_minmax_error_is_at_most_half_a_scale(
    rows: int, cols: int, group_size: int, dtype: torch.dtype, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, cols, generator=generator) * 2.0**exponent
    dense *= torch.rand(rows, cols, generator=generator) < 0.5
    dense = dense.to(dtype)
    if not torch.isfinite(dense).all():  # float16 overflows
        return
    weight = Int4Weight.from_dense(dense, group_size, "minmax")
    q = weight.integers()
    assert bool(((q >= -7) & (q <= 7)).all())
    assert bool((q[dense == 0] == 0).all())
    scale = weight.scale.double()[:, torch.arange(cols) // group_size]
    # Half a step, and the rounding of scale and of the quotient: 2 units of 2^-24 relative to w.
    bound = scale / 2 + dense.double().abs() * 2.0**-22
    assert bool(((q.double() * scale - dense.double()).abs() <= bound).all())


def test_mse_is_never_worse_than_minmax_in_any_group() -> None:
    torch.manual_seed(0)
    dense = torch.randn(40, 300) * (torch.rand(40, 300) < 0.4)
    errors = []
    for scales in ("minmax", "mse"):
        off = (Int4Weight.from_dense(dense, 64, scales).to_dense().double() - dense.double()).square()
        errors.append(torch.stack([part.sum(1) for part in off.split(64, 1)]))
    assert bool((errors[1] <= errors[0]).all())
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_values_and_scales_of_a_small_weight() -> None:
    weight = Int4Weight.from_dense(torch.tensor([[7.0, 0, -3.5, 2.5], [0, 0, 0, 0]]), 16, "minmax")
    assert weight.integers().tolist() == [[7, 0, -4, 2], [0, 0, 0, 0]]  # half to even
    assert weight.scale.tolist() == [[1.0], [1.0]]
    assert weight.nonzero.tolist() == [[0b1101], [0]]
    assert weight.values.tolist() == [0xC7, 0x02]
    assert weight.dtype == torch.uint8
    assert torch.equal(weight.to("cpu").values, weight.values)


def test_tiny_and_huge_groups() -> None:
    dense = torch.zeros(3, 20)
    dense[0, 0], dense[1, 17], dense[2, :2] = 1e-45, SMALLEST, torch.tensor([3e38, -3e38])
    for scales in ("minmax", "mse"):
        weight = Int4Weight.from_dense(dense, 16, scales)
        assert bool((weight.scale >= SMALLEST).all())
        assert weight.integers()[2, :2].tolist() == [7, -7]
        assert bool(torch.isfinite(weight.to_dense()).all())


def valid() -> dict[str, Any]:
    weight = Int4Weight.from_integers(torch.tensor([[1, 0, -8] * 6], dtype=torch.int8), torch.ones(1, 2), 16)
    return {field.name: getattr(weight, field.name) for field in dataclasses.fields(weight)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonzero": torch.zeros(1, 2, dtype=torch.uint8)}, "nonzero"),
        ({"nonzero": torch.tensor([[255, 255, 255]], dtype=torch.uint8)}, "past column 18"),
        ({"values": torch.zeros(7, dtype=torch.uint8)}, r"values of shape \[6\]"),
        ({"values": torch.zeros(6, dtype=torch.uint8)}, "not 0"),
        ({"values": torch.zeros(6)}, "uint8"),
        ({"scale": torch.ones(1, 1)}, "scale"),
        ({"scale": torch.tensor([[1.0, 0.0]])}, "above 0"),
        ({"scale": torch.tensor([[1.0, torch.inf]])}, "finite"),
        ({"shape": (1, 17)}, "past column 17"),
        ({"shape": (2, 18)}, "nonzero"),
        ({"group_size": 8}, "multiple of 16"),
        ({"group_size": 2064}, "at most 2048"),
        ({"group_size": 16.0}, "multiple of 16"),
        ({"group_size": True}, "multiple of 16"),
    ],
)
def test_invalid_weights_are_refused(change: dict[str, Any], message: str) -> None:
    Int4Weight(**valid())
    with pytest.raises(FormatError, match=message):
        Int4Weight(**valid() | change)


def test_half_a_byte_behind_the_last_value_is_refused() -> None:
    fields = valid()
    weight = Int4Weight.from_integers(torch.tensor([[5, 0, 0]], dtype=torch.int8), torch.ones(1, 1), 16)
    assert weight.values.tolist() == [5]
    with pytest.raises(FormatError, match="nothing behind"):
        dataclasses.replace(weight, values=torch.tensor([0x15], dtype=torch.uint8))
    assert Int4Weight(**fields).shape == (1, 18)


def test_wrong_dense_weights_and_integers() -> None:
    with pytest.raises(FormatError, match="NaN"):
        Int4Weight.from_dense(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="minmax, mse"):
        Int4Weight.from_dense(torch.ones(1, 1), 16, "absmax")
    with pytest.raises(FormatError, match="multiple of 16"):
        Int4Weight.from_dense(torch.ones(1, 1), 20)
    with pytest.raises(FormatError, match="-8 to 7"):
        Int4Weight.from_integers(torch.tensor([[8]], dtype=torch.int8), torch.ones(1, 1), 16)


# --- PackedInt4Weight ---


@each_packing
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_packed_round_trip(packing: tuple[int, int], density: float) -> None:
    for N, K in ((0, 0), (0, 9), (3, 0), (1, 1), (16, 64), (17, 300), (200, 1100)):
        weight = random_int4(N, K, 256, density)
        packed = PackedInt4Weight.pack(weight, packing=packing)
        back = packed.unpack()
        assert torch.equal(back.integers(), weight.integers())
        assert torch.equal(back.scale, weight.scale)
        assert packed.nbytes == sum(t.nbytes for t in (*packed.tensors, packed.scale, packed.weight_sum))


def test_rows_of_different_length_are_put_in_order() -> None:
    weight = random_int4(2 * WINDOW + 5, 512, 256, 1.0)
    q = weight.integers() * (torch.rand(weight.shape) < torch.rand(weight.shape[0], 1) ** 3)
    weight = Int4Weight.from_integers(q, weight.scale, 256)
    packed = PackedInt4Weight.pack(weight)
    assert len(packed.tensors[-1]) == weight.shape[0]
    assert torch.equal(packed.unpack().integers(), q)
    assert torch.equal(packed.unpack().scale, weight.scale)


def test_sums_are_those_of_the_groups() -> None:
    weight = random_int4(5, 40, 16, 0.7)
    packed = PackedInt4Weight.pack(weight, packing=(4, 16))
    q = torch.nn.functional.pad(weight.integers(), (0, 8, 0, 3)).long()
    expected = q.view(2, 4, 3, 16).sum(3).transpose(1, 2).flatten()
    assert torch.equal(packed.weight_sum.long(), expected)


@pytest.mark.parametrize("few_rows", [False, True])
@pytest.mark.parametrize("group_size", [16, 48, 64, 192, 256, 512])
def test_tables_divide_groups(group_size: int, few_rows: bool) -> None:
    packed = PackedInt4Weight.pack(random_int4(3, 500, group_size), few_rows=few_rows)
    assert group_size % packed.shape.table == 0
    if group_size % 256 == 0:
        assert (packed.shape.lanes, packed.shape.table) == _C.int8_packing(few_rows)[:2]


def test_a_table_that_does_not_divide_groups_is_refused() -> None:
    with pytest.raises(FormatError, match="divide a group of 48"):
        PackedInt4Weight.pack(random_int4(3, 50, 48), packing=(16, 64))
