"""Products and convolutions with float weights: tracing, and gradients against the dense ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from float_products import (
    CONV2D,
    DTYPES,
    FORMS,
    ONE_GROUP,
    SPMM,
    csr_tensors,
    packed,
    random_sparse,
    run_conv2d,
    run_spmm,
)
from oracle import ACTIVATIONS
from torch import Tensor, nn
from torch.library import opcheck

import sparsecore
from sparsecore import CsrWeight, ops

raw = torch.ops.sparsecore


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
        ("jit", torch.float32, True),
        ("jit", torch.bfloat16, False),
    ],
    ids=str,
)
def test_opcheck_formats_and_residual(form: str, dtype: torch.dtype, has_residual: bool) -> None:
    weight, filters = CsrWeight.from_dense(random_sparse(8, 5)), CsrWeight.from_dense(random_sparse(8, 2, 3, 3))
    bias = torch.randn(8, requires_grad=True)
    x = torch.randn(4, 5).to(dtype).requires_grad_()
    residual = torch.randn(4, 8).to(dtype).requires_grad_() if has_residual else None
    spmm, conv2d = SPMM.get(form, raw.spmm_csr), CONV2D.get(form, raw.conv2d_csr)
    opcheck(spmm.default, (x, *packed(form, weight, 2), bias, residual, "relu", "rows", ""))
    x = torch.randn(2, 2, 7, 6).to(dtype).requires_grad_()
    residual = torch.randn(2, 8, 4, 6).to(dtype).requires_grad_() if has_residual else None
    settings = ([3, 3], [2, 1], [1, 1], [1, 1], *([] if form in ONE_GROUP else [1]))
    opcheck(conv2d.default, (x, *packed(form, filters, 9, [3, 3]), bias, residual, *settings, "none", ""))


def test_opcheck_packing() -> None:
    arrays = csr_tensors(CsrWeight.from_dense(random_sparse(6, 5)))
    opcheck(raw.pack_csr.default, (random_sparse(4, 5),))
    opcheck(raw.unpack_csr.default, (*arrays, 5))
    opcheck(raw.transpose_csr.default, (*arrays, 5))


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
    settings = {"stride": 2, "padding": 1, "groups": 1 if form in ONE_GROUP else 2}
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
