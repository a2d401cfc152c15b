"""Every float operation through every kernel against dense float64; tracing, gradients, bad input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import ACTIVATIONS, assert_within, dense_reference
from torch import Tensor, nn
from torch.library import opcheck

import sparsecore
from sparsecore import _C, CsrWeight, ops
from sparsecore.formats import BitmapWeight, BlockCsrWeight, PanelWeight
from sparsecore.ops.shared import pair

raw = torch.ops.sparsecore


def kernel_names(operation: str) -> list[str]:
    return [k["name"] for k in _C.kernels() if k["op"] == operation and k["available"]]


def random_sparse(*shape: int, density: float = 0.3) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < density)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- the formats of a float weight, called alike ---

FORMS = ("csr", "4x1", "8x1", "panel")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def block_tensors(weight: CsrWeight, block_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return BlockCsrWeight.pack(weight, block_rows).tensors


def packed(form: str, weight: CsrWeight, panel_cols: int) -> tuple[Any, ...]:
    """What the operations take for a weight."""
    if form == "panel":
        panel = PanelWeight.pack(weight, panel_cols)
        return list(panel.tensors), panel.sizes
    return csr_tensors(weight) if form == "csr" else block_tensors(weight, int(form[0]))


def form_kernels(operation: str, form: str) -> list[str]:
    return kernel_names(operation + {"csr": "", "panel": "_panel"}.get(form, "_block"))


def run_spmm(
    form: str,
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    layout: str = "rows",
    kernel: str = "",
) -> Tensor:
    operation = raw.spmm_panel if form == "panel" else raw.spmm_csr
    return operation(x, *packed(form, weight, 16), bias, residual, activation, layout, kernel)


def run_conv2d(
    form: str,
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
    **settings: Any,
) -> Tensor:
    """Settings as of a nn.Conv2d; groups only where the format has them."""
    pairs = [
        pair(settings.get(name, usual))
        for name, usual in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    if form == "panel":
        panel_cols = 5 * pairs[0][0] * pairs[0][1]
        return raw.conv2d_panel(x, *packed(form, weight, panel_cols), bias, residual, *pairs, activation, kernel)
    groups = settings.get("groups", 1)
    return raw.conv2d_csr(x, *packed(form, weight, 0), bias, residual, *pairs, groups, activation, kernel)


# --- results ---


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


@pytest.mark.parametrize("kernel", kernel_names("conv2d_panel"))
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "dilation": (2, 3), "padding": 3},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 2, "padding": 4},
    ],
    ids=str,
)
def test_conv2d_panel(kernel: str, settings: dict[str, object]) -> None:
    conv = nn.Conv2d(70, 90, **settings)
    conv.weight.data = random_sparse(*conv.weight.shape)
    layer = sparsecore.nn.PanelConv2d.from_dense(conv, activation="silu", kernel=kernel)
    if layer.is_product:
        return
    x = torch.randn(2, 70, 13, 10)
    assert_within(layer(x), *dense_reference(conv, x, "silu"))


@pytest.mark.parametrize("kernel", kernel_names("conv2d"))
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
        {"kernel_size": 3, "dilation": (2, 3), "padding": 3},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 2, "padding": 4, "groups": 8},
    ],
    ids=str,
)
def test_conv2d(kernel: str, activation: str, settings: dict[str, object]) -> None:
    conv = nn.Conv2d(8, 16, **settings)
    conv.weight.data = random_sparse(*conv.weight.shape)
    weight = CsrWeight.from_dense(conv.weight)
    x = torch.randn(2, 8, 13, 10)
    y = ops.conv2d(x, weight, conv.bias, activation=activation, kernel=kernel, **settings)
    assert_within(y, *dense_reference(conv, x, activation))


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
        {"kernel_size": 3, "dilation": (2, 3), "padding": 3},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 2, "padding": 4, "groups": 4},
    ],
    ids=str,
)
def test_conv2d_of_every_format_and_dtype_with_residual(
    form: str, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    if form == "panel":
        settings = settings | {"groups": 1}
    conv = nn.Conv2d(8, 32, **settings)
    conv.weight.data = random_sparse(*conv.weight.shape)
    weight = CsrWeight.from_dense(conv.weight)
    x = torch.randn(2, 8, 13, 10).to(dtype)
    residual = torch.randn_like(conv(x.float())).to(dtype)
    for kernel in form_kernels("conv2d", form):
        y = run_conv2d(form, x, weight, conv.bias, residual, "silu", kernel, **settings)
        assert y.dtype == dtype
        assert_within(y, *dense_reference(conv, x, "silu", residual))


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


def test_same_bits_for_any_number_of_threads(threads: None) -> None:
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

    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert all(map(torch.equal, run(), expected)), f"{count} threads"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_for_any_number_of_threads_in_every_format(form: str, dtype: torch.dtype, threads: None) -> None:
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

    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert all(map(torch.equal, run(), expected)), f"{count} threads"


def test_strided_input() -> None:
    weight = CsrWeight.from_dense(random_sparse(6, 5))
    x = torch.randn(5, 4).T
    assert torch.equal(ops.spmm(x, weight), ops.spmm(x.contiguous(), weight))
    images = torch.randn(2, 6, 6, 5).permute(0, 3, 1, 2)
    y = ops.spmm(images, weight, layout="columns")
    assert torch.equal(y, ops.spmm(images.contiguous(), weight, layout="columns"))


# --- tracing and gradients ---


def csr_tensors(weight: CsrWeight) -> tuple[Tensor, Tensor, Tensor]:
    return weight.row_ptr, weight.col_idx, weight.values


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_opcheck_float(activation: str) -> None:
    weight = csr_tensors(CsrWeight.from_dense(random_sparse(6, 5)))
    filters = csr_tensors(CsrWeight.from_dense(random_sparse(6, 2, 3, 3)))
    bias = torch.randn(6, requires_grad=True)
    x = torch.randn(4, 5, requires_grad=True)
    opcheck(raw.spmm_csr.default, (x, *weight, bias, None, activation, "rows", ""))
    x = torch.randn(2, 5, 3, requires_grad=True)
    opcheck(raw.spmm_csr.default, (x, *weight, bias, None, activation, "columns", ""))
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    settings = ([3, 3], [2, 1], [1, 1], [1, 1], 2)
    opcheck(raw.conv2d_csr.default, (x, *filters, bias, None, *settings, activation, ""))


# Each form once, without a residual in the one that stands for all of its text.
@pytest.mark.parametrize(
    ("form", "dtype", "has_residual"),
    [
        ("csr", torch.float32, True),
        ("4x1", torch.float32, False),
        ("8x1", torch.bfloat16, True),
        ("panel", torch.float32, False),
        ("panel", torch.float16, True),
    ],
    ids=str,
)
def test_opcheck_formats_and_residual(form: str, dtype: torch.dtype, has_residual: bool) -> None:
    weight, filters = CsrWeight.from_dense(random_sparse(8, 5)), CsrWeight.from_dense(random_sparse(8, 2, 3, 3))
    bias = torch.randn(8, requires_grad=True)
    x = torch.randn(4, 5).to(dtype).requires_grad_()
    residual = torch.randn(4, 8).to(dtype).requires_grad_() if has_residual else None
    spmm, conv2d = (raw.spmm_panel, raw.conv2d_panel) if form == "panel" else (raw.spmm_csr, raw.conv2d_csr)
    opcheck(spmm.default, (x, *packed(form, weight, 2), bias, residual, "relu", "rows", ""))
    x = torch.randn(2, 2, 7, 6).to(dtype).requires_grad_()
    residual = torch.randn(2, 8, 4, 6).to(dtype).requires_grad_() if has_residual else None
    settings = ([3, 3], [2, 1], [1, 1], [1, 1], *([] if form == "panel" else [1]))
    opcheck(conv2d.default, (x, *packed(form, filters, 9), bias, residual, *settings, "none", ""))


def test_opcheck_packing_of_formats() -> None:
    csr = csr_tensors(CsrWeight.from_dense(random_sparse(8, 5)))
    opcheck(raw.pack_block_csr.default, (*csr, 5, 4))
    opcheck(raw.pack_panel.default, (*csr, 5, 4, 2))
    opcheck(raw.unpack_panel.default, packed("panel", CsrWeight.from_dense(random_sparse(8, 5)), 2))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_panel_gradients_equal_those_of_csr(activation: str) -> None:
    for dense, x, panel_cols in (
        (nn.Linear(30, 20), torch.randn(7, 30), 8),
        (nn.Conv2d(6, 20, 3, padding=1), torch.randn(2, 6, 5, 5), 18),
        (nn.Conv2d(6, 20, 1), torch.randn(2, 6, 5, 5), 4),
    ):
        dense.weight.data *= torch.rand(dense.weight.shape) < 0.4
        kinds = (
            (sparsecore.nn.SparseLinear, sparsecore.nn.PanelLinear)
            if isinstance(dense, nn.Linear)
            else (sparsecore.nn.SparseConv2d, sparsecore.nn.PanelConv2d)
        )
        options = ({}, {"panel_cols": panel_cols})
        results = []
        for kind, option in zip(kinds, options, strict=True):
            layer = kind.from_dense(dense, activation=activation, **option)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((y, *torch.autograd.grad(y, (leaf, layer.bias), torch.ones_like(y))))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_damaged_panels_are_found_in_every_call() -> None:
    packed = PanelWeight.pack(CsrWeight.from_dense(random_sparse(40, 30)), 8)
    plain = (None, None, "none", "rows", "")
    x = torch.randn(3, 30)
    for index, tensor in enumerate(packed.tensors[:5]):
        for value in (-1, 255, 3):
            tensors = list(packed.tensors)
            tensors[index] = tensor.clone()
            tensors[index][tensor.numel() // 2] = value if tensor.dtype == torch.int32 else value & 255
            # Some changes are another valid weight.
            with contextlib.suppress(RuntimeError):
                raw.spmm_panel(x, tensors, packed.sizes, *plain)
        shorter = [t[:-1] if i == index else t for i, t in enumerate(packed.tensors)]
        with pytest.raises(RuntimeError, match=r"fit together|panel weight"):
            raw.spmm_panel(x, shorter, packed.sizes, *plain)
    high = list(packed.tensors)
    high[4] = torch.full_like(high[4], 200)
    with pytest.raises(RuntimeError, match="panel_col must be inside"):
        raw.spmm_panel(x, high, packed.sizes, *plain)
    with pytest.raises(RuntimeError, match="expected a panel weight"):
        raw.spmm_panel(x, list(packed.tensors), [40, 30, 0, 8], *plain)
    with pytest.raises(RuntimeError, match="K = 30"):
        raw.spmm_panel(torch.randn(3, 31), list(packed.tensors), packed.sizes, *plain)


# --- bitmaps: rows layout only, values of 32 or 16 bits ---


def run_bitmap(
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> Tensor:
    bitmap = BitmapWeight.pack(weight)
    return raw.spmm_bitmap(x, list(bitmap.tensors), bitmap.sizes, bias, residual, activation, kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("spmm_bitmap"))
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (3, 1, 1), (7, 70, 33), (8, 5, 64), (13, 200, 130)])
def test_bitmap_of_every_dtype(
    kernel: str, value_dtype: torch.dtype, dtype: torch.dtype, M: int, K: int, N: int
) -> None:
    linear = nn.Linear(K, N)
    linear.weight.data = random_sparse(N, K).to(value_dtype).float()
    weight = CsrWeight.from_dense(linear.weight).to(value_dtype)
    x, residual = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    y = run_bitmap(x, weight, linear.bias, residual, "silu", kernel)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(linear, x, "silu", residual))
    assert_within(run_bitmap(x, weight, linear.bias, None, "relu", kernel), *dense_reference(linear, x, "relu"))
    single = torch.cat([run_bitmap(row, weight, linear.bias, None, "relu", kernel) for row in x.split(1)])
    assert torch.equal(single, run_bitmap(x, weight, linear.bias, None, "relu", kernel)), "rows do not depend on M"


@pytest.mark.parametrize("kernel", kernel_names("spmm_bitmap"))
def test_bitmap_skips_nan_of_missing_entries(kernel: str) -> None:
    dense, x = random_sparse(40, 30), torch.randn(5, 30)
    x[2, 7], x[2, 11], x[4, 3] = torch.nan, torch.inf, -torch.inf
    y = run_bitmap(x, CsrWeight.from_dense(dense), kernel=kernel)
    terms = torch.where(dense[None] != 0, dense[None] * x[:, None], 0.0)
    expected = terms.double().sum(-1)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert bool(y[2].isfinite().any())


def test_bitmap_is_the_same_on_any_number_of_threads(threads: None) -> None:
    dense = torch.randn(1000, 700) * (torch.rand(1000, 700) < torch.rand(1000, 1))
    weight = CsrWeight.from_dense(dense).to(torch.bfloat16)
    for M in (1, 11):
        x, results = torch.randn(M, 700), []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(run_bitmap(x, weight))
        assert all(torch.equal(result, results[0]) for result in results)


def test_bitmap_gradients_equal_those_of_csr() -> None:
    for dtype in DTYPES:
        dense = nn.Linear(30, 20)
        dense.weight.data = random_sparse(20, 30).to(dtype).float()
        csr = CsrWeight.from_dense(dense.weight)
        x, residual = torch.randn(7, 30), torch.randn(7, 20)
        results = []
        for run, weight in ((run_bitmap, csr.to(dtype)), (partial(run_spmm, "csr"), csr)):
            leaves = [t.detach().clone().requires_grad_() for t in (x, dense.bias, residual)]
            y = run(leaves[0], weight, leaves[1], leaves[2], "gelu")
            results.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_bitmap(dtype: torch.dtype) -> None:
    weight = CsrWeight.from_dense(random_sparse(18, 5)).to(dtype)
    bitmap = BitmapWeight.pack(weight)
    x, bias = torch.randn(4, 5).to(dtype).requires_grad_(), torch.randn(18, requires_grad=True)
    residual = torch.randn(4, 18).to(dtype).requires_grad_()
    opcheck(raw.spmm_bitmap.default, (x, list(bitmap.tensors), bitmap.sizes, bias, residual, "relu", ""))
    opcheck(raw.spmm_bitmap.default, (x, list(bitmap.tensors), bitmap.sizes, None, None, "none", ""))
    opcheck(raw.pack_bitmap.default, (*csr_tensors(weight), 5))
    opcheck(raw.unpack_bitmap.default, (list(bitmap.tensors), bitmap.sizes))


def test_damaged_bitmaps_are_found_in_every_call() -> None:
    bitmap = BitmapWeight.pack(CsrWeight.from_dense(random_sparse(40, 30)))
    x, plain = torch.randn(3, 30), (None, None, "none", "")
    for index, (place, value) in ((0, (1, -1)), (0, (3, 10**6)), (0, (2, 7)), (1, (0, -1)), (1, (2, 0))):
        tensors = list(bitmap.tensors)
        tensors[index] = tensors[index].clone()
        tensors[index][place] = value
        with pytest.raises(RuntimeError, match="invalid bitmap weight"):
            raw.spmm_bitmap(x, tensors, bitmap.sizes, *plain)
        with pytest.raises(RuntimeError, match="invalid bitmap weight"):
            raw.unpack_bitmap(tensors, bitmap.sizes)
    block_ptr, masks, values = bitmap.tensors
    for tensors, sizes, message in (
        ([block_ptr[:-1], masks, values], [40, 30], "fit together"),
        ([block_ptr, masks[:, 1:].contiguous(), values], [40, 30], "fit together"),
        ([block_ptr, masks, values[:15]], [40, 30], "fit together"),
        ([block_ptr, masks, values], [50, 30], "fit together"),
        ([block_ptr, masks, values[:-1]], [40, 30], "invalid bitmap weight"),
        ([block_ptr, masks.int(), values], [40, 30], "expected int16 masks"),
        ([block_ptr, masks, values.double()], [40, 30], "expected float32, float16 or bfloat16 values, got float64"),
        ([block_ptr, masks], [40, 30], "3 tensors"),
        ([block_ptr, masks, values], [-1, 30], "N and K"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_bitmap(x, tensors, sizes, *plain)
    with pytest.raises(RuntimeError, match="K = 30"):
        raw.spmm_bitmap(torch.randn(3, 31), list(bitmap.tensors), bitmap.sizes, *plain)
    past = masks.clone()
    past[2] = (past[2] & 0xFF) << 1  # rows 33 to 40, of which 40 is not there
    with pytest.raises(RuntimeError, match="rows past N"):
        raw.spmm_bitmap(x, [block_ptr, past, values], bitmap.sizes, *plain)


def test_opcheck_packing() -> None:
    arrays = csr_tensors(CsrWeight.from_dense(random_sparse(6, 5)))
    opcheck(raw.pack_csr.default, (random_sparse(4, 5),))
    opcheck(raw.unpack_csr.default, (*arrays, 5))
    opcheck(raw.transpose_csr.default, (*arrays, 5))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradients_equal_the_dense_ones(activation: str) -> None:
    function = ACTIVATIONS[activation][0]
    dense, filters = random_sparse(6, 5), random_sparse(6, 2, 3, 3)
    bias = torch.randn(6, requires_grad=True)
    x = torch.randn(4, 5, requires_grad=True)
    images = torch.randn(2, 4, 7, 6, requires_grad=True)
    settings = {"stride": 2, "padding": 1, "groups": 2}
    pairs = [
        (
            x,
            ops.spmm(x, CsrWeight.from_dense(dense), bias, activation=activation),
            function(F.linear(x, dense, bias)),
        ),
        (
            images,
            ops.conv2d(
                images,
                CsrWeight.from_dense(filters),
                bias,
                kernel_size=3,
                activation=activation,
                **settings,
            ),
            function(F.conv2d(images, filters, bias, **settings)),
        ),
    ]
    for inputs, sparse_y, dense_y in pairs:
        grad = torch.randn_like(dense_y)
        found = torch.autograd.grad(sparse_y, (inputs, bias), grad)
        expected = torch.autograd.grad(dense_y, (inputs, bias), grad)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Rounding to 16 bits moves an input over the knees of relu6 and hardswish, where the gradient jumps.
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(torch.float32, activation) for activation in ops.ACTIVATIONS]
    + [(dtype, activation) for dtype in DTYPES[1:] for activation in ("none", "relu", "gelu", "silu")],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_x_bias_and_residual_equal_those_in_float64(
    form: str, dtype: torch.dtype, activation: str
) -> None:
    function = ACTIVATIONS[activation][0]
    dense, filters, bias = random_sparse(16, 9), random_sparse(16, 2, 3, 3), torch.randn(16)
    settings = {"stride": 2, "padding": 1, "groups": 1 if form == "panel" else 2}
    channels = 2 * settings["groups"]
    for x, weight, residual, ours, exact in (
        (torch.randn(4, 9), dense, torch.randn(4, 16), run_spmm, F.linear),
        (
            torch.randn(2, channels, 7, 6),
            filters,
            torch.randn(2, 16, 4, 3),
            lambda *a: run_conv2d(*a, kernel_size=3, **settings),
            lambda *a: F.conv2d(*a, **settings),
        ),
    ):
        inputs = [x.to(dtype).requires_grad_(), bias.clone().requires_grad_(), residual.to(dtype).requires_grad_()]
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        y = ours(form, inputs[0], CsrWeight.from_dense(weight), *inputs[1:], activation)
        expected_y = function(exact(wide[0], weight.double(), wide[1]) + wide[2])
        grad = torch.randn(y.shape).to(dtype)
        found = torch.autograd.grad(y, inputs, grad)
        expected = torch.autograd.grad(expected_y, wide, grad.double())
        # In 16 bits every step of the gradient is rounded, and its input is: a few steps of what is added up.
        eps = torch.finfo(dtype).eps
        tolerance = 1e-4 if dtype == torch.float32 else 4 * eps
        for name, a, b in zip(("x", "bias", "residual"), found, expected, strict=True):
            assert a.dtype == (torch.float32 if name == "bias" else dtype)
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


def test_compile_fullgraph() -> None:
    weight, other = CsrWeight.from_dense(random_sparse(6, 5)), CsrWeight.from_dense(random_sparse(4, 6))

    def model(x: Tensor) -> Tensor:
        return ops.spmm(ops.spmm(x, weight, activation="relu") + 1, other)

    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


# --- bad input ---

GOOD = CsrWeight.from_dense(torch.eye(4))
POINTWISE = ([1, 1], [1, 1], [0, 0], [1, 1])


def blocks_of(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """One block with four columns."""
    row_ptr, col_idx = torch.tensor([0, 4], dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    return row_ptr, col_idx, torch.ones(4, rows)


@pytest.mark.parametrize(
    ("row_ptr", "col_idx", "message"),
    [
        ([0, 1, 2], [0, 4], "col_idx must be inside"),
        ([0, 1, 2], [-1, 0], "col_idx must be inside"),
        ([0, 2, 2], [1, 1], "strictly ascending"),
        ([0, 2, 1], [0, 1], "row_ptr must rise"),
        ([0, 1, 9], [0, 1], "row_ptr must rise"),
        ([-3, 1, 2], [0, 1], "row_ptr must rise"),
    ],
)
@pytest.mark.parametrize("rows", [1, 9])
def test_damaged_indices_are_found_in_every_call(
    row_ptr: list[int], col_idx: list[int], message: str, rows: int
) -> None:
    arrays = (torch.tensor(row_ptr, dtype=torch.int32), torch.tensor(col_idx, dtype=torch.int32))
    values, x = torch.ones(len(col_idx)), torch.randn(rows, 4)
    with pytest.raises(RuntimeError, match=message):
        raw.spmm_csr(x, *arrays, values)
    images = x.view(rows, 4, 1, 1)
    for form in (values, torch.ones(len(col_idx), 4), torch.ones(len(col_idx), 8)):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_csr(x, *arrays, form)
        with pytest.raises(RuntimeError, match=message):
            raw.conv2d_csr(images, *arrays, form, None, None, *POINTWISE)
    with pytest.raises(RuntimeError, match=r"row_ptr|col_idx"):
        raw.unpack_csr(*arrays, values, 4)
    with pytest.raises(RuntimeError, match=r"row_ptr|col_idx"):
        raw.transpose_csr(*arrays, values, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.spmm(torch.randn(2, 4).double(), GOOD), "expected float32, float16 or bfloat16 x"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(4), layout="diagonal"), "layout"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(3)), r"bias of shape \[4\]"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, torch.ones(4).half()), "float32 bias"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, activation="tanh"), "activation"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, kernel="magic"), "expected a kernel"),
        (lambda: ops.spmm(torch.tensor(1.0), GOOD), "expected x"),
        (lambda: ops.spmm(torch.randn(2, 3), GOOD), "expected 4 in dimension -1"),
        (lambda: ops.spmm(torch.randn(2, 9), GOOD), "expected 4 in dimension -1"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2), GOOD, kernel_size=1), "expected x"),
        (lambda: ops.conv2d(torch.randn(1, 1, 1, 9), GOOD, kernel_size=2), "at least 2 pixels"),
        (lambda: ops.conv2d(torch.randn(1, 3, 2, 2), GOOD, kernel_size=1), "got K = 4 for"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, stride=0), "stride"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, groups=3), "groups"),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, padding=-1), "padding"),
        (lambda: ops.spmm(torch.randn(2, 4), torch.eye(4)), "expected a CsrWeight"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, residual=torch.ones(2, 3)), r"residual of .* shape \[2, 4\], got"),
        (lambda: ops.spmm(torch.randn(2, 4), GOOD, residual=torch.ones(2, 4).half()), "residual of the output's dtype"),
        (lambda: ops.spmm(torch.randn(2, 4).half(), GOOD, residual=torch.ones(2, 4)), "residual of the output's dtype"),
        (
            lambda: ops.conv2d(torch.randn(1, 4, 2, 2), GOOD, kernel_size=1, residual=torch.ones(1, 4, 1, 1)),
            r"residual of .* shape \[1, 4, 2, 2\], got",
        ),
        (lambda: ops.conv2d(torch.randn(1, 4, 2, 2).double(), GOOD, kernel_size=1), "float16 or bfloat16 x"),
        (lambda: raw.spmm_csr(torch.randn(2, 4), *blocks_of(3)), r"blocks of 4 or 8 rows, got \[4, 3\]"),
        (lambda: raw.spmm_csr(torch.randn(2, 4), *blocks_of(0)), r"blocks of 4 or 8 rows, got \[4, 0\]"),
        (lambda: raw.spmm_csr(torch.randn(2, 3), *blocks_of(4)), "col_idx must be inside"),
        (
            lambda: raw.conv2d_csr(torch.randn(1, 8, 2, 2), *blocks_of(8), None, None, *POINTWISE, 2),
            "blocks inside of groups",
        ),
        (lambda: raw.pack_block_csr(*csr_tensors(GOOD), 4, 3), "block"),
        (lambda: raw.pack_block_csr(*csr_tensors(GOOD), 4, 8), "N"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: object, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()


def test_numpy_module_agrees() -> None:
    dense, x = random_sparse(9, 7), torch.randn(5, 7)
    arrays = _C.pack_csr(dense.numpy())
    assert (_C.unpack_csr(*arrays, cols=7) == dense.numpy()).all()
    for kernel in kernel_names("spmm"):
        y = torch.from_numpy(_C.spmm_csr(x.numpy(), *arrays, kernel=kernel))
        assert torch.equal(y, ops.spmm(x, CsrWeight.from_dense(dense), kernel=kernel))
    with pytest.raises(ValueError, match="strictly ascending"):
        _C.spmm_csr(x.numpy(), arrays[0], arrays[1][::-1].copy(), arrays[2])


def test_an_argument_on_the_meta_device_is_an_error() -> None:
    x, weight, bias = torch.randn(2, 6), CsrWeight.from_dense(torch.randn(8, 6)), torch.randn(8)
    for arguments in (
        {"bias": bias.to("meta")},
        {"bias": bias, "residual": torch.empty(2, 8, device="meta")},
    ):
        with pytest.raises(RuntimeError, match="one device"):
            ops.spmm(x, weight, **arguments)
    with pytest.raises(RuntimeError, match="one device"):
        sparsecore.nn.PanelLinear(weight, bias).to("meta")(x)
