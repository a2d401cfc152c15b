"""Pooling and scale_shift through every kernel against float64; tracing, gradients, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bits import assert_same_on_any_number_of_threads
from float_products import DTYPES, kernel_names
from oracle import ACTIVATIONS, UNIT, assert_within, gamma
from torch import Tensor
from torch.library import opcheck

from sparsecore import ops

raw = torch.ops.sparsecore
WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (1, 5), "stride": (2, 3), "padding": (0, 2)},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 5, "stride": (4, 5), "padding": 2, "ceil_mode": True},
]
MAX_WINDOWS = [*WINDOWS, {"kernel_size": (2, 3), "stride": 1, "padding": 1, "dilation": (3, 2)}]
AVG_WINDOWS = [
    *WINDOWS,
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": 3, "padding": 1, "divisor_override": 7},
]

# --- results ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("pool2d"))
@pytest.mark.parametrize("window", MAX_WINDOWS, ids=str)
def test_max_pool2d_equals_torch(kernel: str, dtype: torch.dtype, window: dict[str, Any]) -> None:
    for size in ((12, 13), (7, 7), (15, 70)):
        x = torch.randn(2, 3, *size).to(dtype)
        assert torch.equal(ops.max_pool2d(x, **window, kernel=kernel), F.max_pool2d(x, **window))
        x[torch.rand_like(x) < 0.02] = torch.nan
        x[torch.rand_like(x) < 0.02] = -torch.inf
        torch.testing.assert_close(
            ops.max_pool2d(x, **window, kernel=kernel), F.max_pool2d(x, **window), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("pool2d"))
@pytest.mark.parametrize("window", AVG_WINDOWS, ids=str)
def test_avg_pool2d(kernel: str, dtype: torch.dtype, window: dict[str, Any]) -> None:
    for size in ((12, 13), (7, 7), (15, 70)):
        x = torch.randn(2, 3, *size).to(dtype)
        y = ops.avg_pool2d(x, **window, kernel=kernel)
        assert y.dtype == dtype
        assert_within(y, F.avg_pool2d(x.double(), **window), gamma(27) * F.avg_pool2d(x.double().abs(), **window))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("pool2d"))
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 300), (56, 55)])
def test_global_avg_pool2d(kernel: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    x = torch.randn(2, 5, *size).to(dtype)
    exact, magnitude = (F.adaptive_avg_pool2d(t, 1) for t in (x.double(), x.double().abs()))
    assert_within(ops.global_avg_pool2d(x, kernel=kernel), exact, gamma(size[0] * size[1] + 2) * magnitude)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernel_names("scale_shift"))
def test_scale_shift(kernel: str, dtype: torch.dtype, activation: str) -> None:
    function, slope, added = ACTIVATIONS[activation]
    for shape in ((2, 40), (3, 5, 7), (2, 3, 5, 30), (1, 2, 3, 4, 5)):
        x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        batch, channels, *rest = shape
        for scale in (None, torch.randn(channels), torch.randn(batch, channels)):
            for shift in (None, torch.randn(channels)):
                for other in (None, residual):
                    terms = [x.double() if scale is None else x.double() * wide(scale, len(rest))]
                    terms += [] if shift is None else [wide(shift, len(rest))]
                    terms += [] if other is None else [other.double()]
                    exact, magnitude = function(sum(terms)), sum(term.abs() for term in terms)
                    bound = slope * gamma(4) * magnitude
                    y = ops.scale_shift(x, scale, shift, residual=other, activation=activation, kernel=kernel)
                    assert y.dtype == dtype
                    assert_within(y, exact, bound + (added + UNIT) * (exact.abs() + bound))


def wide(values: Tensor, rest: int) -> Tensor:
    """Values per channel, or per image and channel, in float64 and with dimensions for the pixels."""
    return values.double().view(*([1] * (2 - values.dim())), *values.shape, *([1] * rest))


def test_scale_shift_is_batch_norm() -> None:
    norm = torch.nn.BatchNorm2d(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 9, 9)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shift = (norm.bias - norm.running_mean * scale).detach()
    torch.testing.assert_close(ops.scale_shift(x, scale, shift, activation="relu"), norm(x).relu())


def test_any_memory_format_is_read() -> None:
    x = torch.randn(2, 6, 9, 9).to(memory_format=torch.channels_last)
    residual = torch.randn(2, 9, 9, 6).permute(0, 3, 1, 2)
    assert torch.equal(ops.max_pool2d(x, 3), F.max_pool2d(x, 3))
    assert torch.equal(ops.scale_shift(x, residual=residual), x + residual)
    assert ops.scale_shift(x).is_contiguous()


def test_no_images() -> None:
    assert ops.max_pool2d(torch.empty(0, 3, 8, 8), 2).shape == (0, 3, 4, 4)
    assert ops.avg_pool2d(torch.empty(2, 0, 8, 8), 2).shape == (2, 0, 4, 4)
    assert ops.global_avg_pool2d(torch.empty(0, 3, 8, 8)).shape == (0, 3, 1, 1)
    assert ops.scale_shift(torch.empty(0, 3), torch.ones(3)).shape == (0, 3)
    assert ops.scale_shift(torch.empty(2, 3, 0), torch.ones(2, 3)).shape == (2, 3, 0)


def test_same_bits_for_any_number_of_threads() -> None:
    for shape in ((3, 17, 63, 65), (1, 1, 500, 600)):
        x, scale = torch.randn(shape), torch.randn(shape[:2])

        def run(x: Tensor = x, scale: Tensor = scale) -> list[Tensor]:
            return [
                ops.max_pool2d(x, 3, 2, 1),
                ops.avg_pool2d(x, 3, 1, 1),
                ops.global_avg_pool2d(x),
                ops.scale_shift(x, scale, activation="silu"),
            ]

        assert_same_on_any_number_of_threads(run)


# --- tracing and gradients ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, 9).to(dtype).requires_grad_()
    opcheck(raw.max_pool2d.default, (x, [3, 2], [2, 1], [1, 1], [1, 2], True, ""))
    opcheck(raw.avg_pool2d.default, (x, [3, 2], [2, 1], [1, 1], True, False, 0, ""))
    opcheck(raw.avg_pool2d.default, (x, [3, 2], [2, 1], [0, 0], False, True, 5, ""))
    opcheck(raw.global_avg_pool2d.default, (x, ""))
    scale, gate, shift = (torch.randn(size, requires_grad=True) for size in ((3,), (2, 3), (3,)))
    residual = torch.randn_like(x).requires_grad_()
    opcheck(raw.scale_shift.default, (x, scale, shift, residual, "silu", ""))
    opcheck(raw.scale_shift.default, (x, gate, None, None, "none", ""))
    opcheck(raw.scale_shift.default, (x, None, None, None, "sigmoid", ""))


def check_gradients(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    exact_leaves = [tensor.double().requires_grad_() for tensor in inputs]
    y, exact = ours(*leaves), reference(*exact_leaves)
    grad = torch.randn(y.shape).to(y.dtype)
    found = torch.autograd.grad(y, leaves, grad)
    expected = torch.autograd.grad(exact, exact_leaves, grad.double())
    for leaf, a, b in zip(leaves, found, expected, strict=True):
        assert a.dtype == leaf.dtype
        largest = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_pooling(dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    x = torch.randperm(2 * 3 * 9 * 10)[:540].view(2, 3, 9, 10).div(128).to(dtype)
    # In 16 bits some numbers are equal; the exact pooling is of the same ones, and takes the same of them.
    for window in MAX_WINDOWS:
        check_gradients(
            lambda t, w=window: ops.max_pool2d(t, **w), lambda t, w=window: F.max_pool2d(t, **w), [x], tolerance
        )
    for window in AVG_WINDOWS:
        check_gradients(
            lambda t, w=window: ops.avg_pool2d(t, **w), lambda t, w=window: F.avg_pool2d(t, **w), [x], tolerance
        )
    check_gradients(ops.global_avg_pool2d, lambda t: F.adaptive_avg_pool2d(t, 1), [x], tolerance)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5)])
def test_gradients_of_scale_shift(activation: str, shape: tuple[int, ...]) -> None:
    function, rest = ACTIVATIONS[activation][0], len(shape) - 2
    x, residual, shift = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])

    def ours(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return ops.scale_shift(x, scale, shift, residual=residual, activation=activation)

    def reference(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return function(x * wide(scale, rest) + wide(shift, rest) + residual)

    for scale in (torch.randn(shape[1]), torch.randn(shape[:2])):
        check_gradients(ours, reference, [x, scale, shift, residual], 1e-5)


def test_gradients_of_scale_shift_in_16_bits() -> None:
    x, scale, shift = torch.randn(2, 3, 4, 5).bfloat16(), torch.randn(2, 3), torch.randn(3)
    check_gradients(
        lambda x, scale, shift: ops.scale_shift(x, scale, shift, activation="gelu"),
        lambda x, scale, shift: F.gelu(x * wide(scale, 2) + wide(shift, 2)),
        [x, scale, shift],
        0.05,
    )
    plain = x.clone().requires_grad_()
    ops.scale_shift(plain, activation="relu").sum().backward()
    assert plain.grad is not None
    assert torch.equal(plain.grad, (x > 0).to(x.dtype))


def test_compile_fullgraph() -> None:
    scale, gate = torch.randn(3), torch.rand(2, 3)

    def model(x: Tensor) -> Tensor:
        y = ops.scale_shift(ops.max_pool2d(x, 3, 2, 1), scale, activation="hardsigmoid")
        return ops.global_avg_pool2d(ops.scale_shift(ops.avg_pool2d(y, 2), gate))

    x = torch.randn(2, 3, 16, 18)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


# --- bad input ---

X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.max_pool2d(X.double(), 2), "expected float32, float16 or bfloat16 x"),
        (lambda: ops.max_pool2d(X[0], 2), r"expected x \[batch, C, H, W\], got shape \[3, 8, 8\]"),
        (lambda: ops.max_pool2d(X, 9), "expected an input of at least 9 pixels"),
        (lambda: ops.max_pool2d(X, 0), "kernel_size from 1"),
        (lambda: ops.max_pool2d(X, 2, 0), "stride from 1"),
        (lambda: ops.max_pool2d(X, 3, 2, -1), "padding from 0"),
        (lambda: ops.max_pool2d(X, 3, 2, 2), "padding of at most half of a window, 1, got 2"),
        (lambda: ops.max_pool2d(X, 3, 2, 1, 0), "dilation from 1"),
        (lambda: ops.max_pool2d(X, (3, 3, 3)), "two numbers for kernel_size, got 3"),
        (lambda: ops.max_pool2d(X[:, :, :0], 1), "at least one pixel"),
        (lambda: ops.max_pool2d(X, 2, kernel="magic"), "expected a kernel that this CPU and shape allow"),
        (lambda: ops.avg_pool2d(X.int(), 2), "expected float32, float16 or bfloat16 x"),
        (lambda: ops.avg_pool2d(X, 2, padding=2), "padding of at most half of a window, 1, got 2"),
        (lambda: ops.avg_pool2d(X, 2, divisor_override=0), "divisor_override that is not 0"),
        (lambda: ops.avg_pool2d(X, 20, ceil_mode=True, stride=2), "expected an input of at least 19 pixels"),
        (lambda: ops.global_avg_pool2d(X[0]), "expected x"),
        (lambda: ops.global_avg_pool2d(X[:, :, :, :0]), "at least one pixel"),
        (lambda: ops.global_avg_pool2d(X, kernel="magic"), "expected a kernel"),
        (lambda: ops.scale_shift(torch.randn(3)), r"expected x \[batch, C, ...\], got shape \[3\]"),
        (lambda: ops.scale_shift(X.double()), "expected float32, float16 or bfloat16 x"),
        (lambda: ops.scale_shift(X, torch.ones(4)), r"expected scale of shape \[3\] or \[2, 3\], got \[4\]"),
        (lambda: ops.scale_shift(X, torch.ones(3, 2)), r"scale of shape \[3\] or \[2, 3\], got \[3, 2\]"),
        (lambda: ops.scale_shift(X, torch.ones(2, 3, 1, 1)), r"got \[2, 3, 1, 1\]"),
        (lambda: ops.scale_shift(X, torch.ones(3).half()), "expected float32 scale, got float16"),
        (lambda: ops.scale_shift(X, torch.ones(3, 2).T), "expected contiguous scale"),
        (lambda: ops.scale_shift(X, None, torch.ones(2)), r"shift of shape \[3\], got \[2\]"),
        (lambda: ops.scale_shift(X, None, torch.ones(3).half()), "expected float32 shift, got float16"),
        (lambda: ops.scale_shift(X, residual=X[:1]), "residual of the output's shape"),
        (lambda: ops.scale_shift(X, residual=X.half()), "residual of the output's dtype"),
        (lambda: ops.scale_shift(X, activation="tanh"), "expected activation none, .* or hardsigmoid, got 'tanh'"),
        (lambda: ops.scale_shift(X, kernel="magic"), "expected a kernel"),
        (lambda: ops.scale_shift(X, torch.ones(3, device="meta")), "one device|on the CPU"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()
