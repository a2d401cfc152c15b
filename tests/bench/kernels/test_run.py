"""Whole runs on tiny layers, with real libraries and with one that computes zeros."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from generated_code import HAS_GENERATOR

from sparsecore.bench.kernels import run
from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.libraries import OURS, PEERS
from sparsecore.bench.kernels.run import SPARSITIES, Plan, find_peers, fit_mask, measure
from sparsecore.bench.kernels.weights import make_problem
from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.team import Team
from sparsecore.errors import MissingExtraError

LAYERS = (
    Layer("tiny", 24, 32, 17),
    Layer("tiny", 24, 32, 1),
    Layer("tiny", 16, 32, 5, 1),
    Layer("tiny", 16, 8, 6, 3, 2),
)
OUR_FORMATS = {"dense", "panel", "csr", "int8", "lookup int8", "int8 to int8", "lookup int8 to int8"}


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TURN_SECONDS", 0.0002)
    monkeypatch.setattr(run, "PROBE_SECONDS", 0.0002)


def by_name(cell: Any) -> dict[tuple[str, str], Any]:
    return {(candidate["library"], candidate["name"]): candidate for candidate in cell["candidates"]}


LARGEST_ERROR = {"float32": 1e-5, "int8": 0.05, "int4": 0.3}


def check_timed(candidate: Any) -> None:
    assert not candidate["wrong"]
    assert candidate["us"]["rounds"] == run.MIN_ROUNDS
    assert candidate["us"]["q25_us"] <= candidate["us"]["median_us"] <= candidate["us"]["q75_us"]
    assert candidate["first_us"]["median_us"] > 0
    assert candidate["share_of_peak"] > 0
    assert candidate["error"] < LARGEST_ERROR[candidate["dtype"]]


def test_a_real_run() -> None:
    pytest.importorskip("scipy")
    seen: list[tuple[int, int, bool]] = []
    report = measure(
        Plan(LAYERS, (0.5,), peers=(PEERS["torch"], PEERS["scipy"]), seconds=0),
        lambda done, total, cell: seen.append((done, total, cell is None)),
    )
    assert seen == [(0, 4, True), (1, 4, False), (2, 4, False), (3, 4, False), (4, 4, False)]
    linear, row, pointwise, spatial = report["cells"]
    csr = {("torch", "csr"), ("scipy", "csr")}
    ours = {("sparsecore", name) for name in OUR_FORMATS}
    for_few_rows = {("sparsecore", name) for name in ("bitmap", "bitmap int8", "lookup int4")}
    assert set(by_name(linear)) == ours | csr | {("torch", "dense")}
    assert set(by_name(row)) == set(by_name(linear)) | for_few_rows
    of_convolutions = ours | ({("sparsecore", "jit")} if HAS_GENERATOR else set())
    assert set(by_name(pointwise)) == of_convolutions | csr | {("torch", "dense"), ("torch", "dense nhwc")}
    assert set(by_name(spatial)) == of_convolutions | {("torch", "dense"), ("torch", "dense nhwc")}
    for cell in report["cells"]:
        assert cell["failures"] == []
        assert cell["fma_gflops"] > 0
        for candidate in cell["candidates"]:
            check_timed(candidate)
            assert (candidate["weight_bytes"] is not None) == (candidate["library"] == "sparsecore")
    assert report["versions"].keys() == {"sparsecore", "torch", "scipy"}
    assert report["machine"]["threads"] == 1
    assert {"means", "break_even"} <= report.keys()
    json.loads(json.dumps(report, allow_nan=False))


def test_what_goes_wrong_is_a_line(python_path: Path, fake_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OURS", fake_library)
    report = measure(Plan(LAYERS[:1], (0.5,), seconds=0))
    (cell,) = report["cells"]
    found = by_name(cell)
    assert found["fake", "zeros"]["wrong"]
    assert found["fake", "int8"]["error"] == pytest.approx(1)
    assert found["fake", "int8"]["wrong"]
    assert not found["fake", "dies"]["wrong"], "nobody says how far 4-bit weights may be off"
    assert not any("us" in found["fake", name] for name in ("zeros", "int8", "dies", "hangs"))
    unbuilt, *wrong, dead = cell["failures"]
    assert unbuilt == "fake fails: ValueError: cannot build this"
    assert wrong == [
        f"fake {name}: the output is wrong (error 1.0e+00); not timed" for name in ("zeros", "int8", "hangs")
    ]
    words = "noise of a library on stdout prepared for 1 about to die"
    assert dead == f"fake: killed by SIGKILL during run; last words: {words}"
    json.dumps(report, allow_nan=False)


# All in one process: what is tested is that results are right, and a process takes a second to start.
MERGED = """
from importlib import import_module

from sparsecore.bench.kernels.libraries import PEERS

LIBRARIES = {name: import_module(PEERS[name].module) for name in %r}

def prepare(threads):
    for library in LIBRARIES.values():
        library.prepare(threads)

def candidates(problem):
    return {
        f"{name} {candidate}": build
        for name, library in LIBRARIES.items()
        for candidate, build in library.candidates(problem).items()
    }
"""


def test_peers_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [name for name in ("onnxruntime", "openvino", "mkl") if PEERS[name].versions()]
    if not installed:
        pytest.skip("no peer is installed")
    (tmp_path / "merged_peers.py").write_text(MERGED % installed, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    layers = (*LAYERS, Layer("tiny", 16, 8, 5, 1, 2), Layer("tiny", 16, 8, 4, 1, batch=3))
    with Team(1, tmp_path) as team:
        for layer in layers:
            problem = make_problem(layer, 0.7, "magnitude")
            candidates = run._load(problem, [Library("peers", "merged_peers", ())], team)
            assert team.take_failures() == []
            found = {name.partition(" ")[0] for _, name in candidates}
            assert found == {name for name in installed if name != "mkl" or problem.is_product}
            for candidate in candidates.values():
                assert not candidate["wrong"]
                assert candidate["error"] < LARGEST_ERROR[candidate["dtype"]]


def test_rounds() -> None:
    assert Plan(LAYERS, seconds=0).rounds == run.MIN_ROUNDS
    assert Plan(LAYERS, seconds=0.003).rounds == 15  # of 0.2 ms


def test_fit_mask() -> None:
    layers = (*LAYERS, Layer("tiny", 24, 17, 1))
    assert fit_mask("magnitude", layers) == ([*layers], SPARSITIES)
    assert fit_mask("4x1", layers, (0.9, 0.5, 0.9)) == ([*layers], (0.9, 0.5))
    assert fit_mask("4:16", layers) == ([*LAYERS[:3]], (0.75,))
    assert fit_mask("8:16", layers[:1], (0.5,)) == ([LAYERS[0]], (0.5,))
    with pytest.raises(ValueError, match="4:16 has 75% zeros by itself"):
        fit_mask("4:16", layers, (0.75, 0.9))
    with pytest.raises(ValueError, match="K must be a multiple of 16"):
        fit_mask("4:16", layers[4:])


def test_find_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch", "scipy"}
    monkeypatch.setattr(Library, "versions", lambda self: {self.name: "1"} if self.name in installed else None)
    assert find_peers("none") == ([], [])
    assert find_peers("scipy, torch,scipy") == ([PEERS["scipy"], PEERS["torch"]], [])
    peers, lines = find_peers("auto")
    assert peers == [PEERS["torch"], PEERS["scipy"]]
    assert lines == [
        *(f'{name} is not installed: pip install "sparsecore[peers]"' for name in ("onnxruntime", "openvino", "mkl")),
        "ggml is not installed: see benchmarks/ggml_q4.py, it is compiled for this CPU",
    ]
    with pytest.raises(MissingExtraError, match=r"openvino is not installed: pip install"):
        find_peers("torch,openvino")
    with pytest.raises(ValueError, match="got tensorflow"):
        find_peers("torch,tensorflow")


def test_ours_is_installed() -> None:
    assert OURS.versions()
    assert Library("none", "", ("no-such-distribution",)).versions() is None
