"""Bias correction: the mean error of every output channel is gone on the batches it was made from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecore.nn import SparseConv2d, SparseLinear
from sparsecore.quantize import quantize
from sparsecore.quantize.bias import correct_bias
from sparsecore.quantize.layers import find_layers, quantize_layer


class Rounded(nn.Linear):
    """Stands for any quantized layer: a weight that is a little off, and no bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter((linear.weight * 4).round() / 4)


def channel_errors(layer: nn.Module, quantized: nn.Module, x: Tensor, dim: int) -> Tensor:
    with torch.no_grad():
        error = quantized(x).double() - layer(x).double()
    return error.movedim(dim, 0).flatten(1).mean(1)


def test_mean_error_is_zero() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    batches = [torch.rand(5, 3, 16), torch.rand(16), torch.rand(0, 16)]
    layers = {"0": model[0], "2": model[2]}
    quantized: dict[nn.Module, nn.Module] = {layer: Rounded(layer) for layer in layers.values()}
    x = torch.cat([batch.reshape(-1, 16) for batch in batches])
    hidden = torch.relu(model[0](x)).detach()
    expected = quantized[model[2]](hidden).mean(0) - model[2](hidden).mean(0)
    correct_bias(model, layers, quantized, batches)
    for layer, inputs in ((model[0], x), (model[2], hidden)):
        assert float(channel_errors(layer, quantized[layer], inputs, -1).abs().max()) < 1e-6
    torch.testing.assert_close(quantized[model[2]].bias, -expected)
    assert not quantized[model[2]].bias.requires_grad
    assert model[2].bias is None


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_int8_layers(activations: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    with torch.no_grad():
        model[3].weight *= torch.rand(model[3].weight.shape) < 0.3
    layers, x = [model[0], model[3]], torch.rand(16, 3, 8, 8)
    hidden = model[:3](x).detach()
    plain = quantize_means(model, layers, x, hidden, activations, bias_correction=False)
    corrected = quantize_means(model, layers, x, hidden, activations, bias_correction=True)
    assert corrected < 1e-6 < plain


def quantize_means(
    model: nn.Sequential, layers: list[nn.Module], x: Tensor, hidden: Tensor, activations: str, bias_correction: bool
) -> float:
    """Largest mean error of any channel of both layers, each on its float inputs."""
    copy = nn.Sequential(*model)
    batches = [x[:8], x[8:]] if activations == "static" or bias_correction else None
    quantize(copy, batches, activations=activations, bias_correction=bias_correction)  # type: ignore[arg-type]
    errors = [channel_errors(layers[0], copy[0], x, 1), channel_errors(layers[1], copy[3], hidden, 1)]
    return max(float(error.abs().max()) for error in errors)


def test_an_activation_in_the_layer_is_left_out() -> None:
    dense = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3))
    model = nn.Sequential(
        SparseConv2d.from_dense(dense[0], activation="relu"),
        nn.Flatten(),
        SparseLinear.from_dense(dense[2], activation="relu"),
    )
    x = torch.randn(16, 2, 6, 6)
    layers = find_layers(model, ())
    quantized = {layer: quantize_layer(name, layer, {}) for name, layer in layers.items()}
    correct_bias(model, layers, quantized, [x])
    hidden = model[:2](x).detach()
    for layer, inputs in ((model[0], x), (model[2], hidden)):
        assert (layer.activation, quantized[layer].activation) == ("relu", "relu")
        layer.activation = quantized[layer].activation = "none"
        dim = 1 if layer is model[0] else -1
        assert float(channel_errors(layer, quantized[layer], inputs, dim).abs().max()) < 1e-6


def test_shared_and_unreached_layers() -> None:
    shared, unused = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    layers = {"0": shared, "2": shared, "other": unused}
    quantized: dict[nn.Module, nn.Module] = {shared: Rounded(shared), unused: Rounded(unused)}
    x = torch.randn(8, 4)
    correct_bias(model, layers, quantized, [x])
    both = torch.cat([x, torch.relu(shared(x)).detach()])
    assert float(channel_errors(shared, quantized[shared], both, -1).abs().max()) < 1e-6
    assert quantized[unused].bias is None
