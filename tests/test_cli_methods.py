"""``sparsecore methods``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from sparsecore.cli import cli
from sparsecore.methods import REQUIRED, find_method, methods


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["methods", *arguments], prog_name="sparsecore")


def first_words(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line.split()}


def test_the_list_has_every_method() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert {method.name for method in methods()} <= first_words(result.stdout)


def test_a_kind_alone() -> None:
    names = {method.name for method in methods("quantization")}
    found = first_words(run("--kind", "quantization").stdout)
    assert names <= found
    assert not found & ({method.name for method in methods()} - names)


@pytest.mark.parametrize("name", [method.name for method in methods()])
def test_the_details_have_every_option_and_the_example(name: str) -> None:
    result = run(name)
    assert result.exit_code == 0, result.output
    method = find_method(name)
    for option in method.options:
        assert re.search(rf"^ *{option.name} +\S", result.stdout, re.MULTILINE)
        assert option.default is not REQUIRED or re.search(rf"{option.name} +required", result.stdout)
    assert method.example in result.stdout


def test_json(tmp_path: Path) -> None:
    assert json.loads(run("--json", "-").stdout) == {"methods": [method.to_dict() for method in methods()]}
    path = tmp_path / "methods.json"
    result = run("gradual", "--json", str(path))
    assert "Options" in result.stdout
    assert json.loads(path.read_text(encoding="utf-8")) == {"methods": [find_method("gradual").to_dict()]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["magnitud"], "no method is called 'magnitud', perhaps you meant magnitude"),
        (["--kind", "prunning"], "no method is of kind 'prunning', perhaps you meant pruning"),
        (["magnitude", "--kind", "pruning"], "expected NAME or --kind, got both"),
        (["--json", "/no/such/folder/methods.json"], "folder /no/such/folder does not exist"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)
    assert message in result.stderr
