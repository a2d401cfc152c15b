"""What int8 layers have beside the others: packed memory, scales of channels, layouts of images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore import nn as snn
from sparsecore.errors import FormatError
from sparsecore.nn import CompressedModule

# Dense layer and input shape.
LINEAR = (lambda: nn.Linear(12, 7), (5, 12))
CONV = (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 7))
GROUPED = (lambda: nn.Conv2d(6, 8, (3, 2), stride=2, groups=2), (2, 6, 9, 7))
DILATED = (lambda: nn.Conv2d(6, 8, 3, dilation=2), (2, 6, 9, 7))
CASES = [
    (snn.Int8Linear, LINEAR),
    (snn.SparseInt8Linear, LINEAR),
    (snn.BitmapInt8Linear, LINEAR),
    *((cls, case) for cls in (snn.Int8Conv2d, snn.SparseInt8Conv2d) for case in (CONV, GROUPED, DILATED)),
]
SPARSE = [(cls, case) for cls, case in CASES if "col_idx" in cls.buffer_names]
Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

each_case = pytest.mark.parametrize(("cls", "case"), CASES)


def make(case: Case) -> tuple[nn.Module, Tensor]:
    layer, x = case[0](), torch.randn(case[1])
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape) < 0.5
    return layer, x


def channels_of(x: Tensor) -> int:
    return x.shape[1 if x.dim() == 4 else -1]


# --- memory and files ---


@each_case
def test_memory_holds_the_packed_form_alone(cls: type[CompressedModule], case: Case) -> None:
    layer = cls.from_dense(make(case)[0])
    assert {name for name, tensor in layer.named_buffers() if tensor is not None} == set(cls.packed_names)
    assert set(layer.state_dict()) == {*cls.buffer_names, "bias", "_extra_state"}


@each_case
def test_stored_tensors_are_those_of_the_format(cls: type[CompressedModule], case: Case) -> None:
    dense, _ = make(case)
    layer = cls.from_dense(dense)
    weight = cls._compress(dense.weight.detach().flatten(1))
    state = layer.state_dict()
    for name in cls.buffer_names:
        assert torch.equal(state[name], getattr(weight, name)), name


@each_case
def test_counts_and_weights_of_the_packed_form(cls: type[CompressedModule], case: Case) -> None:
    dense, _ = make(case)
    layer = cls.from_dense(dense)
    step = dense.weight.detach().flatten(1).abs().amax(1) / 127
    error = (layer.weight - dense.weight.detach()).flatten(1).abs()
    assert bool((error <= step[:, None] * 0.5001).all())
    assert layer.count_nonzero() == int(layer.weight.count_nonzero())


# --- images ---


@pytest.mark.parametrize(("cls", "case"), [c for c in CASES if c[1] is not LINEAR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_in_and_out(cls: type[CompressedModule], case: Case, dtype: torch.dtype) -> None:
    dense, x = make(case)
    layer, x = cls.from_dense(dense, activation="relu"), x.to(dtype)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    assert torch.equal(y, layer(x))


# --- scales of the channels of x ---


def scaled(cls: type[CompressedModule], case: Case, **options: object) -> tuple[nn.Module, CompressedModule, Tensor]:
    """Activations whose channels differ a hundredfold, and the scales that even them out."""
    dense, x = make(case)
    scale = torch.logspace(-1, 1, channels_of(x))
    x = x * scale.view(-1, *[1] * (x.dim() - 2))
    return dense, cls.from_dense(dense, x_channel_scale=scale, **options), x


@each_case
def test_channel_scales_leave_the_function_as_it_is(cls: type[CompressedModule], case: Case) -> None:
    dense, layer, x = scaled(cls, case)
    with torch.no_grad():
        expected = dense(x)
        error = float((layer(x) - expected).norm() / expected.norm())
        plain = float((cls.from_dense(dense)(x) - expected).norm() / expected.norm())
    assert error < 0.03
    assert plain < 0.1


@each_case
def test_channel_scales_come_off_the_dense_weight(cls: type[CompressedModule], case: Case) -> None:
    dense, layer, _ = scaled(cls, case)
    weight = dense.weight.detach()
    back = layer.to_dense_module()
    assert back.weight.shape == weight.shape
    assert torch.equal(back.weight == 0, layer.weight == 0)
    # Half a step of each row's largest product with the scales, taken off again.
    groups = layer.groups if isinstance(dense, nn.Conv2d) else 1
    scale = layer.x_channel_scale.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    scale = scale.view(*scale.shape, *[1] * (weight.dim() - 2))
    step = (weight * scale).abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
    assert bool(((back.weight - weight).abs() <= step / scale * 0.5001).all())
    assert torch.equal(cls.from_dense(dense).to_dense_module().bias, back.bias)


@each_case
def test_channel_scales_with_a_static_scale(cls: type[CompressedModule], case: Case) -> None:
    dense, layer, x = scaled(cls, case, x_scale=0.03125, x_zero_point=5)
    even = x * layer.x_channel_scale.reciprocal().view(-1, *[1] * (x.dim() - 2))
    q = ((even / 0.03125).round() + 5).clamp(-128, 127) - 5
    integers = copy.deepcopy(dense).double()  # the layer after the division
    with torch.no_grad():
        integers.weight.copy_(layer.weight_format.to_dense().view(dense.weight.shape))
        expected = integers(q.double() * 0.03125)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cls", "case"), SPARSE)
def test_from_int8_keeps_channel_scales(cls: type[CompressedModule], case: Case) -> None:
    int8 = snn.Int8Linear if cls.dense_type is nn.Linear else snn.Int8Conv2d
    _, layer, x = scaled(int8, case, x_scale=0.02, x_zero_point=-7, activation="relu")
    assert torch.equal(cls.from_int8(layer)(x), layer(x))


@each_case
def test_state_dict_of_channel_scales(cls: type[CompressedModule], case: Case) -> None:
    dense, layer, x = scaled(cls, case)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert "x_channel_scale" in state
    assert not any("inverse" in name for name in state)
    for assign in (False, True):
        other = cls.from_dense(case[0](), x_channel_scale=torch.ones(channels_of(x)))
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(x), layer(x)), "the inverse follows"
    with pytest.raises(RuntimeError, match="x_channel_scale"):
        cls.from_dense(dense).load_state_dict(state)
    del state["x_channel_scale"]
    with pytest.raises(RuntimeError, match="x_channel_scale"):
        other.load_state_dict(state)


@each_case
def test_channel_scales_of_another_size_change_nothing(cls: type[CompressedModule], case: Case) -> None:
    _, layer, x = scaled(cls, case)
    expected = layer(x)
    for bad in (torch.ones(3), -torch.ones(channels_of(x)), torch.full((channels_of(x),), float("nan"))):
        state = {**layer.state_dict(), "x_channel_scale": bad, "bias": layer.bias + 1}
        with pytest.raises(ValueError, match="x_channel_scale"):
            layer.load_state_dict(state)
        assert torch.equal(layer(x), expected)


@each_case
def test_copies_and_config_keep_channel_scales(cls: type[CompressedModule], case: Case) -> None:
    _, layer, x = scaled(cls, case, activation="silu")
    other = cls.from_config(layer.config(), layer.tensors())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    tensors = {**layer.tensors(), "x_channel_scale": torch.ones(2)}
    with pytest.raises(FormatError, match="x_channel_scale"):
        cls.from_config(layer.config(), tensors)


@each_case
def test_bundles_keep_channel_scales(cls: type[CompressedModule], case: Case, tmp_path: Path) -> None:
    _, layer, x = scaled(cls, case)
    model, path = nn.Sequential(layer).eval(), tmp_path / "m.safetensors"
    sc.save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        names = {name.rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert {"x_channel_scale", *cls.buffer_names} <= names
    assert not names & ({*cls.packed_names, "x_channel_inverse"} - {*cls.buffer_names})
    loaded = sc.load(path, lambda: nn.Sequential(case[0]()))
    assert torch.equal(loaded(x), layer(x))


@each_case
def test_casting_keeps_channel_scales(cls: type[CompressedModule], case: Case) -> None:
    _, layer, x = scaled(cls, case)
    layer.bias.data.zero_()
    expected = layer(x)
    assert torch.equal(layer.bfloat16()(x), expected)
    assert torch.equal(layer.half().float()(x), expected)


@each_case
def test_wrong_channel_scales(cls: type[CompressedModule], case: Case) -> None:
    dense, x = make(case)
    channels = channels_of(x)
    for bad in (
        torch.ones(channels + 1),
        torch.ones(channels, 1),
        torch.ones(channels).double(),
        torch.zeros(channels),
        -torch.ones(channels),
        torch.full((channels,), float("inf")),
        [1.0] * channels,
    ):
        with pytest.raises(ValueError, match=rf"x_channel_scale as {channels} positive finite float32 numbers"):
            cls.from_dense(dense, x_channel_scale=bad)


def test_from_sparse_applies_channel_scales() -> None:
    dense = nn.Linear(24, 8)
    scale = torch.rand(24) + 0.5
    found = snn.SparseInt8Linear.from_sparse(snn.SparseLinear.from_dense(dense), x_channel_scale=scale)
    expected = snn.SparseInt8Linear.from_dense(dense, x_channel_scale=scale)
    x = torch.randn(5, 24)
    assert torch.equal(found(x), expected(x))
