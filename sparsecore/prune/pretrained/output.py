"""The folder that a pruned model is written to, block by block, and the state that a later run continues from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsecore.atomic import replacing
from sparsecore.errors import ModelError
from sparsecore.prune.pretrained.checkpoint import CONFIG, INDEX

STATE = "sparsecore-prune.json"
_FORMAT, _VERSION = "sparsecore-prune", 1
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".h5", ".msgpack")


@dataclass(frozen=True)
class OutputFolder:
    """A folder with a shard per block, one for the other tensors, and the state of the run.

    Attributes:
        folder: Where it is.
        arguments: All that the result depends on; a run continues only with the same.
        shards: The tensors of each shard, by their names in the files.
    """

    folder: Path
    arguments: Mapping[str, Any]
    shards: list[list[str]]

    @staticmethod
    def require_usable(folder: Path) -> None:
        """Check that a run may begin or continue in a folder.

        Raises:
            FileExistsError: It is a file, or holds something else.
        """
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"expected a folder to write to, got the file {folder}")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / STATE).is_file():
            raise FileExistsError(f"{folder} holds other files; give a new or an empty folder")

    def begin(self) -> list[dict[str, Any]]:
        """Create the folder, or continue in it; return what is known of the blocks that are done.

        Raises:
            FileExistsError: It holds something else, or a run with other arguments.
            ModelError: Its state is damaged.
        """
        self.require_usable(self.folder)
        if (self.folder / STATE).is_file():
            return self._continued()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note([])
        return []

    def note(self, blocks: list[dict[str, Any]]) -> None:
        """Write down that blocks are done."""
        state = {"format": _FORMAT, "version": _VERSION, "arguments": self.arguments, "blocks": blocks}
        _write_json(self.folder / STATE, state)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do; the index is written last.

        Raises:
            ModelError: A file of the result has been damaged since.
        """
        if not (self.folder / INDEX).is_file():
            return False
        for shard, names in enumerate(self.shards):
            path = self.folder / self._shard_name(shard)
            try:
                with safe_open(path, "pt") as file:
                    is_whole = set(file.keys()) == set(names)
            except (OSError, SafetensorError):
                is_whole = False
            if not is_whole:
                raise ModelError(f"{path} is damaged; delete {self.folder} and run again")
        return True

    @property
    def calibration(self) -> Path:
        """The folder for what only the run needs."""
        return self.folder / "calibration"

    def write_shard(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of one shard."""
        if tensors.keys() != set(self.shards[shard]):
            raise ValueError(f"expected the tensors {self.shards[shard]}, got {[*tensors]}")
        with replacing(self.folder / self._shard_name(shard)) as new:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata={"format": "pt"})

    def finish(self, model_folder: Path, dtype: torch.dtype | None) -> None:
        """Copy the model's other files, write the index, and remove what only the run needed.

        Args:
            model_folder: Has the configuration and the tokenizer.
            dtype: To write into the configuration; None leaves it.
        """
        for path in sorted(model_folder.iterdir()):
            if path.is_file() and not path.name.endswith(_WEIGHT_FILES) and path.name != STATE:
                with replacing(self.folder / path.name) as new:
                    shutil.copyfile(path, new)
        if dtype is not None:
            config = json.loads((model_folder / CONFIG).read_text(encoding="utf-8"))
            config.pop("torch_dtype", None)  # its name until transformers 4.56
            config["dtype"] = str(dtype).removeprefix("torch.")
            _write_json(self.folder / CONFIG, config)
        shutil.rmtree(self.calibration, ignore_errors=True)
        names = [self._shard_name(shard) for shard in range(len(self.shards))]
        files = {stored: name for name, shard in zip(names, self.shards, strict=True) for stored in shard}
        size = sum(_tensor_bytes(self.folder / name) for name in names)
        _write_json(self.folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})

    def _continued(self) -> list[dict[str, Any]]:
        path = self.folder / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            is_ours = (state["format"], state["version"]) == (_FORMAT, _VERSION)
            before, blocks = dict(state["arguments"]), list(state["blocks"])
        except (ValueError, KeyError, TypeError, RecursionError):
            is_ours = False
        if not is_ours:
            raise ModelError(f"expected the state of a run in {path}, got something else; delete {self.folder}")
        now = json.loads(json.dumps(self.arguments))
        others = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if others:
            differences = ", ".join(f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in others)
            raise FileExistsError(f"{self.folder} holds a run with other arguments: {differences}; give another folder")
        return blocks

    def _shard_name(self, shard: int) -> str:
        return f"model-{shard + 1:05}-of-{len(self.shards):05}.safetensors"


def split_shards(stored: Iterable[str], base: str, blocks: list[str]) -> list[list[str]]:
    """Sort names of stored tensors: a list for each block, then one of all others."""
    shards: list[list[str]] = [[] for _ in blocks]
    others: list[str] = []
    prefixes = {f"{name}.": shard for name, shard in zip(blocks, shards, strict=True)}
    for name in stored:
        belongs = [
            shard for start, shard in prefixes.items() if name.startswith((start, start.removeprefix(f"{base}.")))
        ]
        (belongs[0] if belongs else others).append(name)
    return [*shards, others]


def _tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file behind its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    return shorten(str(value), width=40, placeholder="...")
