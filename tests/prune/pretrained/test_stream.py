"""prune_pretrained(): the same as pruning the model in memory, whatever the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from tiny_models import FAMILIES, LENGTH, load, make_model, random_ids, save

from sparsecore.prune.layerwise import prune_block
from sparsecore.prune.pretrained import prune_pretrained

SAMPLES = 4
BLOCKS = {"GPT2": "transformer.h", "GPTNeo": "transformer.h", "Bloom": "transformer.h", "Falcon": "transformer.h"}
BLOCKS |= {"OPT": "model.decoder.layers", "GPTNeoX": "gpt_neox.layers"}


def ids_file(folder: Path, ids: Tensor) -> Path:
    """Token ids in a .npy file: all windows are chosen, in their order."""
    np.save(folder / "ids.npy", ids.numpy())
    return folder / "ids.npy"


@torch.no_grad()
def prune_in_memory(model: Any, family: str, ids: Tensor, sparsity: float | None, **options: Any) -> Any:
    """Prune the blocks one after another, each on what the model itself gives it: a forward pass for each."""
    for block in model.get_submodule(BLOCKS.get(family, "model.layers")):
        calls: list[Any] = []
        handle = block.register_forward_pre_hook(lambda _, a, k, calls=calls: calls.append((a, k)), with_kwargs=True)
        for sample in ids:
            model(input_ids=sample[None], use_cache=False)
        handle.remove()
        prune_block(block, calls, sparsity, **options)
    return model


def assert_same_model(found: nn.Module, expected: nn.Module) -> None:
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_model_in_memory(family: str, tmp_path: Path) -> None:
    folder = save(make_model(family), tmp_path / "dense")
    ids = random_ids(SAMPLES)
    data = ids_file(tmp_path, ids)
    report = prune_pretrained(folder, tmp_path / "out", 0.5, data=data, samples=SAMPLES, length=LENGTH)
    expected = prune_in_memory(load(folder), family, ids, 0.5, criterion="sparsegpt")
    assert_same_model(load(tmp_path / "out"), expected)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
