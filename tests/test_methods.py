"""The table of methods: every row leads to code, and says what that code says."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore import methods
from sparsecore.lookup import import_by_name
from sparsecore.methods import NEEDS, REQUIRED, Method, find_method, register
from sparsecore.methods.table import TABLE
from sparsecore.prune import CALIBRATED, CRITERIA, GradualPruner, prune
from sparsecore.quantize import Percentile

ROWS = methods.methods()
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers ends with it."""
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


def row(**changes: Any) -> Method:
    """A row that leads to prune()."""
    fields = {"name": "own", "kind": "pruning", "summary": "Own", "reference": "own", "entry": "sparsecore.prune:prune"}
    return Method(**(fields | changes))


def parameters_of(row: Method) -> dict[str, inspect.Parameter]:
    """The arguments of the entry that have a name of their own."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(row.resolve()).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in variadic}


# ---- every row ----


def test_names_are_unique() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names) == len(ROWS)


@every_row
def test_the_entry_takes_what_the_row_says(row: Method) -> None:
    parameters = parameters_of(row)
    named = [*row.inputs, *row.fixed, *row.parts, *row.unused, *row.defaults]
    assert set(named) <= parameters.keys()
    assert len(set(named)) == len(named)
    without_default = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert without_default <= {*row.inputs, *row.fixed, *(option.name for option in row.options)}


@every_row
def test_every_option_is_documented(row: Method) -> None:
    names = [option.name for option in row.options]
    assert len(set(names)) == len(names)
    taken = {*row.inputs, *row.fixed, *row.parts, *row.unused}
    parameters = parameters_of(row)
    assert [name for name in parameters if name not in taken] == [name for name in names if name in parameters]
    for option in row.options:
        assert option.type
        assert option.description[-1] in ".):"


@every_row
def test_summary_reference_and_needs(row: Method) -> None:
    assert row.summary
    assert not row.summary.endswith(".")
    assert row.reference == "own" or any(f"{year}" in row.reference for year in range(1980, 2030))
    assert set(row.needs) <= NEEDS.keys()


@every_row
def test_there_is_an_example_of_it(row: Method) -> None:
    assert f"{row.entry.partition(':')[2]}(" in row.example


@every_row
def test_json_has_the_row(row: Method) -> None:
    stored = json.loads(json.dumps(row.to_dict()))
    assert stored["name"] == row.name
    assert [option["name"] for option in stored["options"]] == [option.name for option in row.options]
    for option, loaded in zip(row.options, stored["options"], strict=True):
        assert ("default" in loaded) == (option.default is not REQUIRED)


@every_row
def test_parts_are_built_from_their_defaults(row: Method) -> None:
    built = {name: type(import_by_name(part)()) for name, part in row.parts.items()}
    required = {option.name: 1 for option in row.options if option.default is REQUIRED}
    keywords = row.bind(**required).keywords
    assert {name: type(keywords[name]) for name in row.parts} == built


def test_every_criterion_has_a_row() -> None:
    assert CRITERIA.keys() <= {row.fixed.get("criterion") for row in ROWS}
    kinds = {f"sparsecore.prune:{kind.__name__}" for kind in CALIBRATED.values()}
    assert kinds <= {row.parts.get("criterion") for row in ROWS}


# ---- finding and listing ----


def test_methods_of_a_kind() -> None:
    kinds = dict.fromkeys(row.kind for row in ROWS)
    assert [row for kind in kinds for row in methods.methods(kind)] == list(ROWS)
    with pytest.raises(
        ValueError, match=r"no method is of kind 'prunning', perhaps you meant pruning.*; kinds: pruning"
    ):
        methods.methods("prunning")


def test_a_misspelt_name_is_told_the_right_one() -> None:
    assert find_method("gradual").resolve() is GradualPruner
    with pytest.raises(ValueError, match="no method is called 'magnitud', perhaps you meant magnitude; known: "):
        find_method("magnitud")


# ---- options ----


def test_bind_runs_the_entry_with_its_settings() -> None:
    expected = nn.Linear(32, 8)
    model = nn.Linear(32, 8)
    model.load_state_dict(expected.state_dict())
    masks = find_method("blocks").bind(sparsity=0.5)(model)
    assert masks == prune(expected, 0.5, pattern="4x1")
    assert torch.equal(model.weight, expected.weight)
    assert find_method("n:m").bind(pattern="1:4")(nn.Linear(32, 8)).sparsity() == 0.75


def test_bind_gives_classes_their_inputs_later() -> None:
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = find_method("gradual").bind(sparsity=0.5, end=2, frequency=1)(model=model, optimizer=optimizer)
    pruner.step()
    pruner.step()
    assert pruner.masks.sparsity() == 0.5


def test_bind_with_batches() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    quantized = find_method("int8-static").bind(observer=Percentile(99.0))(model, [torch.rand(16, 8)])
    assert quantized[0].x_zero_point == -128


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magnitude", {"sparsty": 0.5}, "magnitude has no option 'sparsty', perhaps you meant sparsity; it has sparsi"),
        ("magnitude", {"criterion": "taylor"}, 'magnitude sets criterion="magnitude" itself; leave it out'),
        ("magnitude", {"model": nn.Linear(2, 2)}, r"model is no option but an input; give it to what bind\(\) returns"),
        ("n:m", {"sparsity": 0.5}, "n:m has no use for sparsity; leave it out"),
        ("gradual", {"begin": 3}, "gradual: expected a value for sparsity, end"),
        ("criterion", {"sparsity": 0.5}, "criterion: expected a value for criterion"),
    ],
)
def test_options_are_checked_before_anything_runs(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(name).bind(**options)


def percentile() -> Method:
    """Static int8, the observer's own option beside those of quantize()."""
    entry, parts = "sparsecore.quantize:quantize", {"observer": "sparsecore.quantize:Percentile"}
    return row(entry=entry, inputs=("model", "batches"), fixed={"activations": "static"}, parts=parts)


def test_options_of_a_part_are_options_of_the_method() -> None:
    method = percentile()
    assert method.settings == ('activations="static"', "observer=Percentile(...)")
    assert (method.options[-1].name, method.options[-1].default) == ("percent", 99.99)
    keywords = method.bind(percent=75.0, alpha=0.25).keywords
    assert repr(keywords.pop("observer")) == "Percentile(75.0)"
    assert keywords == {"activations": "static", "alpha": 0.25}
    assert repr(method.bind().keywords["observer"]) == "Percentile(99.99)"


def test_options_of_a_part_are_checked() -> None:
    with pytest.raises(ValueError, match="expected a percentile above 50"):
        percentile().bind(percent=10)
    with pytest.raises(ValueError, match="own builds observer itself, from its other options; leave it out"):
        percentile().bind(observer="mse")


def test_variadic_arguments_are_no_options() -> None:
    assert row(entry="collections:ChainMap", inputs=()).options == ()


def test_an_example_imports_what_it_uses() -> None:
    method = row(entry="sparsecore.prune:Masks.from_model", inputs=("model",))
    assert method.example.splitlines()[:3] == [
        ">>> import torch",
        ">>> from torch import nn",
        ">>> from sparsecore.prune import Masks",
    ]
    assert method.example.count("import") == 3


# ---- one's own ----


def fewest_rows_first(name: str, weight: Tensor) -> Tensor:
    """A criterion: rows go from the first on."""
    return torch.arange(weight.shape[0], dtype=torch.float32)[:, None].expand(weight.shape)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, with a criterion in it."""
    (tmp_path / "own_scores.py").write_text("def by_value(name, weight):\n    return weight\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "own_scores:by_value"


def test_a_criterion_by_its_name(own_module: str) -> None:
    layer = nn.Linear(8, 4)
    lowest = layer.weight.detach().flatten().argsort()[:16]
    find_method("criterion").bind(sparsity=0.5, criterion=own_module)(layer)
    assert set(lowest.tolist()) == set((layer.weight.flatten() == 0).nonzero().flatten().tolist())


@pytest.mark.parametrize("name", ["own_scores:nothing", "no_such_module:f"])
def test_a_criterion_that_is_not_there(own_module: str, name: str) -> None:
    layer = nn.Linear(8, 4)
    with pytest.raises(ValueError, match=f"cannot import {name}"):
        prune(layer, 0.5, criterion=name)
    assert bool((layer.weight != 0).all())


@pytest.mark.parametrize("name", ["math:pi", "sparsecore.prune:CRITERIA"])
def test_a_criterion_that_is_no_function(name: str) -> None:
    layer = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="expected a function, its name"):
        prune(layer, 0.5, criterion=name)
    assert bool((layer.weight != 0).all())


def test_a_method_of_ones_own() -> None:
    register(row(fixed={"criterion": fewest_rows_first}))
    assert methods.methods()[-1].name == "own"
    layer = nn.Linear(8, 4)
    find_method("own").bind(sparsity=0.5)(layer)
    assert (layer.weight == 0).all(1).tolist() == [True, True, False, False]
    assert find_method("own").to_dict()["fixed"] == {"criterion": "fewest_rows_first"}


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="a method is called 'magnitude' already"):
        register(row(name="magnitude"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Two Words"}, "expected a name in small letters without spaces"),
        ({"name": ""}, "expected a name in small letters without spaces"),
        ({"entry": "sparsecore.prune.prune"}, 'own: expected an entry "module:attribute"'),
        ({"needs": ("lables",)}, "own: expected needs of data, labels, loss, training steps, got 'lables'"),
    ],
)
def test_bad_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(**changes)


def test_entries_that_cannot_be_called() -> None:
    with pytest.raises(ValueError, match=r"own: expected sparsecore\.prune:CRITERIA to be callable, got dict"):
        row(entry="sparsecore.prune:CRITERIA").resolve()
    with pytest.raises(ValueError, match=r"cannot import sparsecore\.prune:nothing"):
        row(entry="sparsecore.prune:nothing").bind()
