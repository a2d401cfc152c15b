"""Bad input of linear_int8 and conv2d_int8: one clear error, and nothing read outside of a damaged weight."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from int8_oracle import OPERATIONS, arguments, random_weight
from torch import Tensor

from sparsecore import Int8Weight, ops
from sparsecore.errors import FormatError
from sparsecore.formats import PackedInt8Weight
from sparsecore.formats.packed_int8 import READ_BEYOND

raw = torch.ops.sparsecore

each_format = pytest.mark.parametrize("format", OPERATIONS)

# bias, residual, x_scale and so on
PLAIN = (None, None, None, 0, None, "none", None, 0, "")


def make_packed(format: str) -> PackedInt8Weight:
    """Two blocks at least for every number of lanes."""
    return PackedInt8Weight.pack(random_weight(40, 30), format)


def run_raw(packed: PackedInt8Weight, **changes: Any) -> Tensor:
    names = ("tensors", "sizes", "format", "scale", "weight_sum")
    weight = dict(zip(names, arguments(packed), strict=True)) | changes
    return raw.linear_int8(torch.randn(3, 30), *weight.values(), *PLAIN)


# Place in sizes and value: N, K, segments, lanes, table, groups.
IMPOSSIBLE = [(0, -1), (0, 2**40), (1, -1), (2, 0), (2, 7), (3, 0), (3, 17), (4, 0), (4, 257), (5, 0), (5, 3)]


@each_format
def test_wrong_sizes_and_tensors(format: str) -> None:
    packed = make_packed(format)
    sizes, tensors = packed.shape.sizes, list(packed.tensors)
    for count in (0, 6, 8):
        with pytest.raises(RuntimeError, match=rf"expected sizes \[N, K, .*got {count} numbers"):
            run_raw(packed, sizes=(sizes * 2)[:count])
    for index, value in IMPOSSIBLE:
        with pytest.raises(RuntimeError, match="expected possible sizes"):
            run_raw(packed, sizes=[value if i == index else size for i, size in enumerate(sizes)])
    for more in (tensors[:-1], [*tensors, tensors[0]], []):
        with pytest.raises(RuntimeError, match=f"expected {len(tensors)} packed tensors, got {len(more)}"):
            run_raw(packed, tensors=more)
    grouped = PackedInt8Weight.pack(random_weight(40, 30), format, groups=2)
    with pytest.raises(RuntimeError, match="weight of a linear layer"):
        raw.linear_int8(torch.randn(3, 30), *arguments(grouped), *PLAIN)
    with pytest.raises(RuntimeError, match="expected a format of int8, bitmap, lookup, lookup4, got 'csr'"):
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
    for value_count in (0, 1, 60, values.numel() - READ_BEYOND):
        few = values[: value_count + READ_BEYOND].clone()
        pointers = value_ptr.clamp_max(value_count)
        y = run_raw(packed, tensors=[torch.full_like(masks, 255), pointers, few])
        assert y.shape == (3, 40)
    with pytest.raises(RuntimeError, match="bytes after them"):
        run_raw(packed, tensors=[masks, value_ptr, values[: READ_BEYOND - 1]])


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, -1), (0, 2**31 - 1), (1, -1), (1, 2**31 - 1), (2, -1), (2, 1000), (3, 0), (3, 7), (3, 255)],
)
def test_damaged_lookup_tensors(index: int, value: int) -> None:
    packed = make_packed("lookup")
    for at in (0, packed.tensors[index].numel() // 2, -1):
        tensors = damaged(packed, index, at, value)
        with pytest.raises(RuntimeError, match=r"invalid lookup weight: .*; pack it again"):
            run_raw(packed, tensors=tensors)
        with pytest.raises(RuntimeError, match=r"invalid lookup weight: .*; pack it again"):
            raw.unpack_lookup(tensors, packed.shape.sizes)


def test_fewer_slots_than_steps() -> None:
    packed = make_packed("lookup")
    slots = packed.tensors[4]
    with pytest.raises(RuntimeError, match="invalid lookup weight: step_ptr"):
        run_raw(packed, tensors=[*packed.tensors[:4], slots[:-1], packed.tensors[5]])


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
