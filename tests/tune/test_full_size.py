"""Whole networks at the size that people deploy, against the same network in float64."""

from __future__ import annotations

import copy

import pytest
import torch

import sparsecore as sc
from sparsecore.bench.models import ZOO, find_model, load_model
from sparsecore.bench.whole_models.pruning import prune_model
from sparsecore.graph.compiled import CompiledModule

SMALLEST = "mobilenet_v3_small"
CONFIGS = (
    "ResNetConfig",
    "MobileNetV2Config",
    "EfficientNetConfig",
    "ConvNextConfig",
    "RegNetConfig",
)  # transformers' own code


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != SMALLEST)) for name in ZOO])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_computes_what_the_network_does(name: str, sparsity: float) -> None:
    check(name, sparsity)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_computes_what_transformers_does(config: str) -> None:
    pytest.importorskip("transformers")
    check(f"transformers:{config}", 0.9)


def check(name: str, sparsity: float) -> None:
    """Captured with a batch of one; run with one and with three; every float format is in it."""
    source = find_model(name)
    model, (x,) = load_model(source)
    model = prune_model(source, model, x, sparsity).model
    exact = copy.deepcopy(model).double()
    fast = sc.compile(model, x, policy="model", progress=False)
    assert isinstance(fast, CompiledModule)
    for batch in (1, 3):
        x = source.make_input(model, batch, ())
        with torch.inference_mode():
            want, rounded = exact(x.double()), model(x)
        if not isinstance(want, torch.Tensor):
            want, rounded = want[0], rounded[0]
        got = fast(x)
        got = got if isinstance(got, torch.Tensor) else got[0]
        error, torchs = ((y.double() - want).norm() / want.norm() for y in (got, rounded))
        # float32 in another order: as far from exact as PyTorch itself, a few times over.
        assert error < max(4 * torchs, 1e-6), f"batch {batch}: {error:.1e}, PyTorch {torchs:.1e}"
