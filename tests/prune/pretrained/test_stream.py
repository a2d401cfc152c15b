"""prune_pretrained(): the same as pruning the model in memory, whatever the family."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("transformers")

from tiny_models import FAMILIES, LENGTH, load, make_model, random_ids, save

from sparsecore.errors import FormatError, ModelError, UnsupportedError
from sparsecore.prune import fits_pattern, prune_block, prune_pretrained
from sparsecore.prune.pretrained import run as run_module
from sparsecore.prune.pretrained.output import STATE

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


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", {"criterion": "wanda"}),
        ("GPT2", {"criterion": "wanda", "pattern": "2:4"}),
        ("Llama", {"criterion": "sparsegpt", "pattern": "2:4"}),
        ("OPT", {"criterion": "sparsegpt", "damping": 0.1, "block_size": 3}),
    ],
)
def test_options_reach_every_block(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = save(make_model(family), tmp_path / "dense")
    ids = random_ids(SAMPLES)
    data = ids_file(tmp_path, ids)
    sparsity = None if "pattern" in options else 0.6
    prune_pretrained(folder, tmp_path / "out", sparsity, data=data, samples=SAMPLES, length=LENGTH, **options)
    expected = prune_in_memory(load(folder), family, ids, sparsity, **options)
    assert_same_model(load(tmp_path / "out"), expected)


@pytest.mark.parametrize(("own", "asked"), [("bfloat16", None), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_dtype(own: str, asked: str | None, tmp_path: Path) -> None:
    folder = save(make_model("Llama", getattr(torch, own)), tmp_path / "dense")
    ids = random_ids(SAMPLES)
    options: dict[str, Any] = {"data": ids_file(tmp_path, ids), "samples": SAMPLES, "length": LENGTH}
    prune_pretrained(folder, tmp_path / "out", 0.5, dtype=asked, **options)
    computed = asked or own
    expected = prune_in_memory(load(folder, dtype=getattr(torch, computed)), "Llama", ids, 0.5, criterion="sparsegpt")
    assert_same_model(load(tmp_path / "out", dtype="auto"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == computed
    stored = [load_file(shard) for shard in (tmp_path / "out").glob("*.safetensors")]
    assert {tensor.dtype for tensors in stored for tensor in tensors.values()} == {getattr(torch, computed)}


def test_magnitude_needs_no_data(tmp_path: Path) -> None:
    dense = make_model("GPT2")
    folder = save(dense, tmp_path / "dense")
    report = prune_pretrained(folder, tmp_path / "out", 0.75, criterion="magnitude")
    for block in dense.transformer.h:
        prune_block(block, (), 0.75, criterion="magnitude")
    assert_same_model(load(tmp_path / "out"), dense)
    assert [block.name for block in report.blocks] == [f"transformer.h.{i}" for i in range(3)]
    weights = [weight for block in dense.transformer.h for weight in block.parameters() if weight.dim() == 2]
    num_zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert report.sparsity == pytest.approx(num_zeros / sum(weight.numel() for weight in weights))


def test_what_is_excluded_stays_dense(tmp_path: Path) -> None:
    dense = make_model("Llama")
    folder = save(dense, tmp_path / "dense")
    exclude = ["model.layers.1", "*.down_proj", "model.layers.0.self_attn.q_proj.weight", "lm_head"]
    data = ids_file(tmp_path, random_ids(SAMPLES))
    report = prune_pretrained(folder, tmp_path / "out", 0.5, exclude=exclude, data=data, samples=SAMPLES, length=LENGTH)
    assert [block.num_entries > 0 for block in report.blocks] == [True, False, True]
    for name, weight in load(tmp_path / "out").named_parameters():
        is_dense = "layers.1." in name or "down_proj" in name or "0.self_attn.q_proj" in name or "_proj" not in name
        assert torch.equal(weight, dense.get_parameter(name)) == is_dense, name


def test_shards_and_names_of_the_base_model(tmp_path: Path) -> None:
    dense = make_model("GPT2")
    whole = save(dense, tmp_path / "whole")
    sharded = save(dense, tmp_path / "sharded", max_shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    base = save(dense, tmp_path / "base")  # as GPT-2's own files name their tensors
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    data = ids_file(tmp_path, random_ids(SAMPLES))
    models = []
    for folder in (whole, sharded, base):
        out = tmp_path / f"pruned-{folder.name}"
        prune_pretrained(folder, out, 0.5, data=data, samples=SAMPLES, length=LENGTH)
        models.append(load(out))
        assert sorted(path.name for path in out.glob("*.safetensors")) == [
            f"model-{shard:05}-of-00004.safetensors" for shard in range(1, 5)
        ]
    assert_same_model(models[1], models[0])
    assert_same_model(models[2], models[0])


def test_other_files_come_along_and_nothing_else_stays(tmp_path: Path) -> None:
    folder = save(make_model("Llama"), tmp_path / "dense")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("weights")
    (folder / "original").mkdir()
    prune_pretrained(folder, tmp_path / "out", 0.5, criterion="magnitude")
    shards = [f"model-{shard:05}-of-00004.safetensors" for shard in range(1, 5)]
    others = ["config.json", "generation_config.json", "model.safetensors.index.json", STATE, "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(shards + others)
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_one_block_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def num_real() -> int:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is nn.Parameter and not each.is_meta]
        return sum(parameter.numel() for parameter in found) - before

    def counted(block: nn.Module, *arguments: Any, **options: Any) -> Any:
        counts.append(num_real())
        return prune_block(block, *arguments, **options)

    dense = make_model("Llama", tie_word_embeddings=False)
    in_block = sum(parameter.numel() for parameter in dense.model.layers[0].parameters())
    folder = save(dense, tmp_path / "dense")
    data = ids_file(tmp_path, random_ids(SAMPLES))
    counts: list[int] = []
    before = 0
    before = num_real()
    monkeypatch.setattr(run_module, "prune_block", counted)
    prune_pretrained(folder, tmp_path / "out", 0.5, data=data, samples=SAMPLES, length=LENGTH)
    assert counts == [in_block + dense.model.embed_tokens.weight.numel()] * 3


# --- stopping and continuing ---

BLOCKS_TO_STOP_IN = 2


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != STATE}


@pytest.mark.parametrize("criterion", ["sparsegpt", "magnitude"])
def test_a_stopped_run_continues_wherever_it_was(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(out: str) -> Any:
        return prune_pretrained(
            folder, tmp_path / out, 0.5, criterion=criterion, data=data, samples=SAMPLES, length=LENGTH
        )

    def failing_at(step: int) -> Callable[..., None]:
        def replace(source: Any, target: Any) -> None:
            nonlocal num_writes
            num_writes += 1
            if num_writes == step:
                raise OSError("no space left on device")
            move(source, target)

        return replace

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal num_pruned
        num_pruned += 1
        return prune_block(*arguments, **options)

    folder = save(make_model("Llama", num_hidden_layers=BLOCKS_TO_STOP_IN), tmp_path / "dense")
    data = ids_file(tmp_path, random_ids(SAMPLES))
    move, num_writes, num_pruned = os.replace, 0, 0
    monkeypatch.setattr(run_module, "prune_block", counted)
    monkeypatch.setattr(os, "replace", failing_at(-1))
    report = prune("whole")
    total = num_writes
    assert total >= BLOCKS_TO_STOP_IN * (3 if criterion == "sparsegpt" else 2)
    for step in range(1, total + 1):
        num_writes, out = 0, f"stopped-{step}"
        monkeypatch.setattr(os, "replace", failing_at(step))
        with pytest.raises(OSError, match="no space"):
            prune(out)
        monkeypatch.setattr(os, "replace", move)
        assert not (tmp_path / out / "model.safetensors.index.json").exists()
        done = len(json.loads((tmp_path / out / STATE).read_text())["blocks"]) if step > 1 else 0
        num_pruned = 0
        again = prune(out)
        assert num_pruned == BLOCKS_TO_STOP_IN - done
        assert contents(tmp_path / out) == contents(tmp_path / "whole")
        assert [block.num_kept for block in again.blocks] == [block.num_kept for block in report.blocks]
    num_pruned = 0
    assert prune("whole") == report  # complete: nothing to do
    assert num_pruned == 0
    shard = sorted((tmp_path / "whole").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(ModelError, match=rf"{shard.name} is damaged"):
        prune("whole")


def test_other_arguments_or_another_model_do_not_continue(tmp_path: Path) -> None:
    folder, other = save(make_model("Llama"), tmp_path / "dense"), save(make_model("Llama"), tmp_path / "other")
    data = ids_file(tmp_path, random_ids(SAMPLES + 2))
    out = tmp_path / "out"
    options: dict[str, Any] = {"data": data, "samples": SAMPLES, "length": LENGTH}
    prune_pretrained(folder, out, 0.5, **options)
    before = contents(out)
    for model, sparsity, changes, reason in (
        (other, 0.5, {}, "model was"),
        (folder, 0.6, {}, "sparsity was 0.5, is 0.6"),
        (folder, 0.5, {"seed": 1}, "samples was"),
        (folder, 0.5, {"criterion": "wanda"}, "criterion was sparsegpt"),
        (folder, 0.5, {"exclude": "*.q_proj"}, "weights was"),
        (folder, 0.5, {"dtype": "bfloat16"}, "dtype was"),
    ):
        with pytest.raises(FileExistsError, match=f"other arguments: {reason}"):
            prune_pretrained(model, out, sparsity, **{**options, **changes})
    assert contents(out) == before


def test_a_damaged_run_does_not_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    folder, out = save(make_model("Llama"), tmp_path / "dense"), tmp_path / "out"
    options: dict[str, Any] = {"data": ids_file(tmp_path, random_ids(SAMPLES)), "samples": SAMPLES, "length": LENGTH}
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "write_others", fail)
        with pytest.raises(KeyboardInterrupt):
            prune_pretrained(folder, out, 0.5, **options)
    state = json.loads((out / STATE).read_text())
    state["blocks"].pop()
    (out / STATE).write_text(json.dumps(state))
    with pytest.raises(ModelError, match=r"cannot continue: expected .* bytes in .*block-2"):
        prune_pretrained(folder, out, 0.5, **options)
    (out / STATE).write_text("{}")
    with pytest.raises(ModelError, match="expected the state of a run"):
        prune_pretrained(folder, out, 0.5, **options)


# --- what is refused, before anything is written ---


def refuses(folder: Path, error: type[Exception], reason: str, **changes: Any) -> None:
    out = folder.parent / "new"
    options: dict[str, Any] = {"sparsity": 0.5, "data": folder.parent / "ids.npy", "samples": SAMPLES, "length": LENGTH}
    with pytest.raises(error, match=reason):
        prune_pretrained(folder, out, **{**options, **changes})
    assert not out.exists()


def test_bad_arguments(tmp_path: Path) -> None:
    folder = save(make_model("Llama"), tmp_path / "dense")
    ids_file(tmp_path, random_ids(SAMPLES))
    for sparsity in (1, -0.1, float("nan"), None):
        refuses(folder, ValueError, r"in \[0, 1\)", sparsity=sparsity)
    refuses(folder, ValueError, "leave out sparsity", pattern="1:4")
    refuses(folder, ValueError, "expected pattern", pattern="most")
    refuses(folder, FormatError, "does not fit model.layers.0", sparsity=None, pattern="3:5")
    refuses(folder, ValueError, "sparsegpt, wanda, magnitude", criterion="taylor")
    refuses(folder, ValueError, "nothing in the model is called", exclude="layers.7")
    refuses(folder, ValueError, "exclude less", exclude="model.layers.*")
    refuses(folder, ValueError, "damping", damping=-1)
    refuses(folder, ValueError, "float32, bfloat16, float16", dtype="int8")
    refuses(folder, ValueError, "got none; give a text file", data=None)
    refuses(folder, ModelError, "at most 32 tokens", length=33)
    refuses(folder, ValueError, "at least 1 sample", samples=0)
    refuses(folder, FormatError, "5 samples x 12 tokens = 60 tokens .* got 48", samples=5)


def test_bad_models(tmp_path: Path) -> None:
    folder = save(make_model("Llama"), tmp_path / "dense")
    ids_file(tmp_path, random_ids(SAMPLES))
    refuses(tmp_path, ModelError, "config.json")
    file = folder / "model.safetensors"
    tensors = load_file(file)

    def stored(changes: dict[str, Tensor], without: str = "") -> None:
        kept = {name: tensor for name, tensor in tensors.items() if name != without}
        save_file(kept | changes, file, metadata={"format": "pt"})

    name = "model.layers.1.mlp.up_proj.weight"
    stored({}, without=name)
    with pytest.raises(UnsupportedError, match=f"no tensor {name}"):
        prune_pretrained(folder, tmp_path / "missing", 0.5, criterion="magnitude")
    stored({name: torch.zeros(3, 3)})
    with pytest.raises(ModelError, match=r"as config\.json describes it"):
        prune_pretrained(folder, tmp_path / "shape", 0.5, criterion="magnitude")
    stored({name: torch.full_like(tensors[name], torch.nan)})
    with pytest.raises(FormatError, match="NaN"):
        prune_pretrained(folder, tmp_path / "nan", 0.5, criterion="magnitude")
    file.write_bytes(file.read_bytes()[:-5])
    refuses(folder, ModelError, "not a complete safetensors file")
    index = folder / "model.safetensors.index.json"
    for text, reason in (
        ("{", "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "not in its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "not in its folder"),
    ):
        index.write_text(text)
        refuses(folder, ModelError, reason)
    index.unlink()
    file.unlink()
    refuses(folder, ModelError, "expected model.safetensors or")
    config = json.loads((folder / "config.json").read_text())
    save_file(tensors, file)
    for changes, error, reason in (
        ({"model_type": "nothing"}, ModelError, "expected a transformers config.json"),
        ({"model_type": "vit"}, UnsupportedError, "expected a causal language model, got vit"),
        ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedError, "quantized"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        refuses(folder, error, reason)


def test_blocks_that_are_no_chain_are_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPast
    from transformers.models.llama.modeling_llama import LlamaModel

    folder = save(make_model("Llama"), tmp_path / "dense")
    ids_file(tmp_path, random_ids(SAMPLES))

    def skips_one(self: Any, input_ids: Tensor, **options: Any) -> None:
        x = self.embed_tokens(input_ids)
        for layer in (self.layers[0], self.layers[2]):
            x = layer(x)

    def adds_between(self: Any, input_ids: Tensor, **options: Any) -> None:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x) + 1

    def looks_at_tokens(self: Any, input_ids: Tensor, **options: Any) -> None:
        x = self.layers[0](self.embed_tokens(input_ids))
        for layer in self.layers[1:]:
            x = layer(x, ids=(input_ids,))

    def calls_none(self: Any, input_ids: Tensor, **options: Any) -> Any:
        return BaseModelOutputWithPast(last_hidden_state=self.embed_tokens(input_ids))

    for forward, reason in (
        (skips_one, "but block 2 is called as number 1"),
        (adds_between, "but what enters block 1 is not what block 0 returned"),
        (calls_none, "but only 0 of 3 blocks are called"),
    ):
        monkeypatch.setattr(LlamaModel, "forward", forward)
        refuses(folder, UnsupportedError, reason)
    monkeypatch.setattr(LlamaModel, "forward", looks_at_tokens)
    with pytest.raises(UnsupportedError, match="arguments that depend on the tokens"):
        prune_pretrained(folder, tmp_path / "out", 0.5, data=tmp_path / "ids.npy", samples=SAMPLES, length=LENGTH)


def test_an_output_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    folder = save(make_model("Llama"), tmp_path / "dense")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("a")
    for out in (folder, tmp_path / "full"):
        before = contents(out)
        with pytest.raises(FileExistsError, match="holds other files"):
            prune_pretrained(folder, out, 0.5, criterion="magnitude")
        assert contents(out) == before
    with pytest.raises(FileExistsError, match="expected a folder"):
        prune_pretrained(folder, tmp_path / "full" / "a.txt", 0.5, criterion="magnitude")
    (tmp_path / "empty").mkdir()
    prune_pretrained(folder, tmp_path / "empty", None, pattern="2:4", criterion="magnitude")
    assert fits_pattern(load(tmp_path / "empty").model.layers[0].mlp.up_proj.weight, "2:4")
