"""linear_int8 and conv2d_int8 through every format and kernel against exact integers; threads and tracing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from float_products import DTYPES
from int8_oracle import OPERATIONS, arguments, check_exact, conv_sums, linear_sums, random_weight, variants
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from sparsecore import Int8Weight, ops
from sparsecore.formats import PackedInt8Weight
from sparsecore.ops.shared import pair

raw = torch.ops.sparsecore

each_format = pytest.mark.parametrize("format", OPERATIONS)


# --- linear ---

QUANTIZERS: list[dict[str, Any]] = [
    {},
    {"x_scale": 2.0**-5},
    {"x_scale": 2.0**-6, "x_zero_point": -11},
    {"x_scale": 0.013, "x_zero_point": 127},
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (5, 1, 1), (13, 70, 33), (67, 203, 8), (33, 64, 16)])
def test_linear(quantizer: dict[str, Any], M: int, K: int, N: int) -> None:
    weight, x, bias = random_weight(N, K), torch.randn(M, K), torch.randn(N)
    sums = linear_sums(x, weight, **quantizer)
    for packed, kernel in variants(weight):
        check_exact(ops.linear_int8(x, packed, bias, kernel=kernel, **quantizer), *sums, weight, bias=bias)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_every_dtype_with_bias_residual_and_activation(dtype: torch.dtype, activation: str) -> None:
    weight, bias = random_weight(21, 37), torch.randn(21)
    x, residual = torch.randn(3, 5, 37).to(dtype), torch.randn(3, 5, 21).to(dtype)
    sums = linear_sums(x.flatten(0, 1), weight)
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, bias, residual=residual, activation=activation, kernel=kernel)
        assert y.dtype == dtype
        assert y.shape == (3, 5, 21)
        check_exact(
            y.flatten(0, 1), *sums, weight, bias=bias, residual=residual.flatten(0, 1), activation=activation
        )  # fmt: skip


@pytest.mark.parametrize("x_zero_point", [0, -128, 127, 5])
def test_linear_of_int8_x(x_zero_point: int) -> None:
    weight = random_weight(10, 70)
    x = torch.randint(-128, 128, (6, 70), dtype=torch.int8)
    sums = linear_sums(x, weight, x_scale=0.25, x_zero_point=x_zero_point)
    residual = torch.randn(6, 10)
    for packed, kernel in variants(weight):
        options = {"x_scale": 0.25, "x_zero_point": x_zero_point, "kernel": kernel}
        y = ops.linear_int8(x, packed, residual=residual, **options)
        assert y.dtype == torch.float32
        check_exact(y, *sums, weight, residual=residual)


@pytest.mark.parametrize("y_zero_point", [0, -128, 100])
@pytest.mark.parametrize("y_scale", [2.0, 0.37, 1e-3, 1e9])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_linear_to_int8(activation: str, y_scale: float, y_zero_point: int) -> None:
    weight, x, bias = random_weight(18, 30), torch.randn(5, 30), torch.randn(18)
    sums = linear_sums(x, weight)
    options = {"activation": activation, "y_scale": y_scale, "y_zero_point": y_zero_point}
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, bias, kernel=kernel, **options)
        check_exact(y, *sums, weight, bias=bias, **options)


def test_int8_outputs_round_halves_to_even() -> None:
    weight = Int8Weight(torch.tensor([[1], [-1]], dtype=torch.int8), torch.ones(2))
    x = torch.arange(-128, 128, dtype=torch.int8)[:, None]
    halves = x.double() / 2
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, x_scale=0.5, y_scale=1.0, kernel=kernel)
        assert torch.equal(y.double(), torch.cat([halves, -halves], 1).round())


def test_channel_scales_divide_x_first() -> None:
    weight, x, scale = random_weight(7, 19), torch.randn(4, 19), torch.rand(19) + 0.5
    for quantizer in ({}, {"x_scale": 0.02, "x_zero_point": 3}):
        sums = linear_sums(x, weight, x_channel_scale=scale, **quantizer)
        for packed, kernel in variants(weight):
            check_exact(ops.linear_int8(x, packed, x_channel_scale=scale, kernel=kernel, **quantizer), *sums, weight)


def test_extremes_do_not_overflow() -> None:
    K = 65536
    for value in (-128, 127):
        weight = Int8Weight(torch.full((2, K), value, dtype=torch.int8), torch.ones(2))
        for packed, kernel in variants(weight):
            for x, zero_point, step in ((1e9, -128, 255), (-1e9, 127, -255)):
                options = {"x_scale": 1.0, "x_zero_point": zero_point, "kernel": kernel}
                y = ops.linear_int8(torch.full((2, K), x), packed, **options)
                assert torch.equal(y, torch.full((2, 2), float(value) * step * K))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_row_with_nan_or_infinity_is_nan_alone(value: float) -> None:
    weight = random_weight(3, 8)
    x = torch.randn(2, 8)
    x[1, 3] = value
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, kernel=kernel)
        check_exact(y[:1], *linear_sums(x[:1], weight), weight)
        assert y[1].isnan().all()
        q = ops.linear_int8(x, packed, y_scale=1.0, y_zero_point=9, kernel=kernel)
        assert (q[1] == 9).all()


def test_static_nan_counts_as_zero_and_infinities_as_the_ends() -> None:
    weight = Int8Weight(torch.eye(3, dtype=torch.int8), torch.ones(3))
    x = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, x_scale=1.0, x_zero_point=7, kernel=kernel)
        assert y.tolist() == [[0.0, 120.0, -135.0]]


@pytest.mark.parametrize("K", [0, 5])
@pytest.mark.parametrize("rows", [0, 1, 4])
@each_format
def test_empty_and_all_zero(format: str, rows: int, K: int) -> None:
    bias = torch.tensor([1.0, -2.0])
    packed = PackedInt8Weight.pack(Int8Weight.from_dense(torch.zeros(2, K)), format)
    assert torch.equal(ops.linear_int8(torch.randn(rows, K), packed, bias), bias.expand(rows, 2))
    y = ops.conv2d_int8(torch.randn(rows, K, 3, 3), packed, bias, kernel_size=1)
    assert torch.equal(y, bias[:, None, None].expand(rows, 2, 3, 3))
    none = PackedInt8Weight.pack(Int8Weight.from_dense(torch.zeros(0, K)), format)
    assert ops.linear_int8(torch.randn(rows, K), none).shape == (rows, 0)
    assert ops.conv2d_int8(torch.randn(rows, K, 3, 3), none, kernel_size=1).shape == (rows, 0, 3, 3)


def test_strided_input() -> None:
    weight = random_weight(6, 5)
    packed = PackedInt8Weight.pack(weight)
    x = torch.randn(5, 4).T
    assert torch.equal(ops.linear_int8(x, packed), ops.linear_int8(x.contiguous(), packed))
    wide = torch.randn(4, 10)[:, ::2]
    assert torch.equal(ops.linear_int8(wide, packed), ops.linear_int8(wide.contiguous(), packed))
    images = torch.randn(2, 3, 10, 5).transpose(1, 3)
    y = ops.conv2d_int8(images, packed, kernel_size=1)
    assert torch.equal(y, ops.conv2d_int8(images.contiguous(), packed, kernel_size=1))


# --- convolution ---

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": (1, 1)},
    {"kernel_size": (1, 1), "stride": 3, "padding": 1},
    {"kernel_size": (3, 3), "padding": 1},
    {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
    {"kernel_size": (5, 1), "padding": (1, 0)},
    {"kernel_size": (3, 3), "dilation": (2, 1), "padding": (2, 0)},
    {"kernel_size": (3, 3), "dilation": (2, 3), "padding": 3},
    {"kernel_size": (3, 2), "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": (2, 2), "padding": 4, "groups": 6},
]
each_convolution = pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)


def packing_settings(
    kernel_size: tuple[int, int], dilation: int | tuple[int, int] = 1, groups: int = 1, **_: Any
) -> dict[str, int]:
    """Segments as the layers choose them: rows of the filter where their pixels are neighbours."""
    taps = math.prod(kernel_size)
    is_by_row = groups == 1 and pair(dilation)[1] == 1
    return {"taps": taps, "segments": kernel_size[0] if is_by_row else taps, "groups": groups}


def make_conv(settings: dict[str, Any], channels: int = 6, N: int = 18) -> tuple[Int8Weight, dict[str, Any]]:
    """A weight, and the settings that conv2d_int8 takes."""
    cols = channels // settings.get("groups", 1) * math.prod(settings["kernel_size"])
    return random_weight(N, cols), {name: value for name, value in settings.items() if name != "groups"}


@each_convolution
@pytest.mark.parametrize("quantizer", QUANTIZERS[:3], ids=str)
def test_conv2d(settings: dict[str, Any], quantizer: dict[str, Any]) -> None:
    weight, given = make_conv(settings)
    x, bias = torch.randn(3, 6, 11, 8), torch.randn(18)
    sums = conv_sums(x, weight, quantizer=quantizer, **settings)
    for packed, kernel in variants(weight, **packing_settings(**settings)):
        y = ops.conv2d_int8(x, packed, bias, kernel=kernel, **given, **quantizer)
        check_exact(y, *sums, weight, bias=bias)


@each_convolution
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_conv2d_of_every_dtype_and_layout(
    settings: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    weight, given = make_conv(settings)
    x = torch.randint(-128, 128, (2, 6, 7, 9)).to(torch.int8) if dtype == torch.int8 else torch.randn(2, 6, 7, 9)
    x = x.to(dtype).contiguous(memory_format=memory_format)
    quantizer = {"x_scale": 0.03125, "x_zero_point": 4} if dtype == torch.int8 else {}
    sums = conv_sums(x, weight, quantizer=quantizer, **settings)
    residual = torch.randn(sums[0].shape).to(torch.float32 if dtype == torch.int8 else dtype)
    for packed, kernel in variants(weight, **packing_settings(**settings)):
        y = ops.conv2d_int8(
            x, packed, residual=residual, activation="relu", kernel=kernel, **given, **quantizer
        )  # fmt: skip
        assert y.dtype == residual.dtype
        # What follows a layer with int8 inputs is float32 in the layout of everything else.
        assert y.is_contiguous(memory_format=torch.contiguous_format if dtype == torch.int8 else memory_format)
        check_exact(y, *sums, weight, residual=residual, activation="relu")
        q = ops.conv2d_int8(x, packed, y_scale=0.7, y_zero_point=-3, kernel=kernel, **given, **quantizer)
        assert q.is_contiguous(memory_format=torch.channels_last)
        check_exact(q, *sums, weight, y_scale=0.7, y_zero_point=-3)


@pytest.mark.parametrize("settings", CONVOLUTIONS[2:8:5], ids=str)
def test_channel_scales_of_images(settings: dict[str, Any]) -> None:
    weight, given = make_conv(settings)
    x, scale = torch.randn(2, 6, 7, 9), torch.rand(6) + 0.5
    for quantizer in ({}, {"x_scale": 0.02, "x_zero_point": 3}):
        sums = conv_sums(x, weight, quantizer=quantizer | {"x_channel_scale": scale}, **settings)
        for packed, kernel in variants(weight, **packing_settings(**settings)):
            for images in (x, x.contiguous(memory_format=torch.channels_last)):
                options = {"x_channel_scale": scale, "kernel": kernel, **given, **quantizer}
                check_exact(ops.conv2d_int8(images, packed, **options), *sums, weight)


def test_image_with_nan_is_nan_alone() -> None:
    weight = random_weight(5, 27)
    x = torch.randn(3, 3, 6, 6)
    x[1, 2, 5, 0] = float("nan")
    for packed, kernel in variants(weight, taps=9, segments=3):
        y = ops.conv2d_int8(x, packed, kernel_size=3, kernel=kernel)
        assert y[1].isnan().all()
        check_exact(y[::2], *conv_sums(x[::2], weight, (3, 3), {}), weight)


def test_segments_by_tap_give_the_same_as_by_row() -> None:
    weight, x = random_weight(20, 45), torch.randn(2, 5, 6, 7)
    rows, taps = (PackedInt8Weight.pack(weight, taps=9, segments=segments) for segments in (3, 9))
    assert torch.equal(ops.conv2d_int8(x, rows, kernel_size=3), ops.conv2d_int8(x, taps, kernel_size=3))


# --- layers that pass int8 on ---


@each_format
def test_int8_between_layers_equals_the_float_route(format: str) -> None:
    between = {"y_scale": 0.37, "y_zero_point": -20}
    given = {"x_scale": 0.37, "x_zero_point": -20}
    first, second = (PackedInt8Weight.pack(random_weight(N, K), format) for N, K in ((40, 33), (9, 40)))
    x, bias = torch.randn(7, 33), torch.randn(40)
    inner = ops.linear_int8(x, first, bias, activation="relu", **between)
    route = ops.linear_int8(ops.linear_int8(x, first, bias, activation="relu"), second, **given)
    assert torch.equal(ops.linear_int8(inner, second, **given), route)

    filters = {"taps": 9, "segments": 3}
    settings: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    first, second = (PackedInt8Weight.pack(random_weight(N, K), format, **filters) for N, K in ((12, 45), (9, 108)))
    images, bias = torch.randn(2, 5, 8, 7), torch.randn(12)
    inner = ops.conv2d_int8(images, first, bias, activation="gelu", **settings, **between)
    route = ops.conv2d_int8(images, first, bias, activation="gelu", **settings)
    route = ops.conv2d_int8(route, second, stride=2, **settings, **given)
    assert torch.equal(ops.conv2d_int8(inner, second, stride=2, **settings, **given), route)


# --- threads, tracing, gradients ---


def test_same_bits_for_any_number_of_threads() -> None:
    weight, filters = random_weight(300, 257), random_weight(64, 144)
    x, images = torch.randn(130, 257), torch.randn(3, 16, 33, 31)
    packed = [PackedInt8Weight.pack(weight, format) for format in OPERATIONS]
    conv = [PackedInt8Weight.pack(filters, format, taps=9, segments=3) for format in OPERATIONS]

    def run() -> list[Tensor]:
        linear = [ops.linear_int8(rows, w, activation="gelu") for w in packed for rows in (x, x[:1])]
        narrow = [ops.linear_int8(x.half(), w, y_scale=0.5) for w in packed]
        return linear + narrow + [ops.conv2d_int8(images, w, kernel_size=3, padding=1) for w in conv]

    assert_same_on_any_number_of_threads(run)


@each_format
@pytest.mark.parametrize("y_scale", [None, 0.5])
def test_opcheck(format: str, y_scale: float | None) -> None:
    linear = arguments(PackedInt8Weight.pack(random_weight(6, 5), format))
    conv = arguments(PackedInt8Weight.pack(random_weight(6, 36), format, taps=9, segments=3))
    bias, inverse = torch.randn(6), torch.rand(5)
    x = torch.randn(4, 5)
    opcheck(raw.linear_int8.default, (x, *linear, bias, None, None, 0, inverse, "relu", y_scale, 0, ""))
    settings = ([3, 3], [2, 1], [1, 1], [1, 1], "relu", y_scale, 0, "")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 7, 6).contiguous(memory_format=memory_format)
        opcheck(raw.conv2d_int8.default, (x, *conv, bias, None, 0.5, 3, None, *settings))


def test_opcheck_packing() -> None:
    q = random_weight(9, 40).q
    opcheck(raw.pack_lookup.default, (q, 1, 4, 16, False))
    packed = PackedInt8Weight.pack(random_weight(9, 40), "lookup")
    opcheck(raw.unpack_lookup.default, (list(packed.tensors), packed.shape.sizes))


@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (1, 4, 1, 1), (3, 1, 5, 5), (0, 4, 7, 6), (2, 4, 1, 6)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("y_scale", [None, 0.5])
@pytest.mark.parametrize("N", [1, 6])
def test_fake_results_lie_in_memory_as_real_ones(
    shape: tuple[int, ...], memory_format: torch.memory_format, y_scale: float | None, N: int
) -> None:
    packed = PackedInt8Weight.pack(random_weight(N, shape[1]))
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    pointwise = ([1, 1], [1, 1], [0, 0], [1, 1], "none", y_scale, 0, "")
    real = raw.conv2d_int8(x, *arguments(packed), None, None, None, 0, None, *pointwise)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = raw.conv2d_int8(mode.from_tensor(x), *arguments(packed), None, None, None, 0, None, *pointwise)
    assert fake.dtype == real.dtype
    assert fake.shape == real.shape
    sizes = zip(fake.stride(), real.stride(), real.shape, strict=True)
    assert all(fake_step == step for fake_step, step, size in sizes if size > 1)


def test_compile_in_one_graph() -> None:
    conv = PackedInt8Weight.pack(random_weight(6, 36), "lookup", taps=9, segments=3)
    linear = PackedInt8Weight.pack(random_weight(5, 6), "bitmap")

    def model(x: Tensor) -> Tensor:
        images = ops.conv2d_int8(x, conv, kernel_size=3, activation="relu", y_scale=0.5)
        rows = (images.float() * 0.5).mean((2, 3))
        return ops.linear_int8(rows + 1, linear)

    x = torch.randn(2, 4, 7, 6)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@each_format
def test_backward_is_a_clear_error(format: str) -> None:
    linear, images = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, 3, 3, requires_grad=True)
    packed = PackedInt8Weight.pack(random_weight(6, 5), format)
    for y in (ops.linear_int8(linear, packed), ops.conv2d_int8(images, packed, kernel_size=1)):
        with pytest.raises(RuntimeError, match="int8 operations have no gradient"):
            y.sum().backward()
