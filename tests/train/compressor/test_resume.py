"""A run that is stopped, however and wherever, goes on to the same weights, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

pytest.importorskip("pydantic")
pytest.importorskip("torch_pruning")

import tiny

from sparsecore.train.compressor import report, result


class Stopped(BaseException):
    """Stands for a run that ends before its time."""


class StepThatStops:
    """The usual step with noise of all generators, which stops before a step."""

    def __init__(self, stop_at: int | None = None, kill: bool = False) -> None:
        self.left, self.kill = stop_at, kill

    def __call__(self, model: nn.Module, batch: Any, loss: Any) -> Tensor:
        if torch.is_grad_enabled() and model.training:
            if self.left == 0:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Stopped
            self.left = None if self.left is None else self.left - 1
        x, y = batch
        noisy = x + 0.01 * (torch.randn_like(x) + random.random() + float(np.random.rand()))
        return loss(model(noisy), y, noisy)


RECIPES = {
    "many": tiny.MANY,
    "slimming, then iterative, then shared": [
        {"name": "network-slimming", "ratio": 0.5, "strength": 0.01, "end": 1},
        {"name": "iterative", "sparsity": 0.8, "rounds": 3, "start": 1, "end": 3},
        {"name": "weight-sharing", "bits": 3, "start": 3},
    ],
    "resrep, then gradual": [
        {"name": "resrep", "reduce_by": 0.3, "begin": 1, "frequency": 1, "rows": 8, "strength": 0.5, "end": 2},
        {"name": "gradual", "sparsity": 0.5, "frequency": 1, "criterion": "taylor", "start": 2, "end": 3},
    ],
    "low rank, taught too, ternary": [
        {"name": "low-rank", "error": 0.5, "start": 1},
        {"name": "apprentice", "scheme": "A", "start": 1},
        {"name": "ternary", "method": "ttq", "start": 2},
    ],
    "separable, binary": [
        {"name": "separable", "exclude": "0", "start": 1},
        {"name": "binaryconnect", "stochastic": True, "start": 2, "skip_ends": True},
    ],
    "layers dropped, then heads": [
        {"name": "layer-drop", "container": "encoder.layers", "probability": 0.5, "end": 2},
        {"name": "attention-heads", "ratio": 0.5, "start": 2},
        {"name": "weight-sharing", "bits": 4, "init": "random", "start": 3},
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_before_any_step(name: str, tmp_path: Path) -> None:
    recipe = tiny.recipe(RECIPES[name], checkpoint_every=2)
    build = tiny.Transformer if "heads" in name else tiny.net
    whole = tiny.compress(recipe, tmp_path / "whole", model=build(), training_step=StepThatStops())
    for stop_at in (4, 7, 11):  # within epochs two, three and four
        folder = tmp_path / str(stop_at)
        with pytest.raises(Stopped):
            tiny.compress(recipe, folder, model=build(), training_step=StepThatStops(stop_at))
        resumed = tiny.compressor(recipe, folder, model=build(), training_step=StepThatStops()).run(resume=True)
        assert tiny.same_state(whole.model, resumed.model), stop_at
        assert [row.after for row in whole.report.rows] == [row.after for row in resumed.report.rows]
        assert [row.metric for row in whole.report.rows] == [row.metric for row in resumed.report.rows]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random_steps(seed: int, tmp_path: Path) -> None:
    """``kill -9`` again and again, each time a few steps further; a process of its own keeps threads out of fork."""
    result = subprocess.run([sys.executable, __file__, str(tmp_path), str(seed)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def _killed_and_resumed(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    result._MIN_TIME_S = 0.0
    report._draw = lambda rows, path: None
    recipe = tiny.recipe(tiny.MANY, checkpoint_every=1)
    tiny.compress(recipe, folder / "whole", training_step=StepThatStops())  # first: it imports all that children need
    choose = random.Random(seed)
    kills = 0
    while True:
        steps = choose.randrange(1, 6)
        child = os.fork()
        if child == 0:
            is_first = not (folder / "killed").exists()
            stop_at = steps if kills < 3 else None
            step = StepThatStops(stop_at, kill=True)
            tiny.compressor(recipe, folder / "killed", training_step=step).run(resume=not is_first)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    assert kills >= 2
    killed, expected = (load_file(folder / name / "model.safetensors") for name in ("killed", "whole"))
    assert killed.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in killed.items())


if __name__ == "__main__":
    _killed_and_resumed(Path(sys.argv[1]), int(sys.argv[2]))
