"""int8 for peers, against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.libraries import quantized
from sparsecore.bench.kernels.libraries.quantized import UInt8Scale, quantize_weight
from sparsecore.bench.kernels.weights import make_problem


@pytest.mark.parametrize("values", [[-1.0, 3.0], [2.0, 5.0], [-4.0, -1.0], [0.0, 0.0]])
def test_activations(values: list[float]) -> None:
    x = np.linspace(*values, 50, dtype=np.float32)
    scale = UInt8Scale.of(x)
    assert np.abs(scale.dequantize(scale.quantize(x)) - x).max() <= scale.scale * 0.51
    assert scale.dequantize(scale.quantize(np.zeros(1, np.float32))) == 0
    low, high = scale.range
    assert low <= min(values[0], 0) + scale.scale
    assert high >= max(values[1], 0) - scale.scale


@pytest.mark.parametrize(("vnni", "largest"), [(True, 127), (False, 63)])
@pytest.mark.parametrize("layer", [Layer("", 8, 64, 1), Layer("", 8, 4, 5, 3)])
def test_weights(layer: Layer, vnni: bool, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "weight_levels", lambda: 127 if vnni else 63)
    problem = make_problem(layer, 0.5, "random")
    problem.weight[3] = 0
    q, scales = quantize_weight(problem)
    assert q.shape == problem.weight.shape
    assert np.abs(q).max() == largest
    assert not q[3].any()
    off = q.reshape(8, -1) * scales[:, None] - problem.matrix
    assert (np.abs(off) <= 0.51 * scales[:, None]).all()
