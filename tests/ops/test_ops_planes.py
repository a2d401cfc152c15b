"""spmm_planes against float64: kernels by name, dtypes, NaN, threads, gradients, bad input."""

from __future__ import annotations

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from float_products import DTYPES, kernel_names
from networks import with_signs_
from oracle import assert_within, dense_reference
from torch import Tensor, nn
from torch.library import opcheck

from sparsecore import ops
from sparsecore._native import raw
from sparsecore.errors import FormatError
from sparsecore.formats import BinaryWeight, PlanesWeight, TernaryWeight

KERNELS = kernel_names("spmm_planes")
each_format = pytest.mark.parametrize("zeros", [False, True], ids=["binary", "ternary"])


def problem(N: int, K: int, zeros: bool) -> tuple[nn.Linear, PlanesWeight]:
    """A layer with scales of its own in every row, and its packed weight."""
    linear = nn.Linear(K, N)
    with torch.no_grad():
        if zeros:
            linear.weight *= torch.rand(N, K) < 0.7
        with_signs_(linear, zeros)
        linear.weight *= torch.rand(N, 1) + 0.5
    return linear, PlanesWeight.pack((TernaryWeight if zeros else BinaryWeight).from_dense(linear.weight))


@each_format
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("M", "K", "N"), [(1, 40, 9), (3, 1, 1), (5, 70, 33), (8, 5, 64), (16, 33, 17), (37, 200, 130)]
)
def test_every_kernel_and_dtype(kernel: str, dtype: torch.dtype, M: int, K: int, N: int, zeros: bool) -> None:
    linear, weight = problem(N, K, zeros)
    x, residual = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    y = ops.spmm_planes(x, weight, linear.bias, residual=residual, activation="silu", kernel=kernel)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(linear, x, "silu", residual))
    images = torch.randn(2, K, 3, M).to(dtype)
    columns = ops.spmm_planes(images, weight, linear.bias, layout="columns", kernel=kernel)
    exact, bound = dense_reference(linear, images.movedim(1, -1))
    assert_within(columns.movedim(1, -1), exact, bound)


@each_format
@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0), (0,)])
def test_batch_dimensions(batch: tuple[int, ...], zeros: bool) -> None:
    linear, weight = problem(9, 20, zeros)
    x = torch.randn(*batch, 20)
    assert_within(ops.spmm_planes(x, weight, linear.bias), *dense_reference(linear, x))
    wide = torch.randn(*batch, 40)[..., ::2]
    assert_within(ops.spmm_planes(wide, weight, linear.bias), *dense_reference(linear, wide))


@each_format
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("M", [1, 5, 20])
def test_special_numbers(kernel: str, M: int, zeros: bool) -> None:
    """A zero skips NaN and infinity; a sign takes an infinity as it is."""
    linear, weight = problem(40, 30, zeros)
    for special in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(M, 30)
        x[-1, 7] = special
        y = ops.spmm_planes(x, weight, kernel=kernel)
        terms = torch.where(linear.weight[None] != 0, linear.weight[None] * x[:, None], 0.0)
        expected = terms.detach().double().sum(-1)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert bool(y[-1].isfinite().any()) == zeros


@each_format
def test_the_same_bits_on_any_number_of_threads(zeros: bool) -> None:
    linear, weight = problem(1100, 300, zeros)
    for M in (1, 50):
        x = torch.randn(M, 300)
        assert_same_on_any_number_of_threads(lambda x=x: [ops.spmm_planes(x, weight, linear.bias)])


@each_format
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_gradients_equal_the_dense_ones(activation: str, layout: str, zeros: bool) -> None:
    linear, weight = problem(7, 12, zeros)
    x = torch.randn(5, 12, requires_grad=True)
    residual = torch.randn(5, 7, requires_grad=True)
    leaves = (x, linear.bias, residual)

    def run() -> Tensor:
        if layout == "rows":
            return ops.spmm_planes(x, weight, linear.bias, residual=residual, activation=activation)
        moved = residual.T[None]
        return ops.spmm_planes(x.T[None], weight, linear.bias, residual=moved, activation=activation, layout=layout)[
            0
        ].T

    dense = linear(x) + residual
    expected = nn.functional.gelu(dense) if activation == "gelu" else dense
    upstream = torch.randn(5, 7)
    found = torch.autograd.grad(run(), leaves, upstream)
    for got, want in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, zeros: bool) -> None:
    _, weight = problem(18, 5, zeros)
    packed, sizes = list(weight.tensors), list(weight.shape)
    x, bias = torch.randn(4, 5).to(dtype).requires_grad_(), torch.randn(18, requires_grad=True)
    residual = torch.randn(4, 18).to(dtype).requires_grad_()
    opcheck(raw.spmm_planes.default, (x, packed, sizes, bias, residual, "relu", "rows", ""))
    opcheck(raw.spmm_planes.default, (x.detach().T[None], packed, sizes, None, None, "none", "columns", ""))
    opcheck(raw.unpack_planes.default, (*packed, sizes))


def test_bad_input() -> None:
    _, weight = problem(40, 30, True)
    words, scale = weight.tensors
    x, plain = torch.randn(3, 30), (None, None, "none", "rows", "")
    for tensors, sizes, message in (
        ([words[:-1], scale], [40, 30], "fit together"),
        ([words, scale[:, :-1].contiguous()], [40, 30], "fit together"),
        ([words, scale[:1]], [40, 30], "fit together"),
        ([words[..., :8].contiguous(), scale], [40, 30], "fit together"),
        ([words.expand(-1, -1, 2, -1).repeat(1, 1, 2, 1), scale.repeat(2, 1)], [40, 30], "fit together"),
        ([words, scale], [49, 30], "fit together"),
        ([words, scale], [40, 33], "fit together"),
        ([words, scale], [-1, 30], "N and K"),
        ([words.long(), scale], [40, 30], "expected int32 words"),
        ([words, scale.half()], [40, 30], "expected float32 scale"),
        ([words], [40, 30], "2 tensors"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_planes(x, tensors, sizes, *plain)
    for wrong in (torch.randn(3, 29), torch.randn(30, 3)):
        with pytest.raises(RuntimeError, match="K = 30"):
            ops.spmm_planes(wrong, weight)
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16 x"):
        ops.spmm_planes(x.double(), weight)
    with pytest.raises(FormatError, match=r"a PlanesWeight, got Tensor; make one with PlanesWeight.pack"):
        ops.spmm_planes(x, words)  # type: ignore[arg-type]
