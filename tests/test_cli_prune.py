"""``sparsecore prune``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from sparsecore.cli import cli
from sparsecore.errors import ModelError
from sparsecore.prune import PrunedBlock, PrunedModel

# sparsecore.prune, the attribute, is the function.
MODULE = sys.modules["sparsecore.prune"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["prune", *arguments], prog_name="sparsecore")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments that models would be pruned with."""

    def prune_pretrained(model: Path, out: Path, sparsity: float | None, **options: Any) -> PrunedModel:
        found.append({"model": model, "out": out, "sparsity": sparsity, **options})
        return PrunedModel(out, (PrunedBlock("h.0", 1.5, 1000, 400), PrunedBlock("h.1", 2.5, 1000, 400)))

    found: list[dict[str, Any]] = []
    monkeypatch.setattr(MODULE, "prune_pretrained", prune_pretrained)
    return found


def test_options_are_passed_on(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    options = "--method wanda --sparsity 0.6 --samples 3 --length 5 --exclude *.0.* --exclude *.1.* --damping 0.1"
    others = f"--data {tmp_path} --seed 7 --dtype bfloat16 --pattern 4x1 --threads 1"
    result = run(str(tmp_path), "--out", "there", *options.split(), *others.split())
    assert result.exit_code == 0, result.output
    (call,) = calls
    del call["progress"]
    assert call == {
        "model": tmp_path,
        "out": Path("there"),
        "sparsity": 0.6,
        "criterion": "wanda",
        "pattern": "4x1",
        "data": tmp_path,
        "samples": 3,
        "length": 5,
        "exclude": ("*.0.*", "*.1.*"),
        "damping": 0.1,
        "seed": 7,
        "dtype": "bfloat16",
    }
    assert re.search(r"h\.1 +1,000 +60\.0% +2\.5 s", result.stdout)
    assert "60.0% of the weights are zero" in result.stdout


def test_defaults_and_json(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    result = run(str(tmp_path), "--out", "there", "--json", "-")
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert (call["criterion"], call["sparsity"], call["pattern"]) == ("sparsegpt", None, "unstructured")
    assert (call["samples"], call["length"], call["data"], call["dtype"]) == (128, None, None, None)
    report = json.loads(result.stdout)
    assert (report["sparsity"], [block["name"] for block in report["blocks"]]) == (0.6, ["h.0", "h.1"])


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{folder}",
        "/no/such/folder --out {folder}",
        "{folder} --out {folder} --sparsity 1",
        "{folder} --out {folder} --sparsity nan",
        "{folder} --out {folder} --method taylor",
        "{folder} --out {folder} --samples 0",
        "{folder} --out {folder} --data /no/such/file",
        "{folder} --out {folder} --dtype int8",
        "{folder} --out {folder}/new --sparsity 0.5",  # no config.json
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: str, tmp_path: Path) -> None:
    result = run(*arguments.format(folder=tmp_path).split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [ValueError("expected this"), ModelError("expected this"), OSError("expected this")])
def test_errors_of_the_work_are_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(MODULE, "prune_pretrained", fail)
    result = run(str(tmp_path), "--out", "there")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: expected this.*\n", result.stderr)


def test_an_interrupted_run_says_how_to_continue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "prune_pretrained", interrupt)
    result = run(str(tmp_path), "--out", "there")
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr
