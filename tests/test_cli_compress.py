"""``sparsecore compress``: a recipe file from training to the saved model; errors are one line with exit code 2."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pydantic")
pytest.importorskip("yaml")
pytest.importorskip("torch_pruning")

import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

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
import os
import signal

import torch
from torch import nn

steps = 0
stop_at = None

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

def stopping_step(model, batch, loss):
    global steps
    steps += 1
    if steps == stop_at:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
        os.kill(os.getpid(), signal.SIGINT)
    x, y = batch
    return loss(model(x + 0.1 * torch.randn_like(x)), y, x)

def broken(*arguments):
    raise KeyError("no such\\nimage")
"""
STOPPING = RECIPE.replace("loss:", "training_step: own_digits:stopping_step\nloss:")


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


@pytest.mark.parametrize("key", ["model", "data", "metric", "loss", "training_step"])
def test_a_function_that_raises_is_one_line_with_its_place(key: str) -> None:
    recipe = re.sub(rf"^{key}: .*\n", "", RECIPE, flags=re.MULTILINE) + f"{key}: own_digits:broken\n"
    ran = run("--output", "new/out", recipe=recipe)
    assert ran.exit_code == 2, ran.output
    line = recipe.count("\n")
    place = rf"{line}:\d+: {key}: KeyError: 'no such.*image' \(own_digits.py:\d+ in broken\)"
    assert re.fullmatch(rf"error: recipes/recipe.yaml:{place}", ran.stderr.splitlines()[-1]), ran.stderr
    assert not Path("new").exists()


def test_a_module_that_raises_is_one_line_with_its_place() -> None:
    Path("recipes/own_digits.py").write_text("def metric(model):\n    return 1\n\nx = metrik\n")
    ran = run()
    assert ran.exit_code == 2
    message = "cannot import own_digits:metric: NameError: name 'metrik' is not defined (own_digits.py:4 in <module>)"
    assert message in ran.stderr.splitlines()[-1]


def _stop_at(step: int | None) -> None:
    """Let the next run be interrupted in a step."""
    sys.modules.pop("own_digits", None)
    Path("recipes/own_digits.py").write_text(CODE.replace("stop_at = None", f"stop_at = {step}"))


@pytest.mark.parametrize("every", ["", "checkpoint_every: 3\n"])
def test_an_interrupted_run_goes_on_to_the_same_weights(every: str) -> None:
    assert run("--output", "whole", recipe=STOPPING + every).exit_code == 0
    _stop_at(6)
    ran = run(recipe=STOPPING + every)
    assert ran.exit_code == 130
    said = ran.stderr.splitlines()[-1]
    kept = re.fullmatch(r"stopped: the same command with --resume goes on from (\S+)", said)
    assert kept, ran.stderr
    assert kept[1] == str(max(Path("out/checkpoints").iterdir()))
    _stop_at(None)
    assert run("--resume", recipe=STOPPING + every).exit_code == 0
    whole, resumed = (load_file(f"{folder}/model.safetensors") for folder in ("whole", "out"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_run_that_is_interrupted_early_leaves_nothing() -> None:
    _stop_at(1)
    ran = run(recipe=STOPPING)
    assert (ran.exit_code, ran.stderr.splitlines()[-1]) == (130, "stopped: nothing was kept")
    assert not Path("out").exists()


def test_a_checkpoint_of_another_recipe() -> None:
    assert run().exit_code == 0
    before = Path("out/model.safetensors").read_bytes()
    ran = run("--resume", recipe=RECIPE.replace("0.5", "0.25"))
    assert ran.exit_code == 2
    assert "belongs to a run with another recipe" in ran.stderr
    assert Path("out/model.safetensors").read_bytes() == before
