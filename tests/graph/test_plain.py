"""A compiled model goes back to PyTorch's own layers and operations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, Residual, SqueezeExcite, assert_same, image, sparse_
from torch import nn

import sparsecore as sc
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.plain import plain_module
from sparsecore.graph.prepare import prepare


def is_ours(value: object) -> bool:
    return getattr(value, "namespace", "") == "sparsecore"


@pytest.mark.parametrize("layout", ["own", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_computes_the_same_without_operations_of_ours(name: str, layout: str) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make(), 0.9)
    if layout == "own":
        fast = sc.compile(model, image(1, channels), policy="model", cache=False)
    else:
        fast = CompiledModule(prepare(copy.deepcopy(model), image(1, channels)).dense)
    before = str(fast)
    plain = plain_module(fast)  # type: ignore[arg-type]
    x = image(2, channels)
    with torch.no_grad():
        assert_same(plain(x), model(x), 1e-4)
        program = torch.export.export(plain, (x,))
    assert not any(is_ours(node.target) for node in program.graph.nodes)
    assert not any(isinstance(module, sc.nn.CompressedModule | sc.nn.DepthwiseConv2d) for module in plain.modules())
    assert str(fast) == before


def test_depthwise_layers_and_compiling_again() -> None:
    model = sparse_(SqueezeExcite(), 0.9)
    fast = sc.compile(model, image(1), policy={"depthwise": "depthwise"}, cache=False)
    plain = plain_module(fast)  # type: ignore[arg-type]
    with torch.no_grad():
        assert_same(plain(image(2)), model(image(2)), 1e-4)
        again = sc.compile(plain, image(1), policy="model", cache=False)
        assert isinstance(again, CompiledModule)
        assert_same(again(image(2)), model(image(2)), 1e-4)


def test_bfloat16() -> None:
    model: nn.Module = sparse_(Residual(), 0.9).bfloat16()
    fast = sc.compile(model, image(1).bfloat16(), policy="model", cache=False)
    x = image(2).bfloat16()
    with torch.no_grad():
        assert_same(plain_module(fast)(x), model(x), 0.1)  # type: ignore[arg-type]


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from sparsecore.bench.whole_models.export import export_onnx

    make, channels = NETWORKS["dense"]
    model = sparse_(make(), 0.9)
    fast = sc.compile(model, image(1, channels), policy="model", cache=False)
    x = image(2, channels)
    export_onnx(plain_module(fast), x, tmp_path / "m.onnx")  # type: ignore[arg-type]
    (y,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert_same(torch.from_numpy(y), model(x), 1e-4)
