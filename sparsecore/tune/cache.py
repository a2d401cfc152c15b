"""Measured times on disk, so that the same layer is measured once per machine."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import torch

from sparsecore import _C, env

# Times of one format differ between releases: a new version of either library measures anew.
FILE_NAME = "times.json"
FORMAT = 2  # 1 had times of calls in a loop
Times = dict[str, float]


def machine_key() -> str:
    """What a time depends on besides the layer: processor, instruction set, threads and versions."""
    build = _C.build_info()
    return "|".join(
        [
            _C.cpu_name(),
            _C.isa(),
            f"{torch.get_num_threads()} threads",
            f"torch {torch.__version__}",
            f"sparsecore {build['version']} {build['compiler']}",
        ]
    )


class TimeCache:
    """Layer key to time per format in microseconds; read once, written by ``save()``.

    A file that is damaged or cannot be written is not an error: the layers are measured again.

    Args:
        path: the file; None is ``times.json`` in SPARSECORE_CACHE_DIR.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or env.cache_dir() / FILE_NAME
        self._machine = machine_key()
        self._times = _read(self.path).get(self._machine, {})
        self._is_changed = False

    def get(self, key: str) -> Times | None:
        """Return the times of a layer, or None if it was not measured here."""
        return self._times.get(key)

    def put(self, key: str, times: Times) -> None:
        """Remember the times of a layer."""
        self._times[key] = dict(times)
        self._is_changed = True

    def save(self) -> None:
        """Write what is new, beside what other processes wrote meanwhile."""
        if not self._is_changed:
            return
        content = _read(self.path)
        content[self._machine] = content.get(self._machine, {}) | self._times
        with contextlib.suppress(OSError):
            _write(self.path, content)
            self._is_changed = False


def _read(path: Path) -> dict[str, dict[str, Times]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    machines = content.get("machines")
    if not isinstance(machines, dict):
        return {}
    return {
        machine: {key: times for key, times in layers.items() if _is_times(times)}
        for machine, layers in machines.items()
        if isinstance(layers, dict)
    }


def _is_times(value: object) -> bool:
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(us, float | int) and us > 0 for us in value.values())
    )


def _write(path: Path, machines: dict[str, dict[str, Times]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "machines": machines}, indent=1)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
