"""linear_int8 and conv2d_int8 through every format and kernel against exact integers; tracing, threads, bad input."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import ACTIVATIONS, UNIT, assert_within
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from sparsecore import _C, Int8Weight, ops
from sparsecore.errors import FormatError
from sparsecore.formats import PackedInt8Weight

raw = torch.ops.sparsecore

OPERATIONS = {"int8": "gemm_int8", "bitmap": "bitmap_int8", "lookup": "lookup_int8"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Packing = tuple[int, int, bool]
# Safe pairs are right for every kernel.
PACKINGS: list[Packing] = [(16, 64, True), (16, 16, True), (8, 16, True), (4, 16, True), (4, 128, True)]

each_format = pytest.mark.parametrize("format", OPERATIONS)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- weights, and the kernels that run them ---


def random_weight(N: int, K: int, density: float = 0.4) -> Int8Weight:
    """All integers, -128 too; scales are powers of two, so that sums are scaled exactly."""
    q = torch.randint(-128, 128, (N, K)) * (torch.rand(N, K) < density)
    return Int8Weight(q.to(torch.int8), 2.0 ** -torch.arange(N).remainder(8).float())


@functools.cache
def packings_of(format: str, kernel: str) -> list[Packing]:
    """The packings that a kernel supports: an unsupported one is an error with the names of those that do."""
    weight, found = Int8Weight.from_dense(torch.eye(4)), []
    for packing in PACKINGS:
        packed = PackedInt8Weight.pack(weight, format, packing=packing)
        try:
            ops.linear_int8(torch.ones(1, 4), packed, kernel=kernel)
        except RuntimeError as error:
            assert "expected a kernel" in str(error)
        else:
            found.append(packing)
    return found


def variants(weight: Int8Weight, **settings: int) -> Iterator[tuple[PackedInt8Weight, str]]:
    """Every format and kernel of this machine, with a weight packed for it; first the ones that are chosen here."""
    for format, operation in OPERATIONS.items():
        yield PackedInt8Weight.pack(weight, format, **settings), ""
        for row in _C.kernels():
            if row["op"] != operation or not row["available"]:
                continue
            packings = packings_of(format, row["name"])
            assert packings, row["name"]
            for packing in packings:
                yield PackedInt8Weight.pack(weight, format, packing=packing, **settings), row["name"]


# --- the contract in exact integers, then in the float32 steps that ops.h states ---


def quantized(
    x: Tensor, x_scale: float | None = None, x_zero_point: int = 0, x_channel_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Integers less their zero point in float64, and a scale per image, of ``x [images, ...]``."""
    if x.dtype == torch.int8:
        assert x_scale is not None
        return x.double() - x_zero_point, torch.full((len(x),), x_scale)
    x = x.float()
    if x_channel_scale is not None:
        x = x * x_channel_scale.reciprocal().view(-1, *[1] * (x.dim() - 2))
    if x_scale is not None:
        scale = torch.full((len(x),), x_scale)
    else:
        absmax = x.abs().flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))
        scale = torch.where(absmax == 0, torch.ones_like(absmax), absmax / 127)
        scale[~absmax.isfinite()] = torch.nan
    q = torch.round(x * scale.reciprocal().view(-1, *[1] * (x.dim() - 1))) + x_zero_point
    q = q.nan_to_num(x_zero_point, 127, -128).clamp(-128, 127)
    return q.double() - x_zero_point, scale


def check(
    y: Tensor,
    acc: Tensor,
    x_scale: Tensor,
    weight: Int8Weight,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    y_scale: float | None = None,
    y_zero_point: int = 0,
) -> None:
    """Hold y against exact sums ``[images, N, ...]``: equal, but for the error that an activation may have."""
    rest = [1] * (acc.dim() - 2)
    scale = (x_scale[:, None] * weight.scale).view(len(x_scale), -1, *rest)
    v = acc.float().double() * scale.double()
    if bias is not None:
        v = v + bias.double().view(-1, *rest)
    v = v.float()
    if residual is not None:
        v = v + residual.float()
    function, _, added = ACTIVATIONS[activation]
    if y_scale is not None:
        assert added == 0
        q = torch.round(function(v) * torch.tensor(y_scale).reciprocal()) + y_zero_point
        assert torch.equal(y, q.nan_to_num(y_zero_point).clamp(-128, 127).to(torch.int8))
    elif added == 0:
        assert torch.equal(y.nan_to_num(12345), function(v).to(y.dtype).nan_to_num(12345))
    else:
        exact = function(v.double())
        assert_within(y, exact, added * v.double().abs() + UNIT * exact.abs() * 2)


def linear_sums(x: Tensor, weight: Int8Weight, **quantizer: Any) -> tuple[Tensor, Tensor]:
    q, scale = quantized(x, **quantizer)
    return q @ weight.q.double().T, scale


def conv_sums(
    x: Tensor, weight: Int8Weight, kernel_size: tuple[int, int], quantizer: dict[str, Any], **settings: Any
) -> tuple[Tensor, Tensor]:
    q, scale = quantized(x, **quantizer)
    filters = weight.q.double().view(weight.shape[0], -1, *kernel_size)
    return F.conv2d(q, filters, **settings), scale


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
        check(ops.linear_int8(x, packed, bias, kernel=kernel, **quantizer), *sums, weight, bias=bias)


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
        check(
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
        check(y, *sums, weight, residual=residual)


@pytest.mark.parametrize("y_zero_point", [0, -128, 100])
@pytest.mark.parametrize("y_scale", [2.0, 0.37, 1e-3, 1e9])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_linear_to_int8(activation: str, y_scale: float, y_zero_point: int) -> None:
    weight, x, bias = random_weight(18, 30), torch.randn(5, 30), torch.randn(18)
    sums = linear_sums(x, weight)
    options = {"activation": activation, "y_scale": y_scale, "y_zero_point": y_zero_point}
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, bias, kernel=kernel, **options)
        check(y, *sums, weight, bias=bias, **options)


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
            check(ops.linear_int8(x, packed, x_channel_scale=scale, kernel=kernel, **quantizer), *sums, weight)


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
        check(y[:1], *linear_sums(x[:1], weight), weight)
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
    is_by_row = groups == 1 and ops._pair(dilation)[1] == 1
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
        check(y, *sums, weight, bias=bias)


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
        assert y.is_contiguous(memory_format=memory_format)
        check(y, *sums, weight, residual=residual, activation="relu")
        q = ops.conv2d_int8(x, packed, y_scale=0.7, y_zero_point=-3, kernel=kernel, **given, **quantizer)
        assert q.is_contiguous(memory_format=torch.channels_last)
        check(q, *sums, weight, y_scale=0.7, y_zero_point=-3)


@pytest.mark.parametrize("settings", CONVOLUTIONS[2:8:5], ids=str)
def test_channel_scales_of_images(settings: dict[str, Any]) -> None:
    weight, given = make_conv(settings)
    x, scale = torch.randn(2, 6, 7, 9), torch.rand(6) + 0.5
    for quantizer in ({}, {"x_scale": 0.02, "x_zero_point": 3}):
        sums = conv_sums(x, weight, quantizer=quantizer | {"x_channel_scale": scale}, **settings)
        for packed, kernel in variants(weight, **packing_settings(**settings)):
            for images in (x, x.contiguous(memory_format=torch.channels_last)):
                options = {"x_channel_scale": scale, "kernel": kernel, **given, **quantizer}
                check(ops.conv2d_int8(images, packed, **options), *sums, weight)


def test_image_with_nan_is_nan_alone() -> None:
    weight = random_weight(5, 27)
    x = torch.randn(3, 3, 6, 6)
    x[1, 2, 5, 0] = float("nan")
    for packed, kernel in variants(weight, taps=9, segments=3):
        y = ops.conv2d_int8(x, packed, kernel_size=3, kernel=kernel)
        assert y[1].isnan().all()
        check(y[::2], *conv_sums(x[::2], weight, (3, 3), {}), weight)


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


def test_same_bits_for_any_number_of_threads(threads: None) -> None:
    weight, filters = random_weight(300, 257), random_weight(64, 144)
    x, images = torch.randn(130, 257), torch.randn(3, 16, 33, 31)
    packed = [PackedInt8Weight.pack(weight, format) for format in OPERATIONS]
    conv = [PackedInt8Weight.pack(filters, format, taps=9, segments=3) for format in OPERATIONS]

    def run() -> list[Tensor]:
        linear = [ops.linear_int8(rows, w, activation="gelu") for w in packed for rows in (x, x[:1])]
        narrow = [ops.linear_int8(x.half(), w, y_scale=0.5) for w in packed]
        return linear + narrow + [ops.conv2d_int8(images, w, kernel_size=3, padding=1) for w in conv]

    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert all(map(torch.equal, run(), expected)), f"{count} threads"


def arguments(packed: PackedInt8Weight) -> tuple[Any, ...]:
    """What the raw operations take for a weight."""
    return list(packed.tensors), packed.shape.sizes, packed.format, packed.scale, packed.weight_sum


@each_format
@pytest.mark.parametrize("y_scale", [None, 0.5])
def test_opcheck(format: str, y_scale: float | None) -> None:
    linear = arguments(PackedInt8Weight.pack(random_weight(6, 5), format))
    conv = arguments(PackedInt8Weight.pack(random_weight(6, 36), format, taps=9, segments=3))
    bias, inverse = torch.randn(6, requires_grad=True), torch.rand(5)
    x = torch.randn(4, 5, requires_grad=True)
    opcheck(raw.linear_int8.default, (x, *linear, bias, None, None, 0, inverse, "relu", y_scale, 0, ""))
    settings = ([3, 3], [2, 1], [1, 1], [1, 1], "relu", y_scale, 0, "")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 7, 6).contiguous(memory_format=memory_format).requires_grad_()
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


# --- bad input ---


def make_packed(format: str) -> PackedInt8Weight:
    """Two blocks at least for every number of lanes."""
    return PackedInt8Weight.pack(random_weight(40, 30), format)


def run_raw(packed: PackedInt8Weight, **changes: Any) -> Tensor:
    names = ("tensors", "sizes", "format", "scale", "weight_sum")
    weight = dict(zip(names, arguments(packed), strict=True)) | changes
    rest = (None, None, None, 0, None, "none", None, 0, "")
    return raw.linear_int8(torch.randn(3, 30), *weight.values(), *rest)


@each_format
def test_wrong_sizes_and_tensors(format: str) -> None:
    packed = make_packed(format)
    sizes, tensors = packed.shape.sizes, list(packed.tensors)
    for count in (0, 5, 7):
        with pytest.raises(RuntimeError, match=rf"expected sizes \[N, K, .*got {count} numbers"):
            run_raw(packed, sizes=(sizes * 2)[:count])
    for index, value in (
        (0, -1),
        (0, 2**40),
        (1, -1),
        (2, 0),
        (2, 7),
        (3, 0),
        (3, 17),
        (4, 0),
        (4, 129),
        (5, 0),
        (5, 3),
    ):
        with pytest.raises(RuntimeError, match="expected possible sizes"):
            run_raw(packed, sizes=[value if i == index else size for i, size in enumerate(sizes)])
    for more in (tensors[:-1], [*tensors, tensors[0]], []):
        with pytest.raises(RuntimeError, match=f"expected {len(tensors)} packed tensors, got {len(more)}"):
            run_raw(packed, tensors=more)
    with pytest.raises(RuntimeError, match="weight of a linear layer"):
        run_raw(packed, sizes=PackedInt8Weight.pack(random_weight(40, 30), format, groups=2).shape.sizes)
    with pytest.raises(RuntimeError, match="expected a format of int8, bitmap, lookup, got 'csr'"):
        run_raw(packed, format="csr")


@each_format
def test_tensors_of_another_type_or_size(format: str) -> None:
    packed = make_packed(format)
    last = {"int8": 0, "bitmap": 1, "lookup": 3}[format]  # sizes of the later ones say how much there is
    for index, tensor in enumerate(packed.tensors):
        for other in (tensor.float(), tensor[None], torch.stack([tensor, tensor], 1)[:, 0], tensor[:-1], tensor[:0]):
            if index > last and other.dim() == 1 and other.dtype == tensor.dtype and other.is_contiguous():
                continue
            tensors = [other if i == index else t for i, t in enumerate(packed.tensors)]
            with pytest.raises(RuntimeError, match="expected"):
                run_raw(packed, tensors=tensors)
    with pytest.raises(RuntimeError, match="expected scale of shape"):
        run_raw(packed, scale=packed.scale[:-1])
    with pytest.raises(RuntimeError, match=r"expected weight_sum \[40\], got 39"):
        run_raw(packed, weight_sum=packed.weight_sum[:-1])


def damaged(packed: PackedInt8Weight, index: int, at: int, value: int) -> list[Tensor]:
    tensors = [tensor.clone() for tensor in packed.tensors]
    tensors[index][at] = value
    return tensors


@pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, 3000])
def test_damaged_bitmap_pointers(value: int) -> None:
    packed = make_packed("bitmap")
    for at in range(packed.tensors[1].numel() - 1):
        with pytest.raises(RuntimeError, match="invalid bitmap weight: value_ptr"):
            run_raw(packed, tensors=damaged(packed, 1, at, value))


def test_damaged_bitmap_masks_read_nothing_outside() -> None:
    packed = make_packed("bitmap")
    masks, value_ptr, values = packed.tensors
    for value_count in (0, 1, 60, values.numel() - 128):
        few = values[: value_count + 128].clone()
        pointers = value_ptr.clamp_max(value_count)
        y = run_raw(packed, tensors=[torch.full_like(masks, 255), pointers, few])
        assert y.shape == (3, 40)
    with pytest.raises(RuntimeError, match="bytes after them"):
        run_raw(packed, tensors=[masks, value_ptr, values[:127]])


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, -1), (0, 2**31 - 1), (1, -1), (1, 2**31 - 1), (2, -1), (2, 1000), (3, 0), (3, 7), (3, 255)],
)
def test_damaged_lookup_tensors(index: int, value: int) -> None:
    packed = make_packed("lookup")
    for at in (0, packed.tensors[index].numel() // 2, -1):
        tensors = damaged(packed, index, at, value)
        with pytest.raises(RuntimeError, match="invalid lookup weight: .*; pack it again"):
            run_raw(packed, tensors=tensors)
        with pytest.raises(RuntimeError, match="invalid lookup weight: .*; pack it again"):
            raw.unpack_lookup(tensors, packed.shape.sizes)


def test_fewer_slots_than_steps() -> None:
    packed = make_packed("lookup")
    slots = packed.tensors[4]
    with pytest.raises(RuntimeError, match="invalid lookup weight: step_ptr"):
        run_raw(packed, tensors=[*packed.tensors[:4], slots[:-1]])


X, EYE = torch.randn(2, 4), PackedInt8Weight.pack(Int8Weight.from_dense(torch.eye(4)))
IMAGES = torch.randn(1, 4, 5, 5)
CONV = PackedInt8Weight.pack(Int8Weight.from_dense(torch.ones(6, 36)), taps=9, segments=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.linear_int8(torch.randn(2, 5), EYE), r"expected x \[..., K = 4\], got shape \[2, 5\]"),
        (lambda: ops.linear_int8(torch.tensor(1.0), EYE), r"expected x \[..., K\]"),
        (lambda: ops.linear_int8(X.double(), EYE), "expected float32, float16, bfloat16 or int8 x"),
        (lambda: ops.linear_int8(X.to(torch.int8), EYE), "expected an x_scale with int8 x"),
        (lambda: ops.linear_int8(X, EYE, x_scale=-1.0), "positive finite x_scale, got -1"),
        (lambda: ops.linear_int8(X, EYE, x_scale=0.0), "positive finite x_scale"),
        (lambda: ops.linear_int8(X, EYE, x_scale=math.inf), "positive finite x_scale"),
        (lambda: ops.linear_int8(X, EYE, x_scale=math.nan), "positive finite x_scale"),
        (lambda: ops.linear_int8(X, EYE, x_scale=1.0, x_zero_point=128), r"x_zero_point in \[-128, 127\], got 128"),
        (lambda: ops.linear_int8(X, EYE, x_zero_point=3), "x_zero_point 0 without an x_scale"),
        (lambda: ops.linear_int8(X, EYE, y_scale=0.0), "positive finite y_scale"),
        (lambda: ops.linear_int8(X, EYE, y_scale=math.nan), "positive finite y_scale"),
        (lambda: ops.linear_int8(X, EYE, y_scale=1.0, y_zero_point=-129), r"y_zero_point in \[-128, 127\]"),
        (lambda: ops.linear_int8(X, EYE, y_scale=1.0, residual=X), "no residual with int8 outputs"),
        (lambda: ops.linear_int8(X, EYE, residual=X[:1]), r"residual of .* shape \[2, 4\], got"),
        (lambda: ops.linear_int8(X, EYE, residual=X.half()), "residual of the output's dtype"),
        (lambda: ops.linear_int8(X, EYE, x_channel_scale=torch.ones(3)), r"x_channel_inverse of shape \[4\]"),
        (
            lambda: ops.linear_int8(X.to(torch.int8), EYE, x_scale=1.0, x_channel_scale=torch.ones(4)),
            "float x with x_channel_inverse",
        ),
        (lambda: ops.linear_int8(X, EYE, torch.ones(3)), r"bias of shape \[4\]"),
        (lambda: ops.linear_int8(X, EYE, torch.ones(4).half()), "float32 bias"),
        (lambda: ops.linear_int8(X, EYE, activation="tanh"), "expected activation"),
        (lambda: ops.linear_int8(X, EYE, kernel="magic"), r"expected a kernel .*gemm_u8s8_scalar.*got 'magic'"),
        (lambda: ops.linear_int8(X, EYE, kernel="lookup_u8s8_scalar"), "expected a kernel"),
        (lambda: ops.linear_int8(X, torch.eye(4)), "expected a PackedInt8Weight, got Tensor"),
        (lambda: ops.linear_int8(X, Int8Weight.from_dense(torch.eye(4))), "expected a PackedInt8Weight, got Int8W"),
        (lambda: ops.linear_int8(X, EYE, torch.ones(4).to("meta")), "one device"),
        (lambda: ops.conv2d_int8(IMAGES, torch.eye(4), kernel_size=1), "expected a PackedInt8Weight"),
        (lambda: ops.conv2d_int8(IMAGES[0], CONV, kernel_size=3), r"expected x \[batch, C, H, W\]"),
        (lambda: ops.conv2d_int8(IMAGES.double(), CONV, kernel_size=3), "expected float32, float16, bfloat16"),
        (lambda: ops.conv2d_int8(IMAGES[:, :3], CONV, kernel_size=3), "for 3 channels in 1 groups and 3x3 filters"),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=1), "got K = 36"),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, dilation=2), "packed in 9 segments, got 3"),
        (lambda: ops.conv2d_int8(IMAGES[:, :, :2], CONV, kernel_size=3), "at least 3 pixels"),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, stride=0), "stride"),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, padding=-1), "padding"),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, y_scale=1.0, residual=IMAGES), "no residual"),
        (
            lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, residual=IMAGES),
            r"residual of .* shape \[1, 6, 3, 3\]|residual",
        ),
        (lambda: ops.conv2d_int8(IMAGES, CONV, kernel_size=3, residual=X), "expected a residual of .* shape"),
        (lambda: ops.conv2d_int8(IMAGES.to(torch.int8), CONV, kernel_size=3), "expected an x_scale with int8 x"),
        (lambda: raw.pack_lookup(torch.ones(4, 6), 1, 4, 16, False), "int8"),
        (lambda: raw.pack_lookup(torch.ones(4, 6).to(torch.int8), 4, 4, 16, False), "possible sizes"),
        (lambda: raw.pack_lookup(torch.ones(4, 6).to(torch.int8), 1, 4, 500, False), "possible sizes"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises((RuntimeError, FormatError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value).strip()


@each_format
def test_rows_too_long_for_int32_sums(format: str) -> None:
    wide = PackedInt8Weight.pack(Int8Weight(torch.ones(1, 65536, dtype=torch.int8), torch.ones(1)), format)
    assert ops.linear_int8(torch.ones(1, 65536), wide, x_scale=1.0).item() == 65536
    sizes = [1, 65540, *wide.shape.sizes[2:]]
    with pytest.raises(RuntimeError, match="expected K <= 65536"):
        raw.linear_int8(torch.ones(1, 65540), list(wide.tensors), sizes, *arguments(wide)[2:], None, None, 1.0, 0,
                        None, "none", None, 0, "")  # fmt: skip
