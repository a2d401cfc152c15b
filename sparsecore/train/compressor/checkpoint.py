"""Checkpoints: one safetensors file each, with JSON in its header and a checksum; never pickle."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecore.bundle import parse, plain, read_tensors, resolve_aliases, stored_once, write_tensors
from sparsecore.errors import BundleError, CheckpointError
from sparsecore.train.compressor.state import flatten, unflatten

FORMAT = "sparsecore-checkpoint"
VERSION = "1"
# The newest, and one before it in case a disk damages the newest.
_KEPT = 2


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any], belongs_to: Mapping[str, str]) -> Path:
    """Write a checkpoint atomically, and remove all but the last ones.

    Args:
        folder: Created if it does not exist.
        step: In the file's name.
        state: Nested dicts of tensors and of what JSON has.
        belongs_to: What it is a checkpoint of, such as hashes of recipe and model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content, tensors = flatten(state)
    stored, aliases = stored_once(tensors)
    metadata = {"state": content, "aliases": aliases, "belongs_to": dict(belongs_to)}
    path = folder / f"step-{step:09}.safetensors"
    write_tensors(
        path,
        {name: plain(tensor) for name, tensor in stored.items()},
        {name: json.dumps(value, sort_keys=True) for name, value in metadata.items()}
        | {"format": FORMAT, "version": VERSION},
    )
    for older in checkpoints(folder)[:-_KEPT]:
        older.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last."""
    return sorted(folder.glob("step-*.safetensors"))


def read_checkpoint(folder: Path, belongs_to: Mapping[str, str]) -> dict[str, Any]:
    """Return the newest state that is whole; a warning names a damaged file.

    Args:
        folder: With checkpoints.
        belongs_to: As it was written.

    Raises:
        CheckpointError: There is none that is whole, or it belongs to something else.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"expected a checkpoint in {folder}, found none; start without resuming")
    problems = []
    for path in reversed(found):
        try:
            tensors, metadata = read_tensors(path, FORMAT, VERSION, "the Compressor")
            owner = parse(metadata, "belongs_to", lambda value: isinstance(value, dict))
            content = parse(metadata, "state", lambda value: isinstance(value, dict))
            aliases = parse(metadata, "aliases", lambda value: isinstance(value, dict))
            tensors = resolve_aliases(tensors, aliases)
        except (BundleError, OSError) as error:
            problems.append(f"{path}: {error}")
            continue
        others = [what for what, value in belongs_to.items() if owner.get(what) != value]
        if others:
            raise CheckpointError(
                f"{path} belongs to a run with another {' and another '.join(others)}; resume with what it was started "
                "with, or choose another output folder"
            )
        for problem in problems:
            warnings.warn(f"damaged checkpoint skipped: {problem}", stacklevel=2)
        state: dict[str, Any] = unflatten(content, tensors)
        return state
    raise CheckpointError(f"no checkpoint is whole: {'; '.join(problems)}")
