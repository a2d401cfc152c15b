"""Sensitivity and the error budget, against doing the same by hand."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore import calibration
from sparsecore.errors import UnsupportedError
from sparsecore.nn import CompressedModule, Int8Linear
from sparsecore.quantize import quantization_report, quantize, sensitivity
from sparsecore.quantize.sensitivity import ReferenceOutputs


def network() -> nn.Sequential:
    """The last layer but one has an outlier channel in front of it, so that int8 activations hurt."""
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    ).eval()
    with torch.no_grad():
        model[2].weight[0] = 200 * model[2].weight[0].abs()
        model[4].weight[:, 0] = 0
    return model


def batches() -> list[Tensor]:
    return [torch.rand(8, 16), torch.rand(3, 16)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


STATIC: dict[str, Any] = {"activations": "static", "bias_correction": True, "observer": "percentile"}


@pytest.mark.parametrize("settings", [{}, {"activations": "static"}, STATIC])
@torch.no_grad()
def test_sensitivity_is_the_error_of_one_layer_in_int8(settings: dict[str, Any]) -> None:
    model, data = network(), batches()
    state = copy.deepcopy(model.state_dict())
    rows = sensitivity(model, data, **settings)
    assert {row.layer for row in rows} == {"0", "2", "4", "6"}
    assert [row.error for row in rows] == sorted((row.error for row in rows), reverse=True)
    assert rows.rows[0].layer == "4"
    x = torch.cat(data)
    for name, error in rows:
        others = [other for other in ("0", "2", "4", "6") if other != name]
        one = quantize(copy.deepcopy(model), data if settings else None, exclude=others, **settings)
        assert error == pytest.approx(relative_error(one(x), model(x)), rel=1e-5)
    # The model is as it was.
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU] * 3 + [nn.Linear]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_training_flags_are_put_back() -> None:
    class Changing(nn.Module):
        """Gives fewer outputs every time."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(16, 8), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x)[:, : 8 - self.calls // 2]

    model = nn.Sequential(Changing(), nn.Dropout()).train()
    model[1].eval()
    rows = sensitivity(model, batches())
    assert rows.rows[0].error == float("inf")
    assert [module.training for module in model.modules()] == [True, True, True, False]


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.filterwarnings("ignore:no layer was quantized")
def test_progress_only_when_it_takes_long(
    progress: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(network(), batches(), max_error=1e-9, progress=progress)
    assert capsys.readouterr().err == ""
    clock = iter(range(1000))
    monkeypatch.setattr(calibration.time, "monotonic", lambda: next(clock))
    quantize(network(), batches(), max_error=1e-9, bias_correction=True, progress=progress)
    shown = capsys.readouterr().err
    for text in ("calibrating: 2 batches", "correcting biases: 2 batches", "sensitivity: 3 of 4", "error budget: "):
        assert (text in shown) == progress


def test_table() -> None:
    rows = sensitivity(network(), batches())
    lines = str(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].split() == ["layer", "output", "error"]
    assert lines[2].split() == ["4", f"{rows.rows[0].error:.3%}"]
    assert json.loads(json.dumps(rows.to_dict()))["rows"][0]["layer"] == "4"


@pytest.mark.parametrize("settings", [{}, {"activations": "static"}, STATIC])
@torch.no_grad()
def test_budget_leaves_the_most_sensitive_layers_in_float(settings: dict[str, Any]) -> None:
    model, data = network(), batches()
    x = torch.cat(data)
    expected = model(x)
    rows = sensitivity(model, data, **settings)
    # By hand: the error with the first k of the rows left out.
    errors = []
    for k in range(4):
        excluded = [row.layer for row in rows.rows[:k]]
        by_hand = quantize(copy.deepcopy(model), data if settings else None, exclude=excluded, **settings)
        errors.append(relative_error(by_hand(x), expected))
    for k in range(4):
        budget = errors[k] * (1 + 1e-5)
        wanted = next(i for i in range(4) if errors[i] <= budget)
        quantized = quantize(copy.deepcopy(model), data, max_error=budget, **settings)
        report = quantization_report(quantized)
        found = relative_error(quantized(x), expected)
        assert found <= budget * (1 + 1e-5)
        assert report.error == pytest.approx(found, rel=1e-4)
        left = {row.layer for row in report if not row.is_quantized}
        assert left == {row.layer for row in rows.rows[:wanted]}
        assert left == {name for name, layer in quantized.named_children() if type(layer) is nn.Linear}
        if wanted:
            assert {row.layer: row.error for row in report} == pytest.approx(dict(rows), rel=1e-5)
        else:
            assert {row.error for row in report} == {None}


def test_nothing_fits_the_budget() -> None:
    model = network()
    with pytest.warns(UserWarning, match=r"no layer was quantized: max_error is 0.000%.*the least sensitive"):
        assert quantize(model, batches(), max_error=0.0) is model
    assert not any(isinstance(layer, CompressedModule) for layer in model)
    report = quantization_report(model)
    assert report.error == 0.0
    assert not any(row.is_quantized for row in report)
    assert str(report).startswith("0 of 4 layers in int8, activations dynamic, output error 0.000% of 0.000% allowed")


def test_report_of_any_quantized_model() -> None:
    shared = nn.Linear(4, 4)
    model = quantize(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2)), exclude="3")
    report = quantization_report(copy.deepcopy(model))
    assert [(row.layer, row.kind, row.form, row.error) for row in report] == [("0", "Linear", "Int8Linear", None)]
    assert report.settings == {"activations": "dynamic"}
    assert report.error is None
    static = quantize(network(), batches(), **STATIC)
    settings = quantization_report(static).settings
    assert settings == {"activations": "static", "observer": "percentile", "bias_correction": True}
    assert json.loads(json.dumps(quantization_report(static).to_dict()))["rows"][0]["form"] == "Int8Linear"
    with pytest.raises(UnsupportedError, match=r"from quantize\(\)"):
        quantization_report(nn.Sequential())


@dataclass
class Answer:
    logits: Tensor
    note: str = "no tensor"


class ManyOutputs(nn.Module):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(8, 4), nn.Linear(8, 4)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(1000 * self.large(x), self.small(x))


PACKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b, None, torch.ones(3, dtype=torch.int64)),
    "dict": lambda a, b: {"a": a, "b": b},
    "ordered": lambda a, b: OrderedDict(a=a, b=b),
    "nested": lambda a, b: {"a": a, "rest": [Answer(b)]},
}


@pytest.mark.parametrize("pack", PACKS)
@torch.no_grad()
def test_the_worst_of_several_outputs_counts(pack: str) -> None:
    model, data = ManyOutputs(PACKS[pack]).eval(), [torch.rand(16, 8)]
    rows = dict(sensitivity(model, data))
    for name in ("large", "small"):
        layer = getattr(model, name)
        assert rows[name] == pytest.approx(
            relative_error(Int8Linear.from_dense(layer)(data[0]), layer(data[0])), rel=1e-5
        )


def test_hugging_face_output() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    rows = sensitivity(ManyOutputs(lambda a, b: outputs.BaseModelOutput(a, (b,))).eval(), [torch.rand(16, 8)])
    assert all(0 < row.error < 0.1 for row in rows)


def test_shared_layers_are_measured_once_in_all_places() -> None:
    shared = nn.Linear(4, 4)
    model, data = nn.Sequential(shared, nn.ReLU(), shared).eval(), [torch.rand(16, 4)]
    rows = sensitivity(model, data)
    assert [row.layer for row in rows] == ["0"]
    quantized = quantize(copy.deepcopy(model))
    with torch.no_grad():
        assert rows.rows[0].error == pytest.approx(relative_error(quantized(data[0]), model(data[0])), rel=1e-5)


def test_transformer_fast_path_does_not_hide_a_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    data = [{"src": torch.randn(3, 5, 16), "src_key_padding_mask": padding}]
    rows = sensitivity(model, data, activations="static")
    assert {row.layer for row in rows} == {"layers.0.linear1", "layers.0.linear2"}
    assert all(0 < row.error < 0.02 for row in rows)
    assert torch.backends.mha.get_fastpath_enabled()


def measured(expected: Tensor, found: Tensor) -> float:
    """The error of a model that returns one thing first and another one after."""

    class Recorded(nn.Module):
        outputs = iter((expected, found))

        def forward(self, x: Tensor) -> Tensor:
            return next(self.outputs)

    return ReferenceOutputs(Recorded(), {}, [torch.zeros(1)]).error({})


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1.0], float("inf")),
        ([3.0, 4.0], [3.0, float("nan")], float("inf")),
        ([3.0, 4.0, -float("inf")], [3.0, 4.5, -float("inf")], 0.1),  # masked scores
        ([3.0, 4.0, -float("inf")], [3.0, 4.0, 0.0], float("inf")),
        ([3.0, 4.0], [3.0, 4.0, 5.0], float("inf")),
    ],
)
def test_error_of_special_outputs(expected: list[float], found: list[float], error: float) -> None:
    assert measured(torch.tensor(expected), torch.tensor(found)) == pytest.approx(error)


def test_nan_from_the_float_model() -> None:
    with pytest.raises(ValueError, match="NaN on calibration batch 0"):
        measured(torch.tensor([float("nan")]), torch.zeros(1))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "at least one"),
        ([torch.full((1, 16), float("nan"))], "0: expected finite activations"),
        (torch.rand(2, 16), "put it in a list"),
        (iter([torch.rand(2, 16)]), r"expected a list of batches.*put list\(\) around"),
        (3, "iterable of inputs, got int"),
        (None, "iterable of inputs, got NoneType"),
    ],
)
def test_batches_that_will_not_do(data: Any, text: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=text):
        sensitivity(model, data)
    if data is not None:
        with pytest.raises(ValueError, match=text):
            quantize(model, data, max_error=0.01)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_never_reached() -> None:
    model = network()
    model.append(nn.Identity())
    model[-1].unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"no calibration batch reached \['7.unused'\]; leave out"):
        sensitivity(model, batches())
    assert len(sensitivity(model, batches(), exclude="7.unused")) == 4


def test_a_shuffling_loader_is_read_once() -> None:
    x = torch.rand(32, 16)

    class Loader:
        reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return iter(x[torch.randperm(32)].split(8))

    loader = Loader()
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    assert all(row.error < 0.02 for row in sensitivity(model, loader))
    assert loader.reads == 1
