"""linear_int8 on 4-bit weights with group scales: every kernel to the bit; errors, threads and tracing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from int4_oracle import group_sums, random_int4, variants
from int8_oracle import quantized
from torch import Tensor
from torch.library import opcheck

from sparsecore import ops
from sparsecore.formats import Int4Weight, PackedInt4Weight

raw = torch.ops.sparsecore


def arguments(packed: PackedInt4Weight) -> tuple[Any, ...]:
    """What the raw operation takes for a weight."""
    return list(packed.tensors), packed.shape.sizes, packed.format, packed.scale, packed.weight_sum


def expected(x: Tensor, weight: Int4Weight, bias: Tensor | None = None, **quantizer: Any) -> Tensor:
    q, x_scale = quantized(x, **quantizer)
    v = group_sums(q, weight).double() * x_scale.double()[:, None]
    return (v if bias is None else v + bias.double()).float()


QUANTIZERS: list[dict[str, Any]] = [
    {},
    {"x_scale": 2.0**-5},
    {"x_scale": 2.0**-6, "x_zero_point": -11},
    {"x_scale": 0.013, "x_zero_point": 127},
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (5, 1, 1), (13, 300, 33), (33, 1000, 8), (4, 513, 150)])
def test_linear(quantizer: dict[str, Any], M: int, K: int, N: int) -> None:
    weight, x, bias = random_int4(N, K, 256), torch.randn(M, K), torch.randn(N)
    exact = expected(x, weight, bias, **quantizer)
    for packed, kernel in variants(weight):
        assert torch.equal(ops.linear_int8(x, packed, bias, kernel=kernel, **quantizer), exact), kernel


@pytest.mark.parametrize("group_size", [16, 48, 128, 2048])
def test_groups_of_other_sizes(group_size: int) -> None:
    weight, x = random_int4(20, 2100, group_size), torch.randn(3, 2100)
    exact = expected(x, weight)
    for packed, kernel in variants(weight):
        assert torch.equal(ops.linear_int8(x, packed, kernel=kernel), exact), kernel


@pytest.mark.parametrize("value", [-8, 7])
@pytest.mark.parametrize("x_value", [-128, 127])
def test_the_largest_sums(value: int, x_value: int) -> None:
    q = torch.full((17, 4096), value, dtype=torch.int8)
    weight = Int4Weight.from_integers(q, torch.full((17, 2), 0.1), 2048)
    x = torch.full((2, 4096), x_value, dtype=torch.int8)
    exact = expected(x, weight, x_scale=0.3, x_zero_point=-128 if x_value > 0 else 127)
    for packed, kernel in variants(weight):
        options = {"x_scale": 0.3, "x_zero_point": -128 if x_value > 0 else 127}
        assert torch.equal(ops.linear_int8(x, packed, kernel=kernel, **options), exact), kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_residual_activation_and_batch_dimensions(dtype: torch.dtype) -> None:
    weight = random_int4(21, 64, 16)
    x, residual = torch.randn(3, 5, 64).to(dtype), torch.randn(3, 5, 21).to(dtype)
    exact = (expected(x.flatten(0, 1), weight).view(3, 5, 21) + residual.float()).relu().to(dtype)
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, residual=residual, activation="relu", kernel=kernel)
        assert y.dtype == dtype
        assert torch.equal(y, exact), kernel


def test_int8_outputs_and_channel_scales() -> None:
    weight, x = random_int4(18, 300, 64), torch.randn(5, 300)
    channel_scale = torch.rand(300) + 0.5
    v = expected(x, weight, x_channel_scale=channel_scale)
    exact = (torch.round(v * torch.tensor(0.37).reciprocal()) + 5).clamp(-128, 127).to(torch.int8)
    for packed, kernel in variants(weight):
        options: dict[str, Any] = {"x_channel_scale": channel_scale, "y_scale": 0.37, "y_zero_point": 5}
        assert torch.equal(ops.linear_int8(x, packed, kernel=kernel, **options), exact), kernel


def test_nan_and_infinite_rows_give_nan_and_leave_others_alone() -> None:
    weight, x = random_int4(9, 70, 16), torch.randn(4, 70)
    x[1, 3], x[2, 60] = torch.nan, torch.inf
    for packed, kernel in variants(weight):
        y = ops.linear_int8(x, packed, kernel=kernel)
        assert bool(y[1:3].isnan().all())
        assert torch.equal(y[::3], expected(x[::3], weight)), kernel


@pytest.mark.parametrize(("M", "N", "K"), [(0, 4, 16), (3, 0, 16), (3, 4, 0)])
def test_nothing_to_multiply(M: int, N: int, K: int) -> None:
    bias = torch.randn(N)
    for packed, kernel in variants(random_int4(N, K, 256)):
        y = ops.linear_int8(torch.randn(M, K), packed, bias, kernel=kernel)
        assert torch.equal(y, bias.expand(M, N))


def test_threads_and_recordings_change_no_bit() -> None:
    q = random_int4(300, 1024, 256).integers() * (torch.rand(300, 1024) < torch.rand(300, 1))  # rows change places
    weight, x = Int4Weight.from_integers(q, torch.rand(300, 4) + 0.1, 256), torch.randn(40, 1024)
    for few_rows in (False, True):
        packed = PackedInt4Weight.pack(weight, few_rows=few_rows)
        assert packed.tensors[-1].numel() == 300
        assert_same_on_any_number_of_threads(lambda packed=packed: ops.linear_int8(x, packed))


def test_opcheck() -> None:
    packed = PackedInt4Weight.pack(random_int4(9, 40, 16))
    x, bias = torch.randn(4, 40), torch.randn(9)
    for y_scale in (None, 0.5):
        settings = (bias, None, None, 0, torch.rand(40), "relu", y_scale, 0, "")
        opcheck(raw.linear_int8.default, (x, *arguments(packed), *settings))
    opcheck(raw.pack_lookup_int4.default, (random_int4(9, 40, 16).integers(), 4, 16, 32))
    opcheck(raw.unpack_lookup_int4.default, (list(packed.tensors), packed.shape.sizes))


def test_torch_compile() -> None:
    packed, x = PackedInt4Weight.pack(random_int4(9, 40, 16)), torch.randn(4, 40)
    compiled = torch.compile(lambda x: ops.linear_int8(x, packed) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.linear_int8(x, packed) + 1)


# --- what is refused ---


def make_packed() -> PackedInt4Weight:
    torch.manual_seed(3)
    q = random_int4(40, 300, 128).integers() * (torch.rand(40, 300) < torch.rand(40, 1))
    return PackedInt4Weight.pack(Int4Weight.from_integers(q, torch.ones(40, 3), 128), packing=(16, 64))


def run_raw(packed: PackedInt4Weight, **changes: Any) -> Tensor:
    tensors, sizes, format, scale, weight_sum = arguments(packed)
    given = {"tensors": tensors, "sizes": sizes, "scale": scale, "weight_sum": weight_sum} | changes
    weight = (given["tensors"], given["sizes"], format, given["scale"], given["weight_sum"])
    return raw.linear_int8(torch.ones(3, given["sizes"][1]), *weight, None, None, 1.0, 0, None, "none", None, 0, "")


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, -1), (0, 2**31 - 1), (1, -1), (1, 2**31 - 1), (2, 2), (2, 255), (3, 0), (3, 17), (3, 255), (5, 128), (5, 255)],
)
def test_damaged_tensors(index: int, value: int) -> None:
    packed = make_packed()
    for at in (0, packed.tensors[index].numel() // 2, -1):
        tensors = [tensor.clone() for tensor in packed.tensors]
        tensors[index][at] = value
        with pytest.raises(RuntimeError, match=r"invalid lookup4 weight: .*; pack it again"):
            run_raw(packed, tensors=tensors)
        with pytest.raises(RuntimeError, match=r"invalid lookup4 weight: .*; pack it again"):
            raw.unpack_lookup_int4(tensors, packed.shape.sizes)


def test_fewer_slots_than_steps() -> None:
    packed = make_packed()
    tensors = [*packed.tensors[:4], packed.tensors[4][:-1], packed.tensors[5]]
    with pytest.raises(RuntimeError, match="invalid lookup4 weight: step_ptr"):
        run_raw(packed, tensors=tensors)


@pytest.mark.parametrize("index", range(6))
def test_tensors_of_another_size_or_type(index: int) -> None:
    packed = make_packed()
    for wrong in (packed.tensors[index][:-1], packed.tensors[index].float()):
        tensors = [*packed.tensors[:index], wrong, *packed.tensors[index + 1 :]]
        with pytest.raises(RuntimeError, match="sparsecore: "):
            run_raw(packed, tensors=tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [40, 300, 16, 64]}, r"\[N, K, lanes, table, group_size\], got 4"),
        ({"sizes": [-1, 300, 16, 64, 128]}, "possible sizes"),
        ({"sizes": [40, 300, 0, 64, 128]}, "possible sizes"),
        ({"sizes": [40, 300, 17, 64, 128]}, "possible sizes"),
        ({"sizes": [40, 300, 16, 8, 128]}, "possible sizes"),
        ({"sizes": [40, 300, 16, 512, 512]}, "possible sizes"),
        ({"sizes": [40, 300, 16, 64, 100]}, "possible sizes"),
        ({"sizes": [40, 300, 16, 64, 4096]}, "possible sizes"),
        ({"sizes": [40, 70000, 16, 64, 128]}, "K <= 65536"),
        ({"sizes": [56, 300, 16, 64, 128]}, "numbers in packed tensor 0"),
        ({"scale": torch.ones(40)}, "scale and weight_sum of 144 numbers, got 40"),
        ({"weight_sum": torch.ones(144, dtype=torch.int32)}, "int16|Short|weight_sum"),
    ],
)
def test_wrong_sizes_and_scales(changes: dict[str, Any], message: str) -> None:
    assert run_raw(make_packed()).shape == (3, 40)
    with pytest.raises(RuntimeError, match=message):
        run_raw(make_packed(), **changes)


@pytest.mark.parametrize(
    ("arguments_of_pack", "message"),
    [
        ((torch.ones(4, 6), 4, 16, 16), "int8"),
        ((torch.full((4, 6), 8, dtype=torch.int8), 4, 16, 16), r"integers in \[-8, 7\]"),
        ((torch.full((4, 6), -9, dtype=torch.int8), 4, 16, 16), r"integers in \[-8, 7\]"),
        ((torch.ones(4, 6, dtype=torch.int8), 4, 16, 24), "possible sizes"),
    ],
)
def test_wrong_weights_to_pack(arguments_of_pack: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        raw.pack_lookup_int4(*arguments_of_pack)


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"expected a kernel .*lookup_u8s4_scalar.*got 'lookup_u8s8_scalar'"):
        ops.linear_int8(torch.ones(1, 300), make_packed(), kernel="lookup_u8s8_scalar")


def test_convolutions_have_int8_values() -> None:
    packed = PackedInt4Weight.pack(random_int4(4, 48, 16))
    settings: tuple[Any, ...] = ([1, 3], [1, 1], [0, 0], [1, 1], "none", None, 0, "")
    with pytest.raises(RuntimeError, match="4-bit ones are for linear layers"):
        raw.conv2d_int8(torch.randn(1, 16, 5, 5), *arguments(packed), None, None, None, 0, None, *settings)
