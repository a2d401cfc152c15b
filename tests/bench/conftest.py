"""A small report with the shape of the demo's, no number in it measured, and a library that computes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sparsecore.bench.peers.library import Library


def _timing(batch: int, median_us: float, speedup: float) -> dict[str, Any]:
    return {
        "batch": batch,
        "median_us": median_us,
        "q25_us": 0.9 * median_us,
        "q75_us": 1.1 * median_us,
        "rounds": 7,
        "speedup": speedup,
    }


def _version(name: str, library: str, scale: float) -> dict[str, Any]:
    return {
        "name": name,
        "what": f"what {name} is",
        "library": library,
        "accuracy": 0.99 - 0.002 * scale,
        "disk_bytes": int(1.5e6 / scale),
        "memory_bytes": int(1.6e6 / scale),
        "timings": [_timing(1, 300 / scale, scale), _timing(256, 30_000 / scale, 0.9 * scale)],
    }


def _layer(name: str, format: str, speedup: float | None, roofline: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "op": "conv2d",
        "shape": "64x64x3x3 @ 56x56",
        "sparsity": 0.9 if format != "dense" else 0.0,
        "format": format,
        "kernel": "conv2d_csr_f32_avx2" if format != "dense" else "torch",
        "time_us": 123.4,
        "dense_us": 234.5,
        "speedup": speedup,
        "roofline": roofline,
        "reason": "fastest measured",
    }


@pytest.fixture
def report() -> dict[str, Any]:
    layers = [
        _layer("conv1", "dense", 1.0, None),
        _layer("layer1.0.conv1", "csr", 3.2, 0.41),
        _layer("fc", "dense", None, None),
    ]
    digits = [
        ("dense", "PyTorch", 1.0),
        ("CSR", "sparsecore", 3.0),
        ("lookup int8", "sparsecore", 0.7),
    ]
    resnet = [("eager", "PyTorch", 0.9), ("channels last", "PyTorch", 1.0)]
    return {
        "schema": 1,
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 2,
            "isa": "avx2",
            "torch": "2.13.0",
            "sparsecore": "0.1.0",
            "commit": None,
            "date": "2026-01-01T00:00:00+00:00",
        },
        "limits": {
            "threads": 2,
            "fma_gflops": 150.0,
            "bandwidth": [{"level": "L1", "buffer_bytes": 16384, "read_gbps": 285.0}],
        },
        "digits": {
            "sparsity": 0.9,
            "test_images": 360,
            "versions": [_version(*version) for version in digits],
            "conversions": [{"batch": 1, "layers": layers}, {"batch": 256, "layers": layers}],
        },
        "resnet50": {
            "input": [1, 3, 224, 224],
            "sparsity": 0.9,
            "pruned": "What was pruned.",
            "fma_gflops": 148.0,
            "max_relative_difference": 3.2e-6,
            "versions": [_version(*v) for v in [*resnet, ("sparsecore", "sparsecore", 2.5)]],
            "layers": layers,
        },
        "seconds": 123.0,
    }


FAKE_LIBRARY = """
import os, signal, sys, time
import numpy as np
from sparsecore.bench.peers.candidate import Candidate

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
        "dies": lambda: Candidate(twice_then(die), lambda: y, dtype="int4"),
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
