"""A transformers model in a folder: its configuration, and its tensors read one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsecore.errors import ModelError, UnsupportedError, require_extra

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_HASHED_BYTES = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model in safetensors files; none is in memory.

    Attributes:
        folder: Where the files are.
        files: The file of each tensor, by the tensor's name in the files.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find the tensors of a model folder.

        Raises:
            ModelError: The folder has no config.json or no safetensors, or its files are damaged.
        """
        if not (folder / CONFIG).is_file():
            raise ModelError(f"expected a folder with a transformers config.json, got {str(folder)!r} without one")
        checkpoint = cls(folder, _files(folder))
        for file in sorted(set(checkpoint.files.values())):
            found = set(_names(folder / file))
            missing = {name for name, of in checkpoint.files.items() if of == file} - found
            if missing:
                raise ModelError(f"{folder / file} lacks {sorted(missing)[:3]}, which the index has; copy it again")
        return checkpoint

    def find(self, name: str, base: str) -> str | None:
        """Return what the files call a tensor of the model: its name, with or without that of the base model."""
        candidates = (name, name.removeprefix(f"{base}."))
        return next((stored for stored in candidates if stored in self.files), None)

    def read(self, stored: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read a tensor, by its name in the files, into memory of its own; None leaves its type."""
        with safe_open(self.folder / self.files[stored], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(stored)  # mapped from the file
        return tensor.to(dtype or tensor.dtype, copy=True)

    def dtype(self) -> torch.dtype:
        """The type of the first floating-point tensor; float32 if there is none."""
        for name in self.files:
            with safe_open(self.folder / self.files[name], framework="pt") as opened:
                dtype = getattr(torch, _TORCH_DTYPES.get(opened.get_slice(name).get_dtype(), ""), None)
            if dtype is not None:
                return dtype
        return torch.float32

    def sha256(self) -> str:
        """Digest the configuration and every file of tensors."""
        digest = hashlib.sha256()
        for file in [CONFIG, *sorted(set(self.files.values()))]:
            digest.update(f"{file} {(self.folder / file).stat().st_size}\n".encode())
            with (self.folder / file).open("rb") as opened:
                while part := opened.read(_HASHED_BYTES):
                    digest.update(part)
        return digest.hexdigest()


# What safetensors calls the types that a model computes in.
_TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_config(folder: Path) -> Any:
    """Read a model's configuration, without a cache of keys and values.

    Raises:
        ModelError: transformers cannot read it.
        UnsupportedError: The model is quantized.
        MissingExtraError: transformers is not installed.
    """
    transformers = require_extra("transformers", "zoo")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"expected a transformers config.json in {folder}, got: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError(f"{folder} holds quantized weights; prune the model before it is quantized")
    config.use_cache = False
    return config


def _files(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        files = _read_index(folder / INDEX)
    elif (folder / SINGLE).is_file():
        files = dict.fromkeys(_names(folder / SINGLE), SINGLE)
    else:
        raise ModelError(
            f"expected {SINGLE} or {INDEX} in {folder}; other files of weights become that with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    for file in set(files.values()):
        if Path(file).name != file or not (folder / file).is_file():
            raise ModelError(f"{folder / INDEX} names a file {file!r} that is not in its folder; copy it there")
    return files


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if files and all(isinstance(name, str) and isinstance(file, str) for name, file in files.items()):
            return dict(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ModelError(f'expected {{"weight_map": {{tensor: file}}}} in {path}; copy it again')


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
