"""Int8Weight: the arithmetic against float64, and no invalid tensor gets in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecore.errors import FormatError
from sparsecore.formats import CsrWeight, Int8Weight

SMALLEST = torch.finfo(torch.float32).smallest_normal


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(-40, 30),
    st.integers(0, 2**16),
)
def test_error_is_at_most_half_a_scale(rows: int, cols: int, dtype: torch.dtype, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, cols, generator=generator) * 2.0**exponent
    dense *= torch.rand(rows, cols, generator=generator) < 0.7
    dense = dense.to(dtype)
    if not torch.isfinite(dense).all():  # float16 overflows
        return
    weight = Int8Weight.from_dense(dense)
    assert weight.shape == dense.shape
    assert int(weight.q.abs().max()) <= 127 if weight.q.numel() else True
    error = (weight.q.double() * weight.scale.double()[:, None] - dense.double()).abs()
    # Half a step, and the rounding of scale and of the quotient: 2 units of 2^-24 relative to w.
    bound = weight.scale.double()[:, None] / 2 + dense.double().abs() * 2.0**-22
    assert bool((error <= bound).all())
    assert bool((weight.q[dense == 0] == 0).all())
    assert torch.equal(Int8Weight.from_csr(weight.to_csr()).q, weight.q)


def test_values() -> None:
    weight = Int8Weight.from_dense(torch.tensor([[127.0, -127.0, 0.5, 1.5], [0, 0, 0, 0]]))
    assert weight.q.tolist() == [[127, -127, 0, 2], [0, 0, 0, 0]]  # half to even
    assert weight.scale.tolist() == [1.0, 1.0]
    assert weight.nbytes == 8 + 8
    assert weight.dtype == torch.int8
    assert weight.to("cpu").device == weight.device


def test_tiny_and_huge_channels() -> None:
    dense = torch.tensor([[1e-45, 0.0], [SMALLEST, 0.0], [3e38, -3e38]])
    weight = Int8Weight.from_dense(dense)
    assert bool((weight.scale >= SMALLEST).all())
    assert weight.q[2].tolist() == [127, -127]
    assert bool(torch.isfinite(weight.to_dense()).all())


def test_csr_round_trip_is_exact_for_all_of_int8() -> None:
    q = torch.arange(-128, 128, dtype=torch.int8).view(2, 128)
    weight = Int8Weight(q, torch.tensor([0.5, 2.0]))
    csr = weight.to_csr()
    assert csr.nnz == 255
    back = Int8Weight.from_csr(csr)
    assert torch.equal(back.q, q)
    assert torch.equal(back.scale, weight.scale)
    assert torch.equal(csr.to_dense(), weight.to_dense())


def test_convolution_weights_are_flattened() -> None:
    assert Int8Weight.from_dense(torch.ones(4, 3, 2, 2)).shape == (4, 12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weight_must_be_finite(bad: float) -> None:
    with pytest.raises(FormatError, match="NaN or infinity"):
        Int8Weight.from_dense(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize(
    ("q", "scale", "text"),
    [
        (torch.ones(2, 3), torch.ones(2), "q.*int8.*float32"),
        (torch.ones(6, dtype=torch.int8), torch.ones(6), "q of shape"),
        (torch.ones(2, 3, dtype=torch.int8), torch.ones(3), r"scale of shape \[2\]"),
        (torch.ones(2, 3, dtype=torch.int8), torch.ones(2).double(), "scale.*float64"),
        (torch.ones(2, 3, dtype=torch.int8), torch.tensor([1.0, 0.0]), "above 0"),
    ],
)
def test_invalid_tensors(q: torch.Tensor, scale: torch.Tensor, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        Int8Weight(q, scale)


def test_from_float_csr_is_refused() -> None:
    with pytest.raises(FormatError, match="quantize"):
        Int8Weight.from_csr(CsrWeight.from_dense(torch.eye(2)))
