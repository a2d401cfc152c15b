"""quantize(): which layers change into what, and that a failure changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn import (
    Int8Conv2d,
    Int8Linear,
    SparseConv2d,
    SparseInt4Linear,
    SparseInt8Conv2d,
    SparseInt8Linear,
    SparseLinear,
)
from sparsecore.quantize import Percentile, quantization_report, quantize


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Sequential(nn.Linear(4 * 8 * 8, 16), nn.ReLU()),
        nn.Linear(16, 10),
    ).eval()
    with torch.no_grad():
        for module in (model[0], model[3][0]):
            module.weight *= torch.rand(module.weight.shape) < 0.5
    return model


def kinds(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules() if hasattr(module, "bias")]


DENSE = [nn.Conv2d, nn.Linear, nn.Linear]
INT8 = [Int8Conv2d, Int8Linear, Int8Linear]


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_close_to_the_float_model(activations: Any) -> None:
    model, x = network(), torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
        zeros = model[3][0].weight == 0
        batches = [x[:16], x[16:]] if activations == "static" else None
        assert quantize(model, batches, activations=activations) is model
        error = (model(x) - expected).abs().max()
    assert kinds(model) == INT8
    assert float(error) < 0.02 * float(expected.abs().max())
    assert bool((model[3][0].weight[zeros] == 0).all())
    assert [module.x_scale is None for module in (model[0], model[4])] == [activations == "dynamic"] * 2


def test_static_covers_the_calibration_range() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    quantize(model, [torch.full((1, 8), 51.0), torch.full((1, 8), 255.0)], activations="static")
    assert (model[0].x_scale, model[0].x_zero_point) == (1.0, -128)


def test_a_generator_will_do_for_static_activations() -> None:
    model, x = network(), torch.rand(32, 1, 8, 8)
    same = network()
    same.load_state_dict(model.state_dict())
    quantize(model, (part for part in x.split(8)), activations="static")
    quantize(same, [x], activations="static")
    assert [model[i].x_scale for i in (0, 4)] == [same[i].x_scale for i in (0, 4)]


@pytest.mark.parametrize("observer", ["percentile", "mse", Percentile(99.0)])
def test_observers_clip(observer: Any) -> None:
    x = torch.cat([torch.randn(20_000), torch.tensor([200.0])])[:, None]
    layer = nn.Linear(1, 1)
    clipped, whole = nn.Sequential(layer), nn.Sequential(layer)
    quantize(clipped, [x], activations="static", observer=observer)
    quantize(whole, [x], activations="static")
    assert clipped[0].x_scale < whole[0].x_scale


def test_sparse_layers_stay_sparse() -> None:
    model = network()
    model[0], model[4] = SparseConv2d.from_dense(model[0]), SparseLinear.from_dense(model[4])
    zeros = model[0].weight == 0
    quantize(model)
    assert kinds(model) == [SparseInt8Conv2d, Int8Linear, SparseInt8Linear]
    assert bool((model[0].weight[zeros] == 0).all())
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        quantize(model)


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ("3", [Int8Conv2d, nn.Linear, Int8Linear]),
        (["0", "4"], [nn.Conv2d, Int8Linear, nn.Linear]),
        (nn.Conv2d, [nn.Conv2d, Int8Linear, Int8Linear]),
        ("3.*", [Int8Conv2d, nn.Linear, Int8Linear]),
        ((nn.Conv2d, "3.0"), [nn.Conv2d, nn.Linear, Int8Linear]),
    ],
)
def test_exclude(exclude: Any, expected: list[type[nn.Module]]) -> None:
    model = network()
    quantize(model, exclude=exclude)
    assert kinds(model) == expected


def test_shared_layer_stays_shared() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    quantize(model, [torch.rand(2, 4)], activations="static")
    assert isinstance(model[0], Int8Linear)
    assert model[0] is model[2]


def test_training_flags_stay() -> None:
    model = network().train()
    model[4].eval()
    quantize(model)
    assert model[0].training
    assert not model[4].training


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("boom")


@pytest.mark.parametrize(
    ("change", "arguments", "error", "text"),
    [
        ({}, {"activations": "float"}, ValueError, "dynamic"),
        ({}, {"activations": "static"}, ValueError, "batches exactly with"),
        ({}, {"batches": [torch.rand(1, 1, 8, 8)]}, ValueError, "batches exactly with"),
        ({}, {"activations": "static", "batches": []}, ValueError, "at least one"),
        ({}, {"activations": "static", "batches": torch.rand(1, 1, 8, 8)}, ValueError, "put it in a list"),
        ({}, {"max_error": 0.01}, ValueError, "batches exactly with.*max_error"),
        ({}, {"bias_correction": True}, ValueError, "batches exactly with.*bias_correction"),
        ({}, {"per_channel": True}, ValueError, "batches exactly with.*per_channel"),
        ({}, {"max_error": -1.0}, ValueError, "max_error of at least 0"),
        ({}, {"alpha": 1.5}, ValueError, "alpha between 0 and 1"),
        ({}, {"observer": "mean"}, ValueError, "observer of minmax, percentile, mse"),
        *(
            ({}, {"activations": "static", "batches": iter([torch.rand(1, 1, 8, 8)]), name: value}, ValueError,
             "expected a list of batches.*got a list_iterator")
            for name, value in {"max_error": 0.5, "bias_correction": True, "per_channel": True}.items()
        ),
        (
            {},
            {"activations": "static", "batches": [torch.full((1, 1, 8, 8), float("nan"))]},
            ValueError,
            "0: expected finite activations",
        ),
        ({}, {"exclude": "typo"}, ValueError, "'typo'"),
        ({}, {"exclude": "*"}, UnsupportedError, "nothing to quantize"),
        ({1: Failing()}, {"activations": "static", "batches": [torch.rand(1, 1, 8, 8)]}, KeyError,
         "boom"),
        ({1: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")}, {}, UnsupportedError,
         "1: expected padding with zeros.*exclude='1'"),
    ],
)  # fmt: skip
def test_failure_changes_nothing(
    change: dict[int, nn.Module], arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = network()
    for index, module in change.items():
        model[index] = module
    before = list(model.modules())
    with pytest.raises(error, match=text):
        quantize(model, **arguments)
    assert list(model.modules()) == before


def test_nan_weight_is_named() -> None:
    model = network()
    with torch.no_grad():
        model[3][0].weight[0, 0] = float("inf")
    with pytest.raises(FormatError, match=r"3\.0: expected a finite weight.*exclude='3\.0'"):
        quantize(model)
    assert kinds(model) == DENSE


def test_weights_without_values_and_layers_of_other_classes_are_named() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FormatError, match="0: the weight has no values yet; initialise the model first"):
        quantize(empty)
    own = nn.Sequential(nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UnsupportedError, match="is left; 1 is a ParametrizedLinear, a class of its own"):
        quantize(own)
    with pytest.raises(UnsupportedError, match=r"no Linear or Conv2d is left$"):
        quantize(own, exclude="1")


def test_a_single_layer_cannot_be_replaced_in_place() -> None:
    with pytest.raises(UnsupportedError, match=r"nn\.Sequential"):
        quantize(nn.Linear(2, 2))


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_channel_scales_keep_outlier_channels_apart(activations: Any) -> None:
    gains = torch.ones(64)
    gains[5] = 100.0
    x = torch.randn(256, 64) * gains
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        model[0].weight[:, 5] /= 100
        expected = model(x)
    errors = {}
    for per_channel in (False, True):
        quantized = copy.deepcopy(model)
        batches = [x] if per_channel or activations == "static" else None
        quantize(quantized, batches, activations=activations, per_channel=per_channel)
        assert quantization_report(quantized).settings.get("per_channel", False) == per_channel
        errors[per_channel] = float((quantized(x) - expected).norm() / expected.norm())
    assert errors[True] < errors[False] / 5


def test_channel_scales_of_every_class_of_layer() -> None:
    for groups in (1, 2):
        model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=groups), nn.Flatten(), nn.Linear(4 * 36, 3))
        sparse = nn.Sequential(
            SparseConv2d.from_dense(model[0], activation="relu"), nn.Flatten(), SparseLinear.from_dense(model[2])
        )
        x = torch.randn(16, 2, 8, 8) * torch.tensor([1.0, 50.0])[:, None, None]
        for network in (model, sparse):
            expected = network(x).detach()
            quantize(network, [x], activations="static", per_channel=True)
            assert float((network(x) - expected).norm() / expected.norm()) < 0.03
        assert sparse[0].activation == "relu"


# --- 4 bits ---


def test_linear_layers_of_4_bits() -> None:
    model, x = network(), torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
        zeros = model[3][0].weight == 0
        quantize(model, bits=4, group_size=64)
        error = (model(x) - expected).norm() / expected.norm()
    assert kinds(model) == [Int8Conv2d, SparseInt4Linear, SparseInt4Linear]
    assert float(error) < 0.1
    assert bool((model[3][0].weight[zeros] == 0).all())
    assert model[3][0].weight_format.group_size == 64
    report = quantization_report(model)
    assert (report.settings["bits"], report.settings["group_size"]) == (4, 64)


def test_sparse_layers_of_4_bits_keep_their_activation_and_settings() -> None:
    x = torch.randn(64, 40)
    dense = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
    model = nn.Sequential(SparseLinear.from_dense(dense[0], activation="relu"), SparseLinear.from_dense(dense[2]))
    batches = [x[:32], x[32:]]
    for each in (dense, model):
        quantize(each, batches, activations="static", per_channel=True, bias_correction=True, bits=4, group_size=16)
    assert [type(layer) for layer in model] == [SparseInt4Linear] * 2
    assert model[0].activation == "relu"
    assert model[0].x_scale == dense[0].x_scale
    torch.testing.assert_close(model(x), dense(x))  # biases are corrected by sums in another order


def test_4_bits_within_an_error_budget() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    quantize(model, [torch.randn(16, 40)], bits=4, max_error=1e-4)
    assert not any(isinstance(layer, SparseInt4Linear) for layer in model)


@pytest.mark.parametrize(
    ("options", "message"), [({"bits": 5}, "bits of 8 or 4"), ({"group_size": 24}, "multiple of 16")]
)
def test_wrong_bits_and_groups(options: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        quantize(model, **options)
    assert kinds(model) == DENSE
