"""int8 from layer to layer: the same bits as with float32 between them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from networks import image
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.graph.compiled import CompiledModule


class Bottleneck(nn.Module):
    """A residual block whose first and second layer are read by one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.third = nn.Conv2d(8, 24, 1)
        self.project = nn.Conv2d(16, 24, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).relu()
        return (self.third(y) + self.project(x)).relu()


class TwoReaders(nn.Module):
    """A layer read by two with scales of their own, and one read by a convolution and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 8, 1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        left = self.left(y)
        return self.right(left) * y + left


def layers(model: nn.Module) -> Iterator[tuple[str, sc.nn.Int8Linear]]:
    for name, module in model.named_modules():
        if hasattr(module, "y_scale"):
            yield name, module  # type: ignore[misc]


def compiled(model: nn.Module, x: Tensor, **options: object) -> CompiledModule:
    batches = [x] if options else None
    quantized = sc.quantize(copy.deepcopy(model).eval(), batches, progress=False, **options)  # type: ignore[arg-type]
    fast = sc.compile(quantized, x, policy="model")
    assert isinstance(fast, CompiledModule)
    return fast


def with_float_between(fast: CompiledModule) -> CompiledModule:
    twin = copy.deepcopy(fast)
    for _, layer in layers(twin):
        layer.y_scale = None
    return twin


def outputs(fast: CompiledModule) -> set[str]:
    return {name.removeprefix("graph_module.") for name, layer in layers(fast) if layer.y_scale is not None}


def test_a_chain_of_static_layers_passes_int8_on() -> None:
    fast = compiled(Bottleneck(), image(2, 16, 11, 9), activations="static")
    assert outputs(fast) == {"first", "second"}
    reader = fast.graph_module.get_submodule("second")
    assert fast.graph_module.get_submodule("first").y_scale == reader.x_scale
    want = with_float_between(fast)
    for batch in (2, 1, 2):
        x = image(batch, 16, 11, 9, seed=batch)
        assert torch.equal(fast(x), want(x))
        assert torch.equal(fast.graph_module(x)[0], want(x))
    program = fast.program_for([x])
    assert not any(node.op == "call_module" for node in program.module.graph.nodes), "all of it is recorded"


def test_linear_layers_pass_int8_on() -> None:
    model = nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))
    x = torch.randn(6, 40)
    fast = compiled(model, x, activations="static")
    assert outputs(fast) == {"0", "2"}
    assert torch.equal(fast(x), with_float_between(fast)(x))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(TwoReaders(), {"activations": "static"}, id="two readers"),
        pytest.param(Bottleneck(), {}, id="dynamic"),
        pytest.param(Bottleneck(), {"activations": "static", "per_channel": True}, id="scales per channel"),
        pytest.param(Bottleneck().bfloat16(), {"activations": "static"}, id="bfloat16"),
    ],
)
def test_others_stay_float(model: nn.Module, options: dict[str, object]) -> None:
    x = image(1, 16, 8, 8).to(next(model.parameters()).dtype)
    fast = compiled(model, x, **options)
    assert outputs(fast) == set()
    assert fast(x).dtype == x.dtype
