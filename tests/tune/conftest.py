"""A cache of its own for every test, and times that no clock decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecore.tune import measure


@pytest.fixture(autouse=True)
def _setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", str(tmp_path))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What measuring says instead of a clock, by format."""
    fixed = {"dense": 100.0, "panel": 70.0, "4x1": 80.0, "8x1": 80.0, "csr": 50.0, "int8": 60.0}
    fixed |= {"lookup int8": 55.0, "bitmap int8": 65.0, "lookup int4": 110.0, "bitmap": 110.0, "jit": 110.0}
    fixed |= {"binary": 110.0, "ternary": 110.0}
    monkeypatch.setattr(measure, "_measure", lambda forms, *_: ({name: fixed[name] for name in forms}, 0.0))
    return fixed
