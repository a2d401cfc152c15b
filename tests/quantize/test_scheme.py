"""Settings of quantize(): what the int8 layers are made with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsecore.quantize import scheme as scheme_module
from sparsecore.quantize.affine import affine_range
from sparsecore.quantize.channels import channel_scale
from sparsecore.quantize.observers import Percentile
from sparsecore.quantize.scheme import Scheme


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Settings by the name of the layer, instead of layers."""
    settings: dict[str, dict[str, Any]] = {}

    def quantize_layer(name: str, layer: nn.Module, given: dict[str, Any]) -> nn.Module:
        settings[name] = given
        return layer

    monkeypatch.setattr(scheme_module, "quantize_layer", quantize_layer)
    return settings


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_static_range_is_that_of_the_scaled_channels(made: dict[str, dict[str, Any]], alpha: float) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(4, 3))
    layers = {"0": model[0], "2": model[2]}
    x = torch.randn(8, 2, 4, 4) * torch.tensor([1.0, 30.0])[:, None, None]
    Scheme("static", per_channel=True, alpha=alpha).quantize(model, layers, x.split(3), progress=False)

    weight = model[0].weight.detach()
    scale = channel_scale(x.abs().amax((0, 2, 3)), weight.abs().amax((0, 2, 3)), alpha)
    assert torch.equal(made["0"]["x_channel_scale"], scale)
    scaled = x / scale[:, None, None]
    assert (made["0"]["x_scale"], made["0"]["x_zero_point"]) == affine_range(float(scaled.min()), float(scaled.max()))

    hidden = model[:2](x).detach()
    scale = channel_scale(hidden.abs().amax((0, 1)), model[2].weight.detach().abs().amax(0), alpha)
    torch.testing.assert_close(made["2"]["x_channel_scale"], scale)
    scale = made["2"]["x_channel_scale"]
    assert (scale.dtype, scale.shape) == (torch.float32, (4,))


def test_dynamic_layers_get_channel_scales_alone(made: dict[str, dict[str, Any]]) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    Scheme("dynamic", per_channel=True).quantize(model, {"0": model[0]}, [torch.rand(2, 4)], progress=False)
    assert set(made["0"]) == {"x_channel_scale"}
    Scheme("dynamic", bias_correction=False).quantize(model, {"0": model[0]}, None, progress=False)
    assert made["0"] == {}


def test_description_holds_what_was_asked_for() -> None:
    assert Scheme().describe() == {"activations": "dynamic"}
    assert Scheme("static", "mse").describe() == {"activations": "static", "observer": "mse"}
    described = Scheme("static", Percentile(99.5), per_channel=True, alpha=1.0).describe()
    assert described == {"activations": "static", "observer": "Percentile(99.5)", "per_channel": True, "alpha": 1.0}
    assert Scheme("static", Percentile).describe()["observer"] == "Percentile"


def test_passes() -> None:
    assert Scheme("static").passes == 1
    assert Scheme("static", per_channel=True, bias_correction=True).passes == 3
    assert Scheme("dynamic", bias_correction=True).passes == 2
