"""``sparsecore compress``: a recipe file from training to the saved model; errors are one line with exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pydantic")
pytest.importorskip("yaml")
pytest.importorskip("torch_pruning")

from click.testing import CliRunner, Result

from sparsecore.cli import cli
from sparsecore.train.compressor import report, result

RECIPE = """model: own_digits:model
data: own_digits:data
metric: {name: "own_digits:metric", classes: 3}
loss: own_digits:loss
optimizer: {name: SGD, lr: 1e-2, momentum: 0.9}
epochs: 2
batch: 16
compile: false
output: out
strategies:
- name: l1-filters
  start: 1
  ratio: 0.5
"""
CODE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

def data():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)

def metric(model, classes):
    x, y = data()
    return float((model(x).argmax(1) == y).double().mean()) * classes / 3

def nan(model):
    return float("nan")

def loss(output, labels):
    return nn.functional.cross_entropy(output, labels)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "_MIN_TIME_S", 0.0)
    monkeypatch.setattr(report, "_draw", lambda rows, path: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own_digits.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "own_digits", raising=False)


def run(*arguments: str, recipe: str = RECIPE) -> Result:
    Path("recipes/recipe.yaml").write_text(recipe)
    return CliRunner().invoke(cli, ["compress", "recipes/recipe.yaml", *arguments], prog_name="sparsecore")


def test_a_run_and_its_report() -> None:
    ran = run("--json", "report.json", "--threads", "1")
    assert ran.exit_code == 0, ran.output
    assert "Saved: " in ran.stdout
    assert "epoch 2 of 2" in ran.stderr
    rows = json.loads(Path("report.json").read_text())["rows"]
    assert [row["after"] for row in rows] == ["start", "training", "l1-filters", "training", "saved"]
    assert rows[-1]["parameters"] == 8 * 8 + 8 + 8 * 3 + 3
    assert Path("out/model.safetensors").exists()


def test_the_output_folder_can_be_another() -> None:
    assert run("--output", "elsewhere").exit_code == 0
    assert not Path("out").exists()
    assert Path("elsewhere/report.md").exists()


def test_a_run_that_is_done_is_not_overwritten_but_resumed() -> None:
    assert run().exit_code == 0
    refused = run()
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1].startswith("error: out holds model.safetensors of another run")
    assert run("--resume").exit_code == 0


def test_dry_run_writes_nothing() -> None:
    ran = run("--dry-run")
    assert ran.exit_code == 0, ran.output
    assert "begin l1-filters" in ran.stdout
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  ratio: 0.5", "  ration: 0.5", ":13:3: strategies.0.ration: unknown key, perhaps you meant ratio"),
        ("  ratio: 0.5", "  ratio: 1.5", ":13:10: strategies.0.ratio: expected a ratio in [0, 1), got 1.5"),
        ("  start: 1", "  start: 3", ":12:10: strategies.0.start: expected an epoch up to 2"),
        ('{name: "own_digits:metric", classes: 3}', "own_digits:nan", ":3:9: metric: expected a finite number"),
        ("own_digits:model", "own_digits:mode", ":1:8: model: cannot import own_digits:mode"),
        ("data: own_digits:data", "seed: 1", ':1:1: expected data: "module:function"'),
        ("output: out\n", "", ":1:1: expected output: FOLDER"),
        ("epochs: 2", "epochs: 2\nepochs: 3", ":7:1: epochs: occurs twice"),
        ("SGD", "SDG", ":5:12: optimizer: torch.optim has no 'SDG', perhaps you meant SGD"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    ran = run(recipe=RECIPE.replace(old, new))
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[-1].startswith(f"error: recipes/recipe.yaml{message}"), ran.stderr
    assert not list(Path().rglob("*.safetensors"))


def test_a_checkpoint_of_another_recipe() -> None:
    assert run().exit_code == 0
    before = Path("out/model.safetensors").read_bytes()
    ran = run("--resume", recipe=RECIPE.replace("0.5", "0.25"))
    assert ran.exit_code == 2
    assert "belongs to a run with another recipe" in ran.stderr
    assert Path("out/model.safetensors").read_bytes() == before
