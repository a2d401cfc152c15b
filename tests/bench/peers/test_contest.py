"""Candidates of several libraries: checked, and timed unless they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsecore.bench.peers.contest import Turns, load_candidates, statistics, time_candidates
from sparsecore.bench.peers.library import Library

GOOD, OTHER = Library("good", "", ()), Library("other", "", ())


class FakeTeam:
    """Answers what workers would; candidate ``dies`` never finishes a turn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: list[str] = []
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    def load(self, library: Library, **arguments: Any) -> dict[str, Any]:
        names = ("right", "dies") if library is GOOD else ("off", "nan")
        outputs = {"right": 1.0, "dies": 1.0, "off": 3.0, "nan": np.inf}
        built = {}
        for name in names:
            path = self.folder / f"{name}.npy"
            np.save(path, np.full(2, outputs[name]))
            built[name] = {"dtype": "float32", "output": str(path)}
        return {"candidates": built, "failed": {"broken": "ValueError: no"}}

    def ask(self, library: str, command: str, **options: Any) -> dict[str, Any] | None:
        self.asked.append((library, command, options))
        if command == "probe":
            return {"fma_gflops": 80.0}
        return None if options["candidate"] == "dies" else {"first_us": 3.0, "median_us": 2.0}


def check(output: NDArray[Any], dtype: str) -> tuple[float, bool]:
    error = float(np.abs(output - 1).max())
    return error, error < 0.5


def test_the_way_through(tmp_path: Path) -> None:
    team: Any = FakeTeam(tmp_path)
    candidates = load_candidates(tmp_path / "problem", [GOOD, OTHER], team, check)
    assert {key: (row["error"], row["wrong"]) for key, row in candidates.items()} == {
        ("good", "right"): (0.0, False),
        ("good", "dies"): (0.0, False),
        ("other", "off"): (2.0, True),
        ("other", "nan"): (None, True),
    }
    assert candidates["good", "right"] == {
        "library": "good",
        "name": "right",
        "dtype": "float32",
        "error": 0.0,
        "wrong": False,
    }
    assert team.failures == [
        "good broken: ValueError: no",
        "other broken: ValueError: no",
        "other off: the output is wrong (error 2.0e+00); not timed",
        "other nan: the output is wrong (error inf); not timed",
    ]
    results, peaks = time_candidates(candidates, team, GOOD, Turns(3, 0.1, 0.01, min_calls=1, timeout_s=9))
    assert list(results) == [("good", "right")]
    assert peaks == [80.0] * 3
    turns = [options for _, command, options in team.asked if command == "run" and options["candidate"] == "right"]
    assert turns == [{"candidate": "right", "seconds": 0.1, "min_calls": 1, "timeout_s": 9}] * 3
    times = statistics(results["good", "right"])
    assert (times["us"]["median_us"], times["first_us"]["median_us"], times["us"]["rounds"]) == (2.0, 3.0, 3)


def test_no_rounds(tmp_path: Path) -> None:
    team: Any = FakeTeam(tmp_path)
    with pytest.raises(ValueError, match="at least one round"):
        time_candidates({}, team, GOOD, Turns(0, 0.1, 0.01))
