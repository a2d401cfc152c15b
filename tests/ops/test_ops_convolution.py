"""conv2d in every format, dtype and kernel against dense float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from float_products import DTYPES, FORMS, ONE_GROUP, form_kernels, kernel_names, random_sparse, run_conv2d
from oracle import assert_within, dense_reference
from torch import nn

import sparsecore
from sparsecore import CsrWeight, ops

# Groups are for the formats that have them.
each_settings = pytest.mark.parametrize(
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


@pytest.mark.parametrize("kernel", kernel_names("conv2d"))
@pytest.mark.parametrize("activation", ["none", "silu"])
@each_settings
def test_conv2d(kernel: str, activation: str, settings: dict[str, Any]) -> None:
    conv = nn.Conv2d(8, 16, **settings)
    conv.weight.data = random_sparse(*conv.weight.shape)
    weight = CsrWeight.from_dense(conv.weight)
    x = torch.randn(2, 8, 13, 10)
    y = ops.conv2d(x, weight, conv.bias, activation=activation, kernel=kernel, **settings)
    assert_within(y, *dense_reference(conv, x, activation))


@pytest.mark.parametrize("kernel", kernel_names("conv2d_panel"))
@each_settings
def test_conv2d_panel(kernel: str, settings: dict[str, Any]) -> None:
    settings = settings | {"groups": 1}
    conv = nn.Conv2d(70, 90, **settings)
    conv.weight.data = random_sparse(*conv.weight.shape)
    layer = sparsecore.nn.PanelConv2d.from_dense(conv, activation="silu", kernel=kernel)
    if layer.is_product:
        return
    x = torch.randn(2, 70, 13, 10)
    assert_within(layer(x), *dense_reference(conv, x, "silu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@each_settings
def test_conv2d_of_every_format_and_dtype_with_residual(
    form: str, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    if form in ONE_GROUP:
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
