"""Capturing, lowering and fusing leave the function of a network as it is."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Classifier, DataDependent, Residual, assert_same, image, sparse_, tensors
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.errors import UnsupportedError
from sparsecore.graph.capture import Captured, Input, capture
from sparsecore.graph.fuse import fuse_layers, replace_between
from sparsecore.graph.lower import lower
from sparsecore.graph.prepare import prepare

ours = torch.ops.sparsecore


def graph_of(model: nn.Module, *inputs: Any) -> Captured:
    captured = capture(model, inputs)
    lower(captured.module, model)
    fuse_layers(captured.module)
    return captured


def targets(captured: Captured) -> Counter[Any]:
    return Counter(node.target for node in captured.module.graph.nodes if node.op.startswith("call"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_computes_what_the_model_does(name: str, batch: int) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make())
    captured = graph_of(model, image(2, channels))
    x = image(batch, channels, seed=batch)
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
        fused = captured.module(x)
        replace_between(captured.module)
        assert_same([y.double() for y in tensors(fused)], want)
        assert_same([y.double() for y in tensors(captured.module(x))], want)


@pytest.mark.parametrize("shortcut_first", [False, True])
def test_batchnorm_residual_and_activation_go_into_the_layers(shortcut_first: bool) -> None:
    model = sparse_(Residual(shortcut_first=shortcut_first))
    zeros = {name: module.weight == 0 for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    captured = graph_of(model, image(1))
    assert set(targets(captured)) == {"conv1", "conv2", "project"}
    last = captured.module.get_submodule("project")  # made last, so that its residual exists
    assert isinstance(last, sc.nn.DenseConv2d)
    assert last.activation == "relu"
    for name, mask in zeros.items():
        weight = captured.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert torch.equal(weight == 0, mask)


def test_what_runs_between_layers_becomes_ours() -> None:
    captured = graph_of(sparse_(Classifier()), image(1, 3))
    replace_between(captured.module)
    assert targets(captured)[ours.max_pool2d.default] == 1
    assert targets(captured)[ours.global_avg_pool2d.default] == 1
    captured = graph_of(sparse_(NETWORKS["dense"][0]()), image(1))
    replace_between(captured.module)
    assert targets(captured)[ours.scale_shift.default] == 2
    assert not any("relu" in str(target) or "batch_norm" in str(target) for target in targets(captured))
    captured = graph_of(sparse_(NETWORKS["squeeze-excite"][0]()), image(1))
    replace_between(captured.module)
    assert targets(captured)[ours.scale_shift.default] == 1
    assert captured.module.get_submodule("expand").activation == "sigmoid"


class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        functions = [
            F.relu,
            F.relu6,
            F.gelu,
            F.silu,
            F.hardswish,
            torch.sigmoid,
            F.hardsigmoid,
            lambda y: F.gelu(y, approximate="tanh"),
        ]
        for conv, function in zip(self.convs, functions, strict=True):
            x = function(conv(x))
        return x


def test_activations() -> None:
    model = Activations().eval()
    captured = graph_of(model, image(1, 4))
    fused = [layer.activation for layer in captured.module.convs.children()]
    assert fused == ["relu", "relu6", "gelu", "silu", "hardswish", "sigmoid", "hardsigmoid", "none"]
    x = image(2, 4)
    with torch.no_grad():
        assert_same(captured.module(x), model(x))


class ReadTwice(nn.Module):
    """Outputs before the activation, before the BatchNorm and before the sum are read elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = self.a(x), self.b(x), self.c(x)
        return a, F.relu(a), b, self.bn(b), c, c + x


def test_what_is_read_twice_is_not_fused() -> None:
    model = sparse_(ReadTwice())
    captured = graph_of(model, image(1, 4))
    x = image(2, 4)
    with torch.no_grad():
        assert_same(captured.module(x), model(x))
        replace_between(captured.module)
        assert_same(captured.module(x), model(x))


class Products(nn.Module):
    """Linear layers under other names: addmm with a transposed weight, matmul, one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.embedding = nn.Embedding(5, 6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.addmm(self.bias, x[:, 0], self.weight)
        return y, x @ self.weight, F.linear(y, self.embedding.weight), self.attention(x, x, x)[0]


def test_products_with_weights_become_layers() -> None:
    model = Products().eval()
    x = torch.randn(3, 7, 8)
    captured = graph_of(model, x)
    layers = [module for module in captured.module.modules() if isinstance(module, sc.nn.DenseLinear)]
    assert len(layers) >= 5
    with torch.no_grad():
        assert_same(captured.module(x), model(x))


def test_compressed_layers_stay_as_they_are() -> None:
    model = sparse_(Residual())
    model.conv1 = sc.nn.PanelConv2d.from_dense(model.conv1)
    model.conv2 = sc.nn.Int8Conv2d.from_dense(model.conv2)
    model.eval()
    captured = graph_of(model, image(2))
    assert captured.module.get_submodule("conv1") is model.conv1
    assert captured.module.get_submodule("conv2") is model.conv2
    x = image(3)
    with torch.no_grad():
        assert_same(captured.module(x), model(x))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def test_what_cannot_be_captured_says_why() -> None:
    with pytest.raises(UnsupportedError, match=r"torch.export: "):
        capture(DataDependent(), torch.ones(2))
    with pytest.raises(UnsupportedError, match="changes calls when it runs"):
        capture(Counting(), torch.ones(2))
    with pytest.raises(TypeError, match="expected the model's inputs as a tensor"):
        capture(Counting(), 3)  # type: ignore[arg-type]


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(6.0)[:, None]


def test_a_batch_that_cannot_be_free_is_fixed() -> None:
    free = capture(sparse_(Residual()), image(1)).inputs[0].shape
    assert isinstance(free[0].size, str)
    assert free[0].least == 2  # compile() makes it 1 after a look
    assert [dimension.size for dimension in free[1:]] == [16, 13, 11]
    fixed = capture(FixedBatch(), torch.randn(6, 4)).inputs[0].shape
    assert [dimension.size for dimension in fixed] == [6, 4]


def test_views_of_channels_last_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)).eval()
    x = image(2, 3, 5, 5)
    prepared = prepare(copy.deepcopy(model), x)
    with torch.no_grad():
        for captured in (prepared.own, prepared.dense):
            assert_same(captured.module(x), model(x))


class Few(nn.Module):
    """Another function for many images, and for a mode that is called like its input."""

    def forward(self, x: Tensor, mode: str = "") -> Tensor:
        return x * 2 if x.shape[0] < 8 and mode == "x" else x * 3


def test_inputs_have_bounds_and_constants_their_values() -> None:
    x, mode = capture(Few(), (torch.ones(4, 3), "x")).inputs
    batch = x.shape[0]
    assert isinstance(batch.size, str)
    assert (batch.least, batch.most, batch.example) == (2, 7, 4)
    assert mode == Input("x", None, value="x")


class RotaryAttention(nn.Module):
    """Self-attention with rotated positions: its heads are views of what the layers return."""

    def __init__(self, length: int, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(features, features) for _ in range(4))
        angles = torch.outer(torch.arange(length), torch.logspace(0, -2, features // heads // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos()[None, None])
        self.register_buffer("sin", angles.sin()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(self.rotated(query), self.rotated(key), value, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(x.shape))

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat((-second, first), -1) * self.sin


def test_heads_of_attention_are_views_whatever_makes_them() -> None:
    model, x = RotaryAttention(12, 16, 2).eval(), torch.randn(1, 12, 16)
    prepared = prepare(model, x)
    for captured in (prepared.own, prepared.dense):
        with torch.no_grad():
            (y,) = captured.module(x)
        assert_same(y, model(x))
