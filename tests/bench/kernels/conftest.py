"""A report with made-up times, and a library that computes nothing, for a worker of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from made_up import cell

from sparsecore.bench.kernels.layers import LAYERS
from sparsecore.bench.kernels.libraries import Library
from sparsecore.bench.kernels.run import SCHEMA


@pytest.fixture
def report() -> dict[str, Any]:
    """Two layers at two sparsities; one loses to int8, and a library failed."""
    cells = [
        cell(90, 0.7),
        cell(125, 0.7, layer=LAYERS[-1]),
        cell(25, 0.9),
        cell(40, 0.9, layer=LAYERS[-1], failures=["openvino: killed by SIGKILL during load"]),
    ]
    return {
        "schema": SCHEMA,
        "machine": {"cpu": "Some CPU", "isa": "avx2", "threads": 2, "torch": "2.13.0", "commit": None, "date": "today"},
        "versions": {"torch": {"torch": "2.13.0"}, "openvino": None},
        "mask": "magnitude",
        "rounds": 7,
        "complete": True,
        "cells": cells,
    }


FAKE_LIBRARY = """
import os, signal, sys, time
import numpy as np
from sparsecore.bench.kernels.libraries.candidate import Candidate

print("noise of a library on stdout")

def prepare(threads):
    print("prepared for", threads)

def fma_gflops(threads, seconds):
    return 10.0 * threads

def candidates(problem):
    y = np.zeros(problem.output_shape, np.float32)
    def fail():
        raise ValueError("cannot build\\nthis")
    def die():
        print("about to die", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    def twice_then(last):
        calls = []
        return lambda: calls.append(1) if len(calls) < 2 else last()
    return {
        "zeros": lambda: Candidate(lambda: None, lambda: y, note="fake"),
        "int8": lambda: Candidate(lambda: None, lambda: y, dtype="int8"),
        "fails": fail,
        "dies": lambda: Candidate(twice_then(die), lambda: y, dtype="int8"),
        "hangs": lambda: Candidate(twice_then(lambda: time.sleep(60)), lambda: y),
    }
"""


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A module that workers find while the environment variable of `python_path` is set."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "fake_library.py").write_text(FAKE_LIBRARY, encoding="utf-8")
    (folder / "broken_library.py").write_text("import no_such_module", encoding="utf-8")
    return Library("fake", "fake_library", (str(folder),))


@pytest.fixture
def python_path(monkeypatch: pytest.MonkeyPatch, fake_library: Library) -> Path:
    """Let workers find the fake library."""
    monkeypatch.setenv("PYTHONPATH", fake_library.distributions[0], prepend=os.pathsep)
    return Path(fake_library.distributions[0])
