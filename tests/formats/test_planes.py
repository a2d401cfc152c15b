"""BinaryWeight, TernaryWeight and PlanesWeight: exact round trips, bits where the documents say, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats import BinaryWeight, PlanesWeight, TernaryWeight

SHAPES = [(0, 0), (0, 7), (5, 0), (1, 1), (3, 8), (16, 32), (17, 33), (40, 300)]
FORMATS = (BinaryWeight, TernaryWeight)


def random_weight(cls: type, N: int, K: int) -> Tensor:
    """Any scales; a ternary weight has rows without positive numbers, and without any."""
    positive = torch.rand(N, 1) + 0.1
    if cls is BinaryWeight:
        return torch.where(torch.rand(N, K) < 0.5, positive, -positive)
    negative, chance = -torch.rand(N, 1) - 0.1, torch.rand(N, K)
    rows = torch.arange(N)[:, None]
    weight = torch.where((chance < 0.3) & (rows % 3 != 1), positive, torch.where(chance > 0.6, negative, 0.0))
    return weight * (rows % 5 != 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", FORMATS)
def test_round_trips_are_exact(cls: type, shape: tuple[int, int], dtype: torch.dtype) -> None:
    dense = random_weight(cls, *shape).to(dtype)
    weight = cls.from_dense(dense)
    assert weight.shape == shape
    assert torch.equal(weight.to_dense(), dense.float())
    packed = PlanesWeight.pack(weight).unpack()
    assert type(packed) is cls
    for name in vars(weight):
        before, after = getattr(weight, name), getattr(packed, name)
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after


def test_bits_are_where_the_documents_say() -> None:
    N, K = 19, 45
    binary, ternary = random_weight(BinaryWeight, N, K), random_weight(TernaryWeight, N, K)
    stored, packed = BinaryWeight.from_dense(binary), PlanesWeight.pack(BinaryWeight.from_dense(binary))
    three, planes = TernaryWeight.from_dense(ternary), PlanesWeight.pack(TernaryWeight.from_dense(ternary))
    assert stored.nbytes == N * 6 + N * 4
    assert three.nbytes == 2 * (N * 6 + N * 4)
    for n in range(N):
        for k in range(K):
            assert stored.sign[n, k // 8] >> k % 8 & 1 == int(binary[n, k] < 0)
            assert three.nonzero[n, k // 8] >> k % 8 & 1 == int(ternary[n, k] != 0)
            assert three.sign[n, k // 8] >> k % 8 & 1 == int(ternary[n, k] < 0)
            place = (n // 16, k // 32, slice(None), n % 16)
            assert (packed.words[place] >> k % 32 & 1).tolist() == [int(binary[n, k] < 0)]
            assert (planes.words[place] >> k % 32 & 1).tolist() == [int(ternary[n, k] > 0), int(ternary[n, k] < 0)]


def test_a_filter_is_a_matrix() -> None:
    dense = random_weight(BinaryWeight, 4, 18).view(4, 2, 3, 3)
    assert torch.equal(BinaryWeight.from_dense(dense).to_dense(), dense.flatten(1))


@pytest.mark.parametrize("bad", [0.25, 0.0, torch.nan, torch.inf, -0.5000001])
def test_other_numbers_are_refused(bad: float) -> None:
    weight = torch.full((4, 9), 0.5)
    weight[2, 7] = bad
    with pytest.raises(FormatError, match=r"rows of \+s and -s, got other numbers in row 2; train .* BinaryConnect"):
        BinaryWeight.from_dense(weight)
    if bad in (0.0, -0.5000001):
        assert torch.equal(TernaryWeight.from_dense(weight).to_dense(), weight)
    else:
        with pytest.raises(FormatError, match=r"rows of -a, 0 and [+]b, got other numbers in row 2; train"):
            TernaryWeight.from_dense(weight)


def test_rows_of_one_bad_number() -> None:
    for bad in (0.0, torch.inf, torch.nan):
        with pytest.raises(FormatError, match="row 0"):
            BinaryWeight.from_dense(torch.full((1, 3), bad))
    with pytest.raises(FormatError, match="row 0"):
        TernaryWeight.from_dense(torch.full((1, 3), -torch.inf))


def test_damaged_binary_weights_are_refused() -> None:
    sign, scale = torch.tensor([[0b101, 0b1]], dtype=torch.uint8), torch.ones(1)
    BinaryWeight(sign, scale, (1, 9))
    for bad_sign, bad_scale, shape, message in (
        (sign, scale, (1, 8), r"sign of shape \[1, 1\], got \[1, 2\]"),
        (sign, scale, (2, 9), r"sign of shape \[2, 2\], got \[1, 2\]"),
        (sign << 1, scale, (1, 9), "no bits of sign past column 9"),
        (sign.int(), scale, (1, 9), "sign to be a dense uint8 tensor, got int32"),
        (sign, scale * 0, (1, 9), "every scale finite and above 0"),
        (sign, scale * torch.inf, (1, 9), "every scale finite and above 0"),
        (sign, scale.double(), (1, 9), "scale to be a dense float32 tensor, got float64"),
        (sign, torch.ones(2), (1, 9), r"scale of shape \[1\], got \[2\]"),
        (sign, scale, (1, -9), r"shape \(N, K\)"),
    ):
        with pytest.raises(FormatError, match=message):
            BinaryWeight(bad_sign, bad_scale, shape)


def test_damaged_ternary_weights_are_refused() -> None:
    nonzero, sign, one = (torch.tensor([[bits]], dtype=torch.uint8) for bits in (0b101, 0b100, 1))
    scale = torch.ones(1)
    TernaryWeight(nonzero, sign, scale, scale, (1, 3))
    for arguments, message in (
        ((one, sign, scale, scale), "a sign only where the weight is not zero"),
        ((nonzero | 8, sign, scale, scale), "no bits of nonzero past column 3"),
        ((nonzero, sign | 8, scale, scale), "no bits of sign past column 3"),
        ((nonzero, sign, scale, -scale), "every scale finite and above 0"),
        ((nonzero, sign, scale[:0], scale), r"scale of shape \[1\], got \[0\]"),
        ((nonzero, sign[:, :0], scale, scale), r"sign of shape \[1, 1\]"),
    ):
        with pytest.raises(FormatError, match=message):
            TernaryWeight(*arguments, (1, 3))
