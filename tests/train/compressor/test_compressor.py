"""Whole runs on a tiny net: every strategy, what comes out, and what is refused before anything is done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("pydantic")
pytest.importorskip("torch_pruning")

import tiny

import sparsecore as sc
from sparsecore.errors import CheckpointError, RecipeError
from sparsecore.nn import Int8Conv2d, Int8Linear
from sparsecore.train.compressor import load_result
from sparsecore.train.strategies import STRATEGIES, recipe_methods

STRATEGIES_TRIED: dict[str, dict[str, Any]] = {
    "magnitude": {"sparsity": 0.5},
    "criterion": {"sparsity": 0.5, "criterion": "test_compressor:squares"},
    "taylor": {"sparsity": 0.5},
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "n:m": {"pattern": "1:2"},
    "blocks": {"sparsity": 0.5, "exclude": "11"},
    "gradual": {"sparsity": 0.8, "frequency": 2, "end": 2},
    "erdos-renyi": {"sparsity": 0.5},
    "iterative": {"sparsity": 0.8, "rounds": 2, "sensitivity": {"sparsities": [0.5, 0.9]}},
    "l1-filters": {"ratio": 0.5},
    "neurons": {"ratio": 0.5},
    "taylor-filters": {"ratio": 0.5},
    "filters-to-target": {"reduce_by": 0.5, "sensitivity": {"ratios": [0.5, 0.9]}},
    "network-slimming": {"ratio": 0.5, "end": 2},
    "resrep": {"reduce_by": 0.3, "begin": 1, "frequency": 1, "rows": 8, "strength": 0.5, "end": 3},
    "int8-dynamic": {"start": None},
    "int8-static": {"start": None},
    "qat": {},
    "weight-sharing": {"bits": 3},
    "binaryconnect": {"skip_ends": True},
    "ternary": {"method": "ttq"},
    "distillation": {},
    "apprentice": {"scheme": "A"},
    "separable": {"exclude": "0"},
    "low-rank": {"error": 0.3},
}
# On a transformer.
OTHERS_TRIED = {"attention-heads": {"ratio": 0.5}, "layer-drop": {"container": "encoder.layers", "probability": 0.5}}


def squares(name: str, weight: Tensor) -> Tensor:
    return weight.square()


def test_every_method_that_can_stand_in_a_recipe_is_tried_here() -> None:
    assert {method.name for method in recipe_methods()} == STRATEGIES_TRIED.keys() | OTHERS_TRIED.keys()
    assert {method.entry for method in recipe_methods()} == STRATEGIES.keys()


@pytest.mark.parametrize("name", [*STRATEGIES_TRIED, *OTHERS_TRIED])
def test_every_strategy_runs_and_is_loaded_again(name: str, tmp_path: Path) -> None:
    build = tiny.Transformer if name in OTHERS_TRIED else tiny.net
    entry = {"name": name, "start": 1, **{**STRATEGIES_TRIED, **OTHERS_TRIED}[name]}
    recipe = tiny.recipe([entry], epochs=3)
    before = build()
    compressed = tiny.compress(recipe, tmp_path / "run", model=build())
    assert not tiny.same_state(before, compressed.model)
    loaded = load_result(tmp_path / "run", build)
    x = tiny.images()[0]
    assert torch.equal(loaded(x), compressed.model(x))
    assert compressed.report.rows[0].after == "start"
    assert name in " ".join(row.after for row in compressed.report.rows)
    assert compressed.report.rows[-1].metric == tiny.accuracy(loaded)


def test_many_at_once(tmp_path: Path) -> None:
    """Filters, zeros and int8 with a teacher: every promise of each holds at the end."""
    compressed = tiny.compress(tiny.recipe(tiny.MANY), tmp_path / "run")
    layers = [module for module in compressed.model if isinstance(module, Int8Conv2d | Int8Linear)]
    assert [layer.out_channels for layer in layers[:2]] == [6, 12]
    for layer in layers:
        q = layer.tensors()["q"]
        assert abs(float((q == 0).double().mean()) - 0.75) < 0.1  # rounding to int8 adds a few
    rows = compressed.report.rows
    assert rows[-1].disk_bytes < rows[0].disk_bytes / 2
    assert rows[-1].nonzeros < rows[0].nonzeros / 2
    assert (tmp_path / "run" / "report.json").exists()
    assert "| start |" in (tmp_path / "run" / "report.md").read_text()


def test_compiled_and_saved(tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.MANY, compile={"policy": "model"})
    compressed = tiny.compress(recipe, tmp_path / "run")
    assert "compressed, compiled" in compressed.report.latency
    x = tiny.images()[0][:1]
    assert torch.equal(sc.load(tmp_path / "run" / "model.safetensors", tiny.net)(x), compressed.fast(x))


def test_without_strategies_it_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    model = tiny.net()
    compressed = tiny.compress(tiny.recipe([], epochs=2), tmp_path / "run", model=model)
    assert compressed.model is model
    assert [row.after for row in compressed.report.rows] == ["start", "training", "saved"]

    from sparsecore.train.compressor.data import TrainingData
    from sparsecore.train.compressor.state import seed_everything

    plain, data = tiny.net(), TrainingData(tiny.images(), tiny.BATCH, 0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    seed_everything(0, 0)
    for epoch in range(2):
        for share in data.epoch(epoch):
            x, y = data.read(share.rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
            scheduler.step()
    assert tiny.same_state(plain, model)


def test_the_callers_random_numbers_stay(tmp_path: Path) -> None:
    model = tiny.net()
    state = torch.get_rng_state()
    tiny.compress(tiny.recipe([], epochs=1), tmp_path / "run", model=model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "magnitude", "sparsity": 1.5}, "strategies.0.sparsity: expected a sparsity in [0, 1), got 1.5"),
        ({"name": "magnitude", "sparsity": 0.5, "exclude": "conv1"}, "strategies.0.exclude"),
        ({"name": "blocks", "sparsity": 0.5, "pattern": "4x1"}, "strategies.0.pattern: pattern 4x1 does not fit"),
        ({"name": "filters-to-target", "reduce_by": 0.999}, "strategies.0.reduce_by: expected reduce_by of at most"),
        ({"name": "filters-to-target", "reduce_by": 1.0}, "strategies.0.reduce_by: expected reduce_by in (0, 1)"),
        ({"name": "resrep", "reduce_by": 0.999, "begin": 0}, "strategies.0: the layers that can have a compactor"),
        ({"name": "attention-heads", "ratio": 0.5}, "strategies.0: "),
        ({"name": "distillation", "teacher": "nowhere:teacher"}, "cannot import nowhere:teacher"),
        ({"name": "low-rank", "rank": 3, "error": 0.1}, "strategies.0"),
        ({"name": "qat", "bits": 9}, "strategies.0.bits: expected bits from 2 to 8, got 9"),
    ],
)
def test_what_cannot_be_is_found_before_training(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = tiny.net()
    last = {"epochs": 50, "start": 49}
    recipe = tiny.recipe([{**entry, "start": last["start"]}], epochs=last["epochs"])

    def no_training(*_: object) -> Tensor:
        raise AssertionError("trained")

    with pytest.raises(RecipeError) as error:
        tiny.compressor(recipe, tmp_path / "run", model=model, training_step=no_training).run()
    assert message in str(error.value)
    assert tiny.same_state(model, tiny.net())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, "good", None, True])
def test_a_metric_that_is_no_number(value: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe: metric: expected a finite number from the metric, got"):
        tiny.compress(tiny.recipe([]), tmp_path / "new" / "run", metric=lambda model: value)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RecipeError, match="expected a finite number"):
        tiny.compress(tiny.recipe([]), tmp_path / "run", metric=lambda model: math.nan)
    assert not any((tmp_path / "run").iterdir())


def test_a_metric_in_numpy_is_a_number(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    compressed = tiny.compress(tiny.recipe([], compile=False), tmp_path / "run", metric=lambda model: numpy.float32(2))
    assert compressed.report.rows[-1].metric == 2


def broken(*arguments: Any) -> Any:
    raise KeyError("no such\nimage")


def broken_teacher() -> nn.Module:
    raise broken()


@pytest.mark.parametrize("name", ["metric", "training_step", "loss"])
def test_a_function_that_raises_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    said = rf"recipe: {name}: KeyError: 'no such.*image' \(test_compressor.py:\d+ in broken\)"
    with pytest.raises(RecipeError, match=said) as error:
        tiny.compress(tiny.recipe([]), tmp_path / "run", **{name: broken})
    assert "\n" not in str(error.value)
    assert type(error.value.__cause__) is KeyError
    assert not (tmp_path / "run").exists()


class BrokenSamples(torch.utils.data.Dataset[Any]):
    """The images, of which the last cannot be read."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, row: int) -> Any:
        return broken() if row == 95 else tuple(part[row] for part in tiny.images())


def test_a_sample_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe: data: KeyError: .* \(test_compressor.py:\d+ in broken\)"):
        tiny.compress(tiny.recipe([]), tmp_path / "run", train_data=BrokenSamples())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "criterion", "sparsity": 0.5, "criterion": "test_compressor:broken"},
        {"name": "distillation", "teacher": "test_compressor:broken_teacher"},
    ],
)
def test_a_function_of_a_strategy_that_raises_is_named_with_its_line(entry: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe: strategies.0.*KeyError: .*\(test_compressor.py:\d+ in broken\)"):
        tiny.compress(tiny.recipe([entry]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model, batch, loss: None, "training_step: expected the loss as a tensor of one number, got NoneType"),
        (lambda model, batch, loss: batch[0], "training_step: expected the loss .* one of shape "),
        (lambda model, batch, loss: torch.ones(()), "the loss has no gradient; compute it without"),
    ],
)
def test_a_training_step_without_a_loss(step: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny.compress(tiny.recipe([]), tmp_path / "run", training_step=step)


def test_a_label_out_of_range_in_a_later_step(tmp_path: Path) -> None:
    x, y = tiny.images()
    y[-1] = 7  # the rehearsal sees the first samples alone
    with pytest.raises(RecipeError, match=r"do not fit in step [123], with a batch of .*\[32, 2, 8, 8\], \[32\].*7"):
        tiny.compress(tiny.recipe([]), tmp_path / "run", train_data=(x, y))


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecore.train.compressor.compressor.counts", {}.__getitem__)
    with pytest.raises(KeyError):
        tiny.compress(tiny.recipe([{"name": "magnitude", "sparsity": 0.5}]), tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": tiny.net().half()}, "first batch, .*: RuntimeError: "),
        (
            {"train_data": (torch.randn(64, 3, 8, 8), torch.zeros(64).long())},
            "batch, .*: RuntimeError: .*channels",
        ),
        ({"train_data": (tiny.images()[0], tiny.images()[1].float())}, "first batch, .*: RuntimeError: .*Float"),
        ({"train_data": (tiny.images()[0], tiny.images()[1] + 5)}, "first batch, .*: IndexError: "),
        ({"train_data": [tiny.images()]}, r"first batch, with a batch of .*\[1, 96, 2, 8, 8\], \[1, 96\]"),
        ({"loss": lambda output, labels: None}, "loss: expected the loss as a tensor of one number, got NoneType"),
        ({"model": tiny.net().requires_grad_(False)}, "no parameter of the model requires gradients"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arguments = {"model": tiny.net(), "train_data": tiny.images(), "metric": tiny.accuracy} | given
    compressor = sc.Compressor(recipe=tiny.recipe([]), output=tmp_path / "run", **arguments)
    with pytest.raises(RecipeError, match=message) as error:
        compressor.run()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tiny.images())), "DataLoader; give its dataset"),
        (tuple(zip(*tiny.images(), strict=True)), "a list of samples such as .*, got tuple of tuple"),
        (tuple(part.numpy() for part in tiny.images()), "got tuple of ndarray; torch.as_tensor"),
        (
            [{"x": image, "label": 1} for image in tiny.images()[0]],
            '"labels" among its keys, got a dict with x, label;',
        ),
        ([1, 2], "a list of samples such as .*, got list of int"),
        ([], "expected a torch.utils.data.Dataset"),
        ({"x": tiny.images()[0], "labels": tiny.images()[1][:5]}, r"tensors of one length, got \[96, 5\]"),
    ],
)
def test_what_is_no_data(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny.compressor(tiny.recipe([]), tmp_path / "run", train_data=data).run()
    assert not (tmp_path / "run").exists()


class TwoInputs(nn.Module):
    """The images come apart, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.net()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.net(torch.cat([left, right], 1))


def two_inputs(model: nn.Module) -> float:
    x, y = tiny.images()
    return float((model(x[:, :1], right=x[:, 1:]).argmax(1) == y).double().mean())


def data_of_two_inputs(form: str) -> Any:
    x, y = tiny.images()
    left, right = x[:, :1], x[:, 1:]
    names = {"left": left, "right": right, "labels": y}
    return {
        "tuple of tensors": (left, right, y),
        "dict of tensors": names,
        "list of tuples": list(zip(left, right, y, strict=True)),
        "list of dicts": [{name: column[row] for name, column in names.items()} for row in range(96)],
    }[form]


@pytest.mark.parametrize("form", ["dict of tensors", "list of tuples", "list of dicts"])
@pytest.mark.parametrize("compile", [False, {"policy": "model"}])
def test_several_inputs_in_every_form_of_data(form: str, compile: Any, tmp_path: Path) -> None:
    """All forms are the same samples, so they train to the same weights; int8 and cuts see all inputs too."""
    strategies = [
        {"name": "l1-filters", "start": 1, "ratio": 0.5},
        {"name": "wanda", "start": 1, "sparsity": 0.5},
        {"name": "distillation", "start": 1},
        {"name": "int8-static"},
    ]
    recipe = tiny.recipe(strategies, epochs=2, compile=compile, example_batch=2)
    models = []
    for each in (form, "tuple of tensors"):
        data = data_of_two_inputs(each)
        run = tiny.compress(recipe, tmp_path / each, model=TwoInputs(), train_data=data, metric=two_inputs)
        models.append(run.model)
    assert tiny.same_state(*models)
    assert any(isinstance(module, Int8Conv2d) for module in models[0].modules())


def test_a_loss_that_is_never_finite(tmp_path: Path) -> None:
    x, y = tiny.images()
    compressor = sc.Compressor(
        tiny.net(), tiny.recipe([]), train_data=(x * math.nan, y), metric=tiny.accuracy, output=tmp_path / "run"
    )
    with pytest.raises(RecipeError, match="in step 1; nothing has been trained yet: look for NaN"):
        compressor.run()


def test_why_nothing_can_be_cut_is_one_line_with_parts(tmp_path: Path) -> None:
    compressor = sc.Compressor(
        nn.Sequential(nn.Flatten(), nn.Linear(128, 128), nn.Linear(128, 3)),
        tiny.recipe([{"name": "l1-filters", "ratio": 0.5, "exclude": "1"}]),
        train_data=tiny.images(),
        metric=tiny.accuracy,
        output=tmp_path / "run",
    )
    with pytest.raises(RecipeError, match=r"nothing to cut in Sequential: 1 +cannot be cut: .*; 2 +cannot be cut"):
        compressor.run()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"optimizer": "Adan"}, "optimizer: torch.optim has no 'Adan', perhaps you meant Adam"),
        ({"optimizer": {"name": "SGD", "rate": 1}}, "optimizer: SGD: "),
        ({"optimizer": "LBFGS"}, "optimizer: LBFGS evaluates"),
        ({"scheduler": "Cosine"}, "scheduler: torch.optim.lr_scheduler has no 'Cosine'"),
        ({"scheduler": "ReduceLROnPlateau"}, "scheduler: expected ReduceLROnPlateau to be a scheduler that steps"),
        ({"loss": "nowhere:loss"}, "loss: cannot import nowhere:loss"),
    ],
)
def test_optimizer_scheduler_and_functions_that_do_not_exist(
    others: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        tiny.compress(tiny.recipe([], **others), tmp_path / "run")
    assert message in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the loss is nan in step 1; nothing has been trained yet"):
        tiny.compress(tiny.recipe([]), tmp_path / "run", loss=lambda output, labels: output.sum() * math.nan)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    tiny.compress(tiny.recipe([], epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="of another run; go on with it by resuming"):
        tiny.compress(tiny.recipe([], epochs=1), tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_dry_run_says_what_would_be_and_changes_nothing(tmp_path: Path) -> None:
    model = tiny.net()
    events = tiny.compressor(tiny.recipe(tiny.MANY), tmp_path / "run", model=model).dry_run()
    assert [event["event"] for event in events][:3] == ["begin distillation", "begin l1-filters", "begin gradual"]
    assert events[1]["parameters"] < events[0]["parameters"]
    assert tiny.same_state(model, tiny.net())
    assert not (tmp_path / "run").exists()


def test_masks_and_cuts_hold_while_the_optimizer_goes_on(tmp_path: Path) -> None:
    """A cut in the middle keeps the momentum of what stays: the same as an optimizer that never had the rest."""
    seen: list[tuple[int, float]] = []

    def step(model: nn.Module, batch: Any, loss: Any) -> Tensor:
        x, y = batch
        weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        if model.training:
            seen.append((len(weights[0]), float((weights[0] == 0).double().mean())))
        return loss(model(x), y, x)

    strategies = [{"name": "l1-filters", "start": 1, "ratio": 0.5}, {"name": "magnitude", "start": 2, "sparsity": 0.5}]
    tiny.compress(tiny.recipe(strategies, epochs=3), tmp_path / "run", training_step=step)
    assert seen[0] == (32, 0.0)
    assert seen[tiny.STEPS_PER_EPOCH] == (16, 0.0)
    assert all(row == (16, 0.5) for row in seen[2 * tiny.STEPS_PER_EPOCH :])
