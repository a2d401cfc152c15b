"""What all layers share: building, loading, copying, tracing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from networks import fit_
from oracle import assert_within, dense_reference
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsecore import nn as snn
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import Int4Weight, Int8Weight
from sparsecore.nn import CompressedModule

LAYERS: dict[type[CompressedModule], Callable[..., nn.Module]] = {
    snn.SparseLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.PanelLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.PanelConv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, **options),
    snn.BitmapLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.BinaryLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.TernaryLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.BinaryConv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, **options),
    snn.TernaryConv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, **options),
    snn.BlockLinear: lambda **options: nn.Linear(12, 8, **options),
    snn.CodebookLinear: lambda **options: nn.Linear(12, 7, **options),
    snn.BlockConv2d: lambda **options: nn.Conv2d(4, 8, 3, padding=1, groups=2, **options),
    snn.Int8Linear: lambda **options: nn.Linear(12, 7, **options),
    snn.SparseInt8Linear: lambda **options: nn.Linear(12, 7, **options),
    snn.BitmapInt8Linear: lambda **options: nn.Linear(12, 7, **options),
    snn.SparseInt4Linear: lambda **options: nn.Linear(12, 7, **options),
    snn.SparseConv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, groups=2, **options),
    snn.Int8Conv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, groups=2, **options),
    snn.SparseInt8Conv2d: lambda **options: nn.Conv2d(4, 6, 3, padding=1, groups=2, **options),
}
WIDENING = [snn.PanelLinear, snn.PanelConv2d, snn.BlockLinear, snn.BlockConv2d, snn.CodebookLinear]
PLANES = [snn.BinaryLinear, snn.TernaryLinear, snn.BinaryConv2d, snn.TernaryConv2d]
PACKED = [*WIDENING, snn.BitmapLinear, *PLANES]
FLOAT = [snn.SparseLinear, snn.SparseConv2d, *PACKED]
INT8 = [cls for cls in LAYERS if cls not in FLOAT]
SPARSE = [cls for cls in LAYERS if "col_idx" in cls.buffer_names]

each_layer = pytest.mark.parametrize("cls", LAYERS)


def dense(cls: type[CompressedModule], sparsity: float = 0.7, **options: object) -> nn.Module:
    layer = LAYERS[cls](**options)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape) >= sparsity
    return fit_(cls, layer)


def example(cls: type[CompressedModule], batch: int = 3) -> Tensor:
    return torch.randn(batch, 12) if cls.dense_type is nn.Linear else torch.randn(batch, 4, 5, 6)


@each_layer
def test_dense_round_trip(cls: type[CompressedModule]) -> None:
    layer = dense(cls)
    compressed = cls.from_dense(layer)
    back = compressed.to_dense_module()
    assert type(back) is type(layer)
    assert str(back) == str(layer)
    expected = layer.weight
    if cls in INT8:
        kind = Int4Weight if cls is snn.SparseInt4Linear else Int8Weight
        expected = kind.from_dense(layer.weight).to_dense().view(layer.weight.shape)
    assert torch.equal(back.weight, expected)
    assert torch.equal(back.bias, layer.bias)
    assert back.bias is not layer.bias
    weight = compressed.weight_format
    assert weight.shape == compressed.weight_shape == (layer.weight.shape[0], expected[0].numel())
    assert cls.from_dense(dense(cls, bias=False)).to_dense_module().bias is None


@each_layer
def test_same_as_the_dense_module_of_its_weight(cls: type[CompressedModule]) -> None:
    """Float: the rounding bound. int8: half a step of each activation as well."""
    compressed = cls.from_dense(dense(cls)).requires_grad_(False)
    x = example(cls)
    back = compressed.to_dense_module()
    exact, bound = dense_reference(back, x)
    if cls in INT8:
        step = torch.full_like(x, float(x.abs().max()) / 127 / 2)
        with torch.no_grad():
            back.weight.abs_()
            back.bias.zero_()
        bound = bound + dense_reference(back, step)[0]
    assert_within(compressed(x), exact, bound)


@each_layer
def test_non_contiguous_and_empty_input(cls: type[CompressedModule]) -> None:
    layer = cls.from_dense(dense(cls))
    x = example(cls)
    strided = torch.stack([x, x + 1], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(x))
    if x.dim() == 4:
        assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))
    empty = layer(example(cls, batch=0))
    assert empty.shape == layer(x)[:0].shape


@each_layer
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_all_and_no_entries(cls: type[CompressedModule], sparsity: float) -> None:
    layer = dense(cls, sparsity)
    compressed, x = cls.from_dense(layer), example(cls)
    if not bool(layer.weight.any()):  # binary weights have no zeros
        expected = layer(x)  # the bias alone
        assert torch.equal(compressed(x), expected)
    assert bool(compressed(x).isfinite().all())


@each_layer
def test_deepcopy_is_independent(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls)), example(cls)
    other = copy.deepcopy(layer)
    expected = layer(x)
    with torch.no_grad():
        layer.bias.add_(1)
        for buffer in layer.buffers():
            buffer.zero_()
    assert torch.equal(other(x), expected)


@each_layer
def test_pickle(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls), activation="relu"), example(cls)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@each_layer
def test_config_round_trip(cls: type[CompressedModule]) -> None:
    options = {"x_scale": 0.25, "x_zero_point": -3} if cls in INT8 else {}
    layer = cls.from_dense(dense(cls), activation="silu", **options)
    other = cls.from_config(layer.config(), layer.tensors())
    assert str(other) == str(layer)
    x = example(cls)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(FormatError, match="settings"):
        cls.from_config(layer.config() | {"extra": 1}, layer.tensors())
    with pytest.raises(FormatError, match="together"):
        cls.from_config(layer.config(), {"bias": layer.bias})


@each_layer
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip_with_other_nnz(cls: type[CompressedModule], assign: bool) -> None:
    options = {"x_scale": 0.25, "x_zero_point": 4} if cls in INT8 else {}
    source = cls.from_dense(dense(cls), **options)
    target = cls.from_dense(dense(cls, sparsity=0.2))
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    target.load_state_dict(state, assign=assign)
    x = example(cls)
    assert torch.equal(target(x), source(x))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def tamper(state: dict[str, Tensor], name: str) -> None:
    if name == "scale":
        state[name][0] = float("nan")
    elif name == "row_ptr":
        state[name][1] = 1000
    elif name == "col_idx":
        state[name][-1] = 2**30
    else:
        state[name] = state[name][:-1]


@pytest.mark.parametrize(("cls", "name"), [(c, name) for c in LAYERS for name in c.buffer_names])
def test_tampered_state_changes_nothing(cls: type[CompressedModule], name: str) -> None:
    model = nn.Sequential(cls.from_dense(dense(cls)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inner = {key: tensor.clone() for key, tensor in cls.from_dense(dense(cls)).state_dict().items()}
    tamper(inner, name)
    with pytest.raises(FormatError, match="0: "):
        model.load_state_dict({f"0.{key}": tensor for key, tensor in inner.items()})
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("cls", SPARSE)
def test_partial_state_is_refused(cls: type[CompressedModule]) -> None:
    """Index arrays of two weights together would be out of bounds."""
    layer, state = cls.from_dense(dense(cls)), cls.from_dense(dense(cls)).state_dict()
    del state["col_idx"]
    with pytest.raises(FormatError, match="together"):
        layer.load_state_dict(state, strict=False)
    layer.load_state_dict({"bias": torch.zeros_like(layer.bias)} | {}, strict=False)
    assert not layer.bias.any()
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": layer.bias})


@pytest.mark.parametrize("cls", INT8)
@pytest.mark.parametrize("state", [[1.0], [0.0, 0.0], [1.0, 0.5], [1.0, 128.0], [float("nan"), 0.0]])
def test_tampered_extra_state(cls: type[CompressedModule], state: list[float]) -> None:
    layer = cls.from_dense(dense(cls))
    bad = layer.state_dict() | {"_extra_state": torch.tensor(state), "bias": layer.bias + 1}
    before = layer.bias.clone()
    with pytest.raises(FormatError):
        layer.load_state_dict(bad)
    assert torch.equal(layer.bias, before)


@each_layer
def test_compile_in_one_graph(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls), activation="relu"), example(cls)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("cls", [snn.BitmapLinear, snn.BlockLinear, snn.PanelLinear])
def test_inductor_in_bfloat16(cls: type[CompressedModule]) -> None:
    model, x = cls.from_dense(dense(cls), activation="relu").bfloat16(), example(cls).bfloat16()
    model.requires_grad_(False)  # a compiled backward pass takes Inductor most of a minute
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    y = compiled(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, model(x))
    assert compiled(example(cls, batch=7).bfloat16()).shape[0] == 7


@each_layer
def test_export(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls), activation="relu").eval(), example(cls)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    other = example(cls, batch=5)
    assert torch.equal(program.module()(other), layer(other))


@pytest.mark.parametrize("cls", FLOAT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_float_layers(cls: type[CompressedModule], dtype: torch.dtype) -> None:
    layer = dense(cls).to(dtype)
    compressed = cls.from_dense(layer)
    assert compressed.bias.dtype == dtype
    # Kernels want float32 values, and packed layers hold those, except for bitmaps.
    values = [buffer for buffer in compressed.buffers() if buffer.is_floating_point()]
    widened = cls in WIDENING or cls in PLANES
    assert [value.dtype for value in values] == [torch.float32 if widened else dtype]
    x = example(cls).to(dtype)
    y = compressed(x)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(layer.float(), x))


@pytest.mark.parametrize("cls", FLOAT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_model_of_float_layers(cls: type[CompressedModule], dtype: torch.dtype) -> None:
    layer = dense(cls)
    model = nn.Sequential(cls.from_dense(layer)).to(dtype)
    layer.bias.data = layer.bias.data.to(dtype).float()
    if cls not in PACKED:
        layer.weight.data = layer.weight.data.to(dtype).float()
    x = example(cls).to(dtype)
    y = model(x)
    assert y.dtype == dtype
    assert_within(y, *dense_reference(layer, x))
    assert model.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("cls", FLOAT)
def test_autocast_passes_16_bits_on(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls)), example(cls)
    model = nn.Sequential(nn.Linear(x.shape[-1], x.shape[-1]), layer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, layer(model[0](x)))
    torch.testing.assert_close(y.float(), model(x), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("cls", INT8)
def test_int8_keeps_its_scales_when_cast(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls)), example(cls).bfloat16()
    name = cls.packed_names[-2]
    scale = layer.get_buffer(name).clone()
    expected = layer(x.float())
    layer.bfloat16()
    assert layer.get_buffer(name).dtype == torch.float32
    assert torch.equal(layer.get_buffer(name), scale)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("cls", INT8)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int8_results_of_16_bit_x_are_the_float32_ones_rounded(cls: type[CompressedModule], dtype: torch.dtype) -> None:
    layer, x = cls.from_dense(dense(cls), activation="gelu"), example(cls).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, layer(x.float()).to(dtype))


@pytest.mark.parametrize("cls", FLOAT)
def test_gradients_reach_input_and_bias(cls: type[CompressedModule]) -> None:
    layer = dense(cls)
    compressed = cls.from_dense(layer, activation="gelu")
    x, x_dense = (example(cls).requires_grad_() for _ in range(2))
    with torch.no_grad():
        x_dense.copy_(x)
    compressed(x).square().sum().backward()
    nn.functional.gelu(layer(x_dense)).square().sum().backward()
    assert torch.allclose(x.grad, x_dense.grad, atol=1e-4)
    assert torch.allclose(compressed.bias.grad, layer.bias.grad, atol=1e-3)


@pytest.mark.parametrize("cls", [cls for cls in FLOAT if cls.dense_type is nn.Linear])
def test_gradients_reach_input_and_bias_without_a_batch(cls: type[CompressedModule]) -> None:
    layer = dense(cls)
    compressed = cls.from_dense(layer)
    x = torch.randn(layer.in_features, requires_grad=True)
    compressed(x).square().sum().backward()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.bias])
    torch.testing.assert_close([x.grad, compressed.bias.grad], list(expected))


@pytest.mark.parametrize("cls", INT8)
def test_int8_has_no_gradient(cls: type[CompressedModule]) -> None:
    layer = cls.from_dense(dense(cls))
    assert not layer(example(cls)).requires_grad
    y = layer(example(cls).requires_grad_())
    with pytest.raises(RuntimeError, match="no gradient"):
        y.sum().backward()


@each_layer
def test_nan_and_infinity_in_x(cls: type[CompressedModule]) -> None:
    layer, x = cls.from_dense(dense(cls, sparsity=0.0)), example(cls)
    with torch.no_grad():
        clean = layer(x)
        x[1].fill_(float("nan"))
        y = layer(x)
    assert bool(y[1].isnan().all())
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    "cls", [cls for cls in LAYERS if cls not in PLANES]
)  # tests/nn/test_planes_layers.py has theirs
def test_masks_of_torch_prune_are_applied(cls: type[CompressedModule]) -> None:
    layer = LAYERS[cls]()
    torch_prune.random_unstructured(layer, "weight", amount=0.5)
    with torch.no_grad():
        layer.weight_orig.add_(1)  # as an optimizer step would; layer.weight is out of date now
    expected = layer.weight_orig * layer.weight_mask
    found = cls.from_dense(layer).to_dense_module().weight
    assert bool((found[layer.weight_mask == 0] == 0).all())
    steps = 4 if cls is snn.SparseInt4Linear else 200  # of 4 bits, and clipped
    assert torch.allclose(found, expected, atol=float(expected.detach().abs().max()) / steps)


@each_layer
def test_wrong_arguments(cls: type[CompressedModule]) -> None:
    layer = dense(cls)
    with pytest.raises(UnsupportedError, match="BatchNorm1d"):
        cls.from_dense(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="activation"):
        cls.from_dense(layer, activation="tanh")
    with pytest.raises(RuntimeError, match="no_such_kernel"):
        cls.from_dense(layer, kernel="no_such_kernel")(example(cls))
    compressed = cls.from_dense(layer)
    geometry = {name: getattr(compressed, name) for name in cls.all_keywords()}
    with pytest.raises(FormatError, match="bias of shape"):
        cls(compressed.weight_format, torch.ones(1), **geometry)
    with pytest.raises(FormatError, match="float64"):
        cls.from_dense(layer.double())
    with pytest.raises(RuntimeError, match="float32"):
        compressed(example(cls).double())


@pytest.mark.parametrize("cls", INT8)
def test_wrong_input_scale(cls: type[CompressedModule]) -> None:
    for bad in ({"x_scale": 0.0}, {"x_scale": float("inf")}, {"x_zero_point": 3}):
        with pytest.raises(ValueError, match="x_scale"):
            cls.from_dense(dense(cls), **bad)
    with pytest.raises(ValueError, match="int8 x_zero_point"):
        cls.from_dense(dense(cls), x_scale=1.0, x_zero_point=200)


@pytest.mark.parametrize("cls", [snn.Int8Linear, snn.SparseInt8Linear, snn.BitmapInt8Linear])
def test_rows_too_long_for_int32_sums(cls: type[CompressedModule]) -> None:
    with pytest.raises(UnsupportedError, match="65536"):
        cls.from_dense(nn.Linear(65537, 1))
    weight = Int8Weight(torch.full((1, 65536), -128, dtype=torch.int8), torch.ones(1))
    layer = snn.Int8Linear(weight, x_scale=1.0, x_zero_point=-128)
    layer = layer if cls is snn.Int8Linear else cls.from_int8(layer)
    assert layer(torch.full((1, 65536), 255.0)).item() == -128 * 255 * 65536


@pytest.mark.parametrize(
    ("float_cls", "cls"),
    [
        (snn.SparseLinear, snn.SparseInt8Linear),
        (snn.SparseLinear, snn.BitmapInt8Linear),
        (snn.SparseConv2d, snn.SparseInt8Conv2d),
    ],
)
def test_from_sparse(float_cls: type[CompressedModule], cls: type[CompressedModule]) -> None:
    layer = dense(cls)
    sparse = float_cls.from_dense(layer, activation="relu")
    found = cls.from_sparse(sparse, x_scale=0.05, x_zero_point=1)
    expected = cls.from_dense(layer, activation="relu", x_scale=0.05, x_zero_point=1)
    x = example(cls)
    assert torch.equal(found(x), expected(x))
    with pytest.raises(UnsupportedError, match="float CSR"):
        cls.from_sparse(found)
    with pytest.raises(UnsupportedError, match="an int8 layer"):
        cls.from_int8(sparse)
