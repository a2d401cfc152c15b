"""The depthwise operation through every kernel against dense float64; tracing, gradients, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from float_products import DTYPES, kernel_names
from oracle import ACTIVATIONS, assert_within, dense_reference
from torch import Tensor, nn
from torch.library import opcheck

from sparsecore import ops

raw = torch.ops.sparsecore
KERNELS = kernel_names("depthwise")
SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 7, "padding": 3, "stride": 2},
    {"kernel_size": (3, 5), "padding": (0, 4), "stride": (2, 1)},
    {"kernel_size": 3, "dilation": (2, 3), "padding": 3},
    {"kernel_size": 1, "stride": 3},
    {"kernel_size": 2, "padding": 4},
]
each_settings = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def conv(channels: int, multiplier: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels * multiplier, groups=channels, **settings)


def run(layer: nn.Conv2d, x: Tensor, activation: str = "none", **others: Any) -> Tensor:
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    return ops.depthwise_conv2d(x, layer.weight, layer.bias, activation=activation, **settings, **others)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_settings
def test_equals_the_dense_convolution(settings: dict[str, Any], dtype: torch.dtype, kernel: str) -> None:
    layer = conv(6, 2, **settings)
    x = torch.randn(2, 6, 13, 19).to(dtype)
    assert_within(run(layer, x, "silu", kernel=kernel), *dense_reference(layer, x, "silu"))
    y = run(layer, x)
    residual = torch.randn_like(y)
    assert_within(run(layer, x, "relu", residual=residual, kernel=kernel), *dense_reference(layer, x, "relu", residual))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [7, 14, 28, 56])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_maps_of_networks(size: int, activation: str, kernel: str) -> None:
    layer = conv(12, kernel_size=3, padding=1)
    x = torch.randn(1, 12, size, size)
    assert_within(run(layer, x, activation, kernel=kernel), *dense_reference(layer, x, activation))


def test_any_layout_of_x_and_nothing_to_compute() -> None:
    layer = conv(8, kernel_size=3, padding=1)
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(run(layer, x.to(memory_format=torch.channels_last)), run(layer, x))
    assert run(layer, x[:0]).shape == (0, 8, 9, 9)


def test_same_bits_for_any_number_of_threads() -> None:
    cases = [(conv(64, kernel_size=3, padding=1), torch.randn(3, 64, 33, 31)),
             (conv(2, kernel_size=5, padding=2), torch.randn(1, 2, 120, 130))]  # fmt: skip
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [run(layer, x, "gelu") for layer, x in cases]
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            found = [run(layer, x, "gelu") for layer, x in cases]
            assert all(map(torch.equal, found, expected)), f"{count} threads"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(activation: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 7, 6).to(dtype).requires_grad_()
    weight, bias = torch.randn(6, 1, 3, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    residual = torch.randn(2, 6, 4, 6).to(dtype).requires_grad_()
    settings = ([3, 3], [2, 1], [1, 1], [1, 1])
    opcheck(raw.depthwise_conv2d.default, (x, weight, bias, residual, *settings, activation, ""))
    opcheck(raw.depthwise_conv2d.default, (x, weight, None, None, *settings, activation, ""))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@each_settings
def test_gradients_equal_those_in_float64(settings: dict[str, Any], activation: str) -> None:
    layer = conv(3, 2, **settings)
    x = torch.randn(2, 3, 9, 11)
    residual = torch.randn_like(layer(x))
    inputs = [t.detach().clone().requires_grad_() for t in (x, layer.weight, layer.bias, residual)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    rest = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    y = ops.depthwise_conv2d(*inputs[:3], residual=inputs[3], activation=activation, **rest)
    expected_y = ACTIVATIONS[activation][0](F.conv2d(*wide[:3], groups=3, **rest) + wide[3])
    grad = torch.randn(y.shape)
    found = torch.autograd.grad(y, inputs, grad)
    expected = torch.autograd.grad(expected_y, wide, grad.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_only_the_gradients_that_are_wanted() -> None:
    weight = torch.randn(3, 1, 3, 3)
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    ops.depthwise_conv2d(x, weight, activation="relu").sum().backward()
    assert x.grad is not None
    weight.requires_grad_()
    ops.depthwise_conv2d(x.detach(), weight).sum().backward()
    assert weight.grad is not None


def test_compile_fullgraph() -> None:
    weight = torch.randn(4, 1, 3, 3)

    def model(x: Tensor) -> Tensor:
        return ops.depthwise_conv2d(x + 1, weight, padding=1, activation="relu") * 2

    x = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


X, WEIGHT = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
FOUR = ([3, 3], [1, 1], [0, 0], [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.depthwise_conv2d(X.double(), WEIGHT), "float16 or bfloat16 x"),
        (lambda: ops.depthwise_conv2d(X[0], WEIGHT), "expected x"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT[:, 0]), r"expected a weight \[N, 1, KH, KW\]"),
        (lambda: ops.depthwise_conv2d(X, torch.randn(4, 2, 3, 3)), r"expected a weight \[N, 1, KH, KW\]"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT[:3]), "a multiple of C = 4 rows, got 3"),
        (lambda: ops.depthwise_conv2d(X[:, :0], WEIGHT), "a multiple of C = 0 rows, got 4"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT.half()), "expected float32 weight"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, torch.ones(3)), r"bias of shape \[4\]"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, torch.ones(4).half()), "float32 bias"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, activation="tanh"), "activation"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, kernel="magic"), "expected a kernel"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, stride=0), "stride"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, padding=-1), "padding"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, dilation=3), "at least 7 pixels"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, padding=[1]), "two numbers for padding"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, residual=torch.ones(1, 4, 5, 5)), r"residual of .* shape"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, residual=torch.ones(1, 4, 3, 3).half()), "residual of the output's"),
        (lambda: raw.depthwise_conv2d(X, WEIGHT, None, None, [3, 4], *FOUR[1:], "none", ""), "for a filter of 3 x 4"),
        (lambda: raw.depthwise_conv2d(X, WEIGHT.flatten(), None, None, *FOUR, "none", ""), "for a filter of 3 x 3"),
        (lambda: raw.depthwise_conv2d(X, torch.tensor(1.0), None, None, *FOUR, "none", ""), "for a filter of 3 x 3"),
        (lambda: ops.depthwise_conv2d(X, WEIGHT, padding=65536, dilation=60000), "fewer than 2\\^31"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


def test_an_argument_on_the_meta_device_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="one device"):
        ops.depthwise_conv2d(X, WEIGHT.to("meta"))
