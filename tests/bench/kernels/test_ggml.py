"""ggml's products against float64, where llama-cpp-python is installed."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.libraries import PEERS
from sparsecore.bench.kernels.weights import make_problem
from sparsecore.errors import UnsupportedError

if PEERS["ggml"].versions() is None:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

from sparsecore.bench.kernels.libraries import ggml


@pytest.mark.parametrize("M", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize(("N", "K"), [(64, 256), (63, 96), (8, 32)])
def test_every_candidate_is_right(N: int, K: int, M: int) -> None:
    ggml.prepare(1)
    problem = make_problem(Layer("", N, K, M), 0.5, "magnitude")
    found = set()
    for name, build in ggml.candidates(problem).items():
        try:
            candidate = build()
        except UnsupportedError:
            assert name.endswith(" packed")
            continue
        found.add(name)
        exact, bound = ggml.exact_output(problem, name.removesuffix(" packed"))
        assert (np.abs(candidate.output() - exact) <= bound).all()
        candidate.call()
    assert {"q4_0", "q8_0"} <= found


@pytest.mark.parametrize(("name", "levels", "bits"), [("q4_0", 8, 4.5), ("q8_0", 127, 8.5)])
def test_quantized_weights_are_near(name: str, levels: int, bits: float) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    quantized = ggml.quantize(weight, name)
    assert quantized.size * 8 == bits * weight.size
    error = np.abs(ggml.dequantize(quantized, name) - weight).reshape(16, -1, ggml.BLOCK)
    # Half a step, a whole one at the end of q4_0 where 8 is missing, and the scale's float16.
    steps = np.abs(weight).reshape(error.shape).max(axis=2, keepdims=True) / levels
    assert (error <= steps * ((1 if name == "q4_0" else 0.5) + levels * 2.0**-11)).all()


def test_layers_without_whole_blocks_are_left_out() -> None:
    assert ggml.candidates(make_problem(Layer("", 8, 33, 1), 0.5, "random")) == {}
    assert ggml.candidates(make_problem(Layer("", 8, 32, 4, 1), 0.5, "random")) == {}
