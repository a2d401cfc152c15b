"""Windows of calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsecore.errors import FormatError, ModelError
from sparsecore.prune.pretrained.tokens import calibration_samples


def sampled(data: Path, model_folder: Path = Path(), **changes: Any) -> Tensor:
    options: dict[str, Any] = {"samples": 3, "length": 5, "seed": 0} | changes
    return calibration_samples(data, model_folder, options.pop("vocabulary", 1000), **options)


def saved(folder: Path, ids: Any) -> Path:
    np.save(folder / "ids.npy", np.asarray(ids))
    return folder / "ids.npy"


def test_windows_are_distinct_in_order_and_of_the_seed(tmp_path: Path) -> None:
    data = saved(tmp_path, np.arange(83))
    choices = [sampled(data, samples=7, seed=seed) for seed in range(6)]
    for samples in choices:
        assert samples.dtype == torch.int64
        begins = samples[:, 0]
        assert torch.equal(samples, begins[:, None] + torch.arange(5))
        assert bool((begins % 5 == 0).all())
        assert bool((begins.diff() > 0).all())
    assert torch.equal(choices[0], sampled(data, samples=7, seed=0))
    assert any(not torch.equal(choices[0], other) for other in choices[1:])


def test_all_that_there_is(tmp_path: Path) -> None:
    data = saved(tmp_path, np.arange(15, dtype=np.uint16).reshape(3, 5))
    assert torch.equal(sampled(data), torch.arange(15).view(3, 5))
    save_file({"ids": torch.arange(15, dtype=torch.int32)}, tmp_path / "ids.safetensors")
    assert torch.equal(sampled(tmp_path / "ids.safetensors"), torch.arange(15).view(3, 5))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (np.arange(14), "3 samples x 5 tokens = 15 tokens .* got 14"),
        ([], "expected integer token ids"),  # numpy's empty array is float64
        (np.zeros(0, np.int64), "got 0"),
        (np.arange(15.0), "expected integer token ids"),
        (np.ones(15, bool), "expected integer token ids"),
        (np.arange(-1, 14), "from 0 to 999, got -1 to 13"),
        (np.arange(986, 1001), "from 0 to 999, got 986 to 1000"),
    ],
)
def test_bad_ids(ids: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=reason):
        sampled(saved(tmp_path, ids))


def test_bad_files(tmp_path: Path) -> None:
    for name, content in (("a.npy", b"x"), ("b.npy", b""), ("c.safetensors", b"x" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="expected one array of token ids"):
            sampled(tmp_path / name)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    save_file({"a": torch.arange(15), "b": torch.arange(15)}, tmp_path / "two.safetensors")
    for name in ("pickled.npy", "two.safetensors"):
        with pytest.raises(FormatError, match="expected one array of token ids"):
            sampled(tmp_path / name)


# --- text ---


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of bytes, each its own token."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_tokens = {token: index for index, token in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_tokens, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_text_and_folders_of_text(tokenizer_folder: Path, tmp_path: Path) -> None:
    import transformers

    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("calibrat", encoding="utf-8")
    (tmp_path / "b" / "c.txt").write_text("ion data", encoding="utf-8")
    (tmp_path / "other.md").write_text("no text", encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    samples = sampled(tmp_path, tokenizer_folder)
    assert tokenizer.decode(samples.flatten()) == "calibration dat"
    assert tokenizer.decode(sampled(tmp_path / "a.txt", tokenizer_folder, samples=1, length=8)[0]) == "calibrat"


def test_bad_text(tokenizer_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    for content, reason in ((b"", "got 0"), (b"too short", "got 9"), (b"\xff" * 99, "UTF-8")):
        text.write_bytes(content)
        with pytest.raises(FormatError, match=reason):
            sampled(text, tokenizer_folder)
    text.unlink()
    with pytest.raises(FormatError, match=r"expected \*.txt files"):
        sampled(tmp_path, tokenizer_folder)
    with pytest.raises(FileNotFoundError):
        sampled(text, tokenizer_folder)


def test_without_a_tokenizer_the_way_out_is_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(ModelError, match=r"expected a tokenizer in .*give token ids as \.npy"):
        sampled(tmp_path / "a.txt", tmp_path)
