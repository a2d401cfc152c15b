"""Calibration samples: windows of equal length of a text or of token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsecore.errors import FormatError, ModelError, require_extra

_IDS = (".npy", ".safetensors")


def calibration_samples(
    data: Path, model_folder: Path, vocabulary: int, *, samples: int, length: int, seed: int
) -> Tensor:
    """Cut calibration data into windows and choose some, none twice and none overlapping another.

    Args:
        data: A text file in UTF-8, a folder of ``*.txt`` files (with those in its folders), or token ids as
            integers of any shape in a ``.npy`` file or alone in a ``.safetensors`` file, read row by row.
        model_folder: Has the tokenizer, which only text needs.
        vocabulary: Token ids are below it.
        samples: Windows to choose.
        length: Tokens in each.
        seed: Of the choice.

    Returns:
        int64 ``[samples, length]``, in the order of the data.

    Raises:
        FormatError: The data is empty, too short, no text, or not token ids of this vocabulary.
        ModelError: The model has no tokenizer.
        FileNotFoundError: There is no data.
    """
    if samples < 1 or length < 1:
        raise ValueError(f"expected at least 1 sample of at least 1 token, got {samples} of {length}")
    ids = _read_ids(data) if data.suffix in _IDS and data.is_file() else _tokenize(data, model_folder)
    if ids.numel() < samples * length:
        raise FormatError(
            f"expected at least {samples} samples x {length} tokens = {samples * length} tokens in {data}, got "
            f"{ids.numel()}; give more data, fewer samples or a smaller length"
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise FormatError(
            f"expected token ids from 0 to {vocabulary - 1}, got {int(ids.min())} to {int(ids.max())} in {data}; "
            "they are another model's"
        )
    windows = ids[: ids.numel() // length * length].view(-1, length)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:samples]
    return windows[chosen.sort().values]


def _read_ids(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            ids = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            (ids,) = load_file(path).values()
    except (ValueError, TypeError, EOFError, SafetensorError) as error:
        raise FormatError(f"expected one array of token ids in {path}, got: {error}") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise FormatError(f"expected integer token ids in {path}, got {ids.dtype}")
    return ids.to(torch.int64).flatten()


def _tokenize(data: Path, model_folder: Path) -> Tensor:
    tokenizer = _load_tokenizer(model_folder)
    ids: list[int] = []
    for text in _texts(data):
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _load_tokenizer(model_folder: Path) -> Any:
    transformers = require_extra("transformers", "zoo")
    try:
        return transformers.AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    except Exception as error:  # every kind of tokenizer has its own
        raise ModelError(
            f"expected a tokenizer in {model_folder}, got: {str(error).strip().splitlines()[0]}; copy its files there, "
            "or give token ids as .npy or .safetensors"
        ) from error


def _texts(data: Path) -> Iterator[str]:
    files = sorted(data.rglob("*.txt")) if data.is_dir() else [data]
    if not files:
        raise FormatError(f"expected *.txt files in {data}, got none")
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"expected text in UTF-8 in {file}, got other bytes ({error})") from error
