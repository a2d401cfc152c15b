"""spmm in every format, dtype and kernel against dense float64; missing entries, threads, strides."""

from __future__ import annotations

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from float_products import (
    DTYPES,
    FORMS,
    csr_tensors,
    form_kernels,
    kernel_names,
    random_sparse,
    run_conv2d,
    run_spmm,
)
from oracle import assert_within, dense_reference
from torch import Tensor, nn

from sparsecore import _C, CsrWeight, ops
from sparsecore.formats import PanelWeight

raw = torch.ops.sparsecore


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("kernel", kernel_names("spmm"))
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (3, 1, 1), (13, 70, 33), (97, 200, 8)])
def test_spmm_rows(kernel: str, activation: str, M: int, K: int, N: int) -> None:
    linear = nn.Linear(K, N)
    linear.weight.data = random_sparse(N, K)
    weight = CsrWeight.from_dense(linear.weight)
    x = torch.randn(M, K)
    y = ops.spmm(x, weight, linear.bias, activation=activation, kernel=kernel)
    assert_within(y, *dense_reference(linear, x, activation))


@pytest.mark.parametrize("kernel", kernel_names("spmm"))
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5, 11)])
def test_spmm_columns(kernel: str, size: tuple[int, ...]) -> None:
    conv = nn.Conv2d(20, 17, 1)
    conv.weight.data = random_sparse(17, 20, 1, 1)
    weight = CsrWeight.from_dense(conv.weight)
    x = torch.randn(2, 20, *size)
    y = ops.spmm(x, weight, conv.bias, layout="columns", activation="relu", kernel=kernel)
    exact, bound = dense_reference(conv, x.reshape(2, 20, -1, 1), "relu")
    assert_within(y.reshape(exact.shape), exact, bound)


@pytest.mark.parametrize("panel_cols", [1, 7, 80, 255])
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (3, 1, 1), (13, 300, 33), (97, 200, 130)])
def test_panel_equals_csr_bit_for_bit(panel_cols: int, M: int, K: int, N: int) -> None:
    csr = CsrWeight.from_dense(random_sparse(N, K))
    packed = PanelWeight.pack(csr, panel_cols)
    weight = (list(packed.tensors), packed.sizes)
    bias = torch.randn(N)
    x = torch.randn(M, K)
    images = torch.randn(2, K, 5, M)
    for kernel in kernel_names("spmm_panel"):
        linear = nn.Linear(K, N)
        linear.weight.data, linear.bias.data = csr.to_dense(), bias
        y = raw.spmm_panel(x, *weight, bias, None, "gelu", "rows", kernel)
        assert_within(y, *dense_reference(linear, x, "gelu"))
        other = kernel.replace("panel", "csr")
        y = raw.spmm_panel(images, *weight, bias, None, "relu", "columns", kernel)
        expected = raw.spmm_csr(images, *csr_tensors(csr), bias, None, "relu", "columns", other)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 8), (3, 1, 16), (37, 70, 40), (97, 200, 8)])
def test_spmm_of_every_format_and_dtype_with_residual(form: str, dtype: torch.dtype, M: int, K: int, N: int) -> None:
    linear = nn.Linear(K, N)
    linear.weight.data = random_sparse(N, K)
    weight = CsrWeight.from_dense(linear.weight)
    x, residual = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    for kernel in form_kernels("spmm", form):
        y = run_spmm(form, x, weight, linear.bias, residual, "gelu", "rows", kernel)
        assert y.dtype == dtype
        assert_within(y, *dense_reference(linear, x, "gelu", residual))
        y = run_spmm(form, x.T[None], weight, linear.bias, residual.T[None], "relu", "columns", kernel)
        exact, bound = dense_reference(linear, x, "relu", residual)
        assert_within(y[0], exact.T, bound.T)


def test_residual_of_the_public_functions() -> None:
    linear, conv = nn.Linear(6, 5), nn.Conv2d(6, 5, 3, padding=1)
    x, images = torch.randn(4, 6), torch.randn(2, 6, 7, 7)
    residual, maps = torch.randn(5, 4).T, torch.randn(2, 5, 7, 7).to(memory_format=torch.channels_last)
    assert not residual.is_contiguous()
    assert not maps.is_contiguous()
    y = ops.spmm(x, CsrWeight.from_dense(linear.weight), linear.bias, residual=residual, activation="relu")
    assert_within(y, *dense_reference(linear, x, "relu", residual))
    y = ops.conv2d(images, CsrWeight.from_dense(conv.weight), conv.bias, kernel_size=3, padding=1, residual=maps)
    assert_within(y, *dense_reference(conv, images, "none", maps))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_16_bit_results_are_the_float32_ones_rounded(form: str, dtype: torch.dtype) -> None:
    weight, bias = CsrWeight.from_dense(random_sparse(16, 30) * 1e4), torch.randn(16)
    for M in (1, 5, 50):  # one row takes another path in float32
        x, residual = torch.randn(M, 30).to(dtype), torch.randn(M, 16).to(dtype)
        wide = run_spmm(form, torch.cat([x] * 2).float(), weight, bias, torch.cat([residual] * 2).float())[:M]
        narrow = run_spmm(form, torch.cat([x] * 2), weight, bias, torch.cat([residual] * 2))[:M]
        assert torch.equal(narrow, wide.to(dtype))
    assert bool(narrow.isinf().any()) == (dtype == torch.float16), "past the largest float16 is infinity"


def test_nan_that_a_block_does_not_store_is_skipped() -> None:
    dense = torch.zeros(8, 3)
    dense[:4, 0], dense[4:, 2] = 2.0, 3.0
    x = torch.tensor([[float("nan"), 1.0, 1.0]] * 5)
    y = run_spmm("4x1", x, CsrWeight.from_dense(dense))
    assert y[:, :4].isnan().all()
    assert (y[:, 4:] == 3).all()
    assert run_spmm("8x1", x, CsrWeight.from_dense(dense)).isnan().all(), "its zeros are stored"


def test_missing_entries_skip_nan() -> None:
    weight = CsrWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    for rows in (1, 5):
        y = ops.spmm(torch.tensor([[float("nan"), 1.0]] * rows), weight)
        assert (y[:, 0] == 2).all()
        assert y[:, 1].isnan().all()


@pytest.mark.parametrize("K", [0, 5])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_empty_and_all_zero(rows: int, K: int) -> None:
    bias = torch.tensor([1.0, -2.0])
    x = torch.randn(rows, K)
    expected = bias.expand(rows, 2)
    weight = CsrWeight.from_dense(torch.zeros(2, K))
    assert torch.equal(ops.spmm(x, weight, bias), expected)
    images = torch.randn(rows, K, 3, 3)
    y = ops.spmm(images, weight, bias, layout="columns")
    assert torch.equal(y, bias[:, None, None].expand(rows, 2, 3, 3))


def test_same_bits_for_any_number_of_threads() -> None:
    linear = CsrWeight.from_dense(random_sparse(300, 257))
    filters = CsrWeight.from_dense(random_sparse(64, 16, 3, 3))
    x, images = torch.randn(130, 257), torch.randn(3, 16, 33, 31)

    def run() -> list[Tensor]:
        return [
            ops.spmm(x, linear, activation="gelu"),
            ops.spmm(x[:1], linear),
            ops.spmm(images, CsrWeight.from_dense(torch.eye(16)), layout="columns"),
            ops.conv2d(images, filters, kernel_size=3, padding=1),
        ]

    assert_same_on_any_number_of_threads(run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_for_any_number_of_threads_in_every_format(form: str, dtype: torch.dtype) -> None:
    linear = CsrWeight.from_dense(random_sparse(304, 257))
    filters = CsrWeight.from_dense(random_sparse(64, 16, 3, 3))
    x, residual = torch.randn(130, 257).to(dtype), torch.randn(130, 304).to(dtype)
    images, maps = torch.randn(3, 16, 33, 31).to(dtype), torch.randn(3, 64, 33, 31).to(dtype)

    def run() -> list[Tensor]:
        return [
            run_spmm(form, x, linear, None, residual, "gelu"),
            run_spmm(form, x[:1], linear, None, residual[:1]),
            run_conv2d(form, images, filters, None, maps, "relu", kernel_size=3, padding=1),
        ]

    assert_same_on_any_number_of_threads(run)


def test_strided_input() -> None:
    weight = CsrWeight.from_dense(random_sparse(6, 5))
    x = torch.randn(5, 4).T
    assert torch.equal(ops.spmm(x, weight), ops.spmm(x.contiguous(), weight))
    images = torch.randn(2, 6, 6, 5).permute(0, 3, 1, 2)
    y = ops.spmm(images, weight, layout="columns")
    assert torch.equal(y, ops.spmm(images.contiguous(), weight, layout="columns"))


def test_numpy_module_agrees() -> None:
    dense, x = random_sparse(9, 7), torch.randn(5, 7)
    arrays = _C.pack_csr(dense.numpy())
    assert (_C.unpack_csr(*arrays, cols=7) == dense.numpy()).all()
    for kernel in kernel_names("spmm"):
        y = torch.from_numpy(_C.spmm_csr(x.numpy(), *arrays, kernel=kernel))
        assert torch.equal(y, ops.spmm(x, CsrWeight.from_dense(dense), kernel=kernel))
    with pytest.raises(ValueError, match="strictly ascending"):
        _C.spmm_csr(x.numpy(), arrays[0], arrays[1][::-1].copy(), arrays[2])
