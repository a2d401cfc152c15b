"""Recipes are checked as a whole, and errors name the line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("yaml")

from torch import nn

from sparsecore import methods
from sparsecore.errors import MissingExtraError, RecipeError
from sparsecore.methods import Method, register
from sparsecore.train.recipe import read_recipe
from sparsecore.train.strategies import recipe_methods, recipe_options, strategy_class

TEXT = """epochs: 10
optimizer: {name: SGD, lr: 1e-3}
strategies:
- name: l1-filters
  ratio: 0.3
  start: 2
- name: gradual
  start: 2
  end: 6
  sparsity: 0.8
- {name: n:m, pattern: 2:4, start: 6}
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_as_it_is_read(tmp_path: Path) -> None:
    checked = read_recipe(written(TEXT, tmp_path))
    assert checked.recipe.optimizer.arguments == {"lr": 0.001}
    assert [(plan[0].name, *plan[1:]) for plan in checked.plans] == [
        ("l1-filters", {"ratio": 0.3}, 2, 2),
        ("gradual", {"sparsity": 0.8}, 2, 6),
        ("n:m", {"pattern": "2:4"}, 6, 6),
    ]


def test_epochs_that_are_left_out() -> None:
    strategies = [{"name": "magnitude", "sparsity": 0.5}, {"name": "gradual", "sparsity": 0.9}, {"name": "int8-static"}]
    checked = read_recipe({"epochs": 7, "strategies": [strategies[0]]})
    assert checked.plans[0][2:] == (0, 0)
    checked = read_recipe({"epochs": 7, "strategies": strategies[1:]})
    assert [plan[2:] for plan in checked.plans] == [(0, 7), (7, 7)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 10", "epoch: 10", "1:1: epoch: unknown key, perhaps you meant epochs"),
        ("epochs: 10", "epochs: ten", "1:9: epochs: expected an integer, got 'ten'"),
        ("epochs: 10", "batch: 2", "1:1: expected a value for epochs"),
        ("epochs: 10", "epochs: -1", "1:9: epochs: expected greater than or equal to 0, got -1"),
        ("epochs: 10", "epochs: true", "1:9: epochs: expected an integer, got True"),
        ("{name: SGD, lr: 1e-3}", "{lr: 1e-3}", "2:12: optimizer: expected a value for name"),
        ("{name: SGD, lr: 1e-3}", "[SGD]", "2:12: optimizer: expected a dictionary with a name, or a name alone, got"),
        (
            "- name: l1-filters",
            "- l1-filters\n- name: l1-filters",
            "4:3: strategies.0: expected a dictionary such as {name: ",
        ),
        ("  sparsity: 0.8", "  sparsety: 0.8", "10:3: strategies.1.sparsety: unknown key, perhaps you meant sparsity"),
        ("  sparsity: 0.8", "  exclude: a", "7:3: strategies.1: expected a value for sparsity"),
        ("  sparsity: 0.8", "  sparsity: [0.8]", "10:13: strategies.1.sparsity: expected a number"),
        ("  sparsity: 0.8", "  sparsity: yes", "10:13: strategies.1.sparsity: expected a number"),
        ("  sparsity: 0.8", "  begin: 3", "10:3: strategies.1.begin: unknown key"),
        ("name: l1-filters", "name: l1-filter", "4:9: strategies.0.name: no method is called 'l1-filter', perhaps you"),
        ("name: l1-filters", "name: eie", "4:9: strategies.0.name: eie cannot stand in a recipe"),
        ("name: l1-filters", "ratio: 3", "5:3: strategies.0.ratio: occurs twice"),
        ("end: 6", "end: 11", "9:8: strategies.1.end: expected an epoch up to 10"),
        ("end: 6", "end: 1", "9:8: strategies.1.end: expected an epoch from its start, 2, on, got 1"),
        ("end: 6", "end: 2", "9:8: strategies.1.end: gradual works while the model trains"),
        ("  ratio: 0.3", "  ratio: 0.3\n  end: 4", "6:8: strategies.0.end: l1-filters works at once"),
        (
            "start: 2\n-",
            "start: 3\n-",
            "8:10: strategies.1.start: l1-filters (strategy 1) changes channels up to",
        ),
        ("strategies:", "compile: {max_eror: 1}\nstrategies:", "3:11: compile.max_eror: unknown key, perhaps"),
        ("strategies:", "strategy:", "3:1: strategy: unknown key, perhaps you meant strategies"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = written(TEXT.replace(old, new, 1), tmp_path)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}:{message}")
    assert "\n" not in str(error.value)


def entry(name: str, start: int | None = None, end: int | None = None, **options: Any) -> dict[str, Any]:
    return {"name": name, "start": start, "end": end, **options}


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ([entry("gradual", 0, 4, sparsity=0.5), entry("gradual", 3, 6, sparsity=0.8)], "both change zeros in epoch 3"),
        ([entry("distillation", 0, 4), entry("apprentice", 2, 6)], "both change the loss in epoch 2"),
        ([entry("network-slimming", 0, 4, ratio=0.5), entry("magnitude", 3, sparsity=0.5)], "let it start in 4"),
        ([entry("magnitude", 3, sparsity=0.5), entry("network-slimming", 0, 4, ratio=0.5)], "let it start in 4"),
        ([entry("qat", 2), entry("gradual", 0, 5, sparsity=0.5)], "let it start in 5"),
        ([entry("qat", 2), entry("ternary", 4)], "both change values; leave one out"),
        ([entry("qat", 2, 5)], "goes on to the last epoch, 10"),
        ([entry("qat", 2), entry("int8-static")], "qat (strategy 1) leaves nothing for int8-static (strategy 2)"),
        ([entry("int8-static"), entry("int8-dynamic")], "both change the result"),
        ([entry("int8-static", 3)], "works when all training is over"),
    ],
)
def test_strategies_that_cannot_meet(strategies: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match="strategies") as error:
        read_recipe({"epochs": 10, "strategies": strategies})
    assert message in str(error.value)


def test_strategies_that_can() -> None:
    strategies = [
        entry("qat", 5),
        entry("gradual", 2, 5, sparsity=0.5),
        entry("l1-filters", 2, ratio=0.3),
        entry("network-slimming", 0, 2, ratio=0.5),
        entry("distillation"),
        entry("low-rank", rank=3),
    ]
    read_recipe({"epochs": 10, "strategies": strategies})


def test_the_digest_is_that_of_what_decides_about_the_weights(tmp_path: Path) -> None:
    digest = read_recipe(written(TEXT, tmp_path)).digest()
    assert read_recipe(written("# a comment\noutput: x\ncheckpoint_every: 3\n" + TEXT, tmp_path)).digest() == digest
    assert read_recipe(written(TEXT.replace("0.8", "0.81"), tmp_path)).digest() != digest
    assert read_recipe(written(TEXT.replace("1e-3", "1e-2"), tmp_path)).digest() != digest


def test_every_option_of_every_method_has_a_type_and_a_meaning() -> None:
    assert len(recipe_methods()) >= 28
    for method in recipe_methods():
        names = {option.name for option in method.options}
        for option in recipe_options(method, strategy_class(method)):
            assert option.description, (method.name, option.name)
            assert option.type is not Any, (method.name, option.name)
            assert option.name not in ("name", "start", "end")
        assert {option.name for option in recipe_options(method, strategy_class(method))} >= names - {
            *strategy_class(method).left_out
        }


def test_a_method_of_ones_own_can_stand_in_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    fixed = {"criterion": lambda name, weight: weight.abs()}
    register(Method("own", "pruning", "One's own", "own", "sparsecore.prune:prune", fixed=fixed))
    checked = read_recipe({"epochs": 1, "strategies": [{"name": "own", "sparsity": 0.5, "pattern": "2x1"}]})
    assert checked.plans[0][0].bind(**checked.plans[0][1])(nn.Linear(8, 4)).sparsity() == 0.5


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sparsecore\[recipes\]"'):
        read_recipe({"epochs": 1})


def test_a_dict_that_no_file_could_hold() -> None:
    with pytest.raises(RecipeError, match='functions as "module:function"'):
        read_recipe({"epochs": 1, "metric": len})


@pytest.mark.parametrize("source", [[{"epochs": 1}], None, 3])
def test_what_is_neither_a_file_nor_a_dict(source: Any) -> None:
    with pytest.raises(TypeError, match="expected a recipe as the path of a YAML file or as a dict, got "):
        read_recipe(source)
