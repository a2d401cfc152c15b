"""Checkpoints: whole or refused, and never another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("torch_pruning")

import tiny
from torch import nn

from sparsecore.errors import CheckpointError
from sparsecore.train.compressor.checkpoint import checkpoints, read_checkpoint, write_checkpoint

OWNER = {"recipe": "a", "model": "b"}


def test_any_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tied = torch.arange(3.0)
    state = {
        "a": {"x": tied, "y": tied, "deep": [torch.zeros(0), (1, "two", None, 3.5e-300)]},
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "view": torch.arange(6.0).view(2, 3).t(),
        "empty": {},
    }
    write_checkpoint(tmp_path, 3, state, OWNER)
    found = read_checkpoint(tmp_path, OWNER)
    assert found["a"]["deep"][1] == (1, "two", None, 3.5e-300)
    assert found["empty"] == {}
    for a, b in (
        (found["a"]["x"], tied),
        (found["a"]["y"], tied),
        (found["flags"], state["flags"]),
        (found["scalar"], state["scalar"]),
        (found["view"], state["view"]),
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        write_checkpoint(tmp_path, step, {"step": step}, OWNER)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002.safetensors", "step-000000030.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_one_is_skipped_with_a_warning(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"step": step, "x": torch.ones(100)}, OWNER)
    path = checkpoints(tmp_path)[-1]
    content = path.read_bytes()
    damaged = {
        "truncated": content[:-7],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "text": b"not a checkpoint",
    }[damage]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged checkpoint skipped: .*step-000000002"):
        assert read_checkpoint(tmp_path, OWNER)["step"] == 1
    checkpoints(tmp_path)[0].write_bytes(damaged)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        read_checkpoint(tmp_path, OWNER)


def test_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a checkpoint in .*, found none"):
        read_checkpoint(tmp_path / "nowhere", OWNER)


def other_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 3))


def test_one_of_another_recipe_or_model_is_refused(tmp_path: Path) -> None:
    recipe = tiny.recipe([], epochs=2)
    tiny.compress(recipe, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="another recipe; resume with what it was started with"):
        tiny.compressor({**recipe, "batch": 16}, tmp_path / "run").run(resume=True)
    with pytest.raises(CheckpointError, match="another model; resume"):
        tiny.compressor(recipe, tmp_path / "run", model=other_model()).run(resume=True)
    x, y = tiny.images()
    with pytest.raises(CheckpointError, match="another number of samples; resume"):
        tiny.compressor(recipe, tmp_path / "run", train_data=(x[:64], y[:64])).run(resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
