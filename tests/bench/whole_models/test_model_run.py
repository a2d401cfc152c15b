"""Whole runs of a small net, with real libraries and with one that computes nothing right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecore.bench.models import ModelSource, find_model, load_model
from sparsecore.bench.peers.library import Library
from sparsecore.bench.whole_models import run
from sparsecore.bench.whole_models.export import export_onnx
from sparsecore.bench.whole_models.libraries import EAGER, OURS, PEERS, PROBLEM
from sparsecore.bench.whole_models.problem import ModelProblem, first_tensor
from sparsecore.bench.whole_models.run import Plan, measure
from sparsecore.errors import UnsupportedError

DIGITS = "sparsecore.bench.models:digits_net"
SHAPE = (2, 1, 8, 8)


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"source": find_model(DIGITS), "shape": SHAPE, "rounds": 2, "turn_seconds": 0.0}
    return Plan(**settings | changes)


WRONG = """
import numpy as np
from sparsecore.bench.peers.candidate import Candidate

def prepare(threads):
    pass

def candidates(problem):
    ones, few = np.ones(problem.output_shape, np.float32), np.zeros(1, np.float32)
    nan = np.full_like(ones, np.nan)
    return {
        "ones": lambda: Candidate(lambda: None, lambda: 1e6 * ones),
        "few": lambda: Candidate(lambda: None, lambda: few),
        "nan": lambda: Candidate(lambda: None, lambda: nan, dtype="int8"),
    }
"""


def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, PyTorch, and a library whose wrong results are not timed."""
    (tmp_path / "wrong_model_library.py").write_text(WRONG, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    wrong = Library("wrong", "wrong_model_library", (), PROBLEM)
    absent = Library("absent", "absent_library", ("no-such-distribution",), PROBLEM)
    steps: list[str] = []
    report = measure(plan(sparsities=(0.9, 0.9), peers=[EAGER, wrong, absent]), lambda step, share: steps.append(step))
    json.dumps(report, allow_nan=False)
    (cell,) = report["cells"]
    check_timed(cell, {OURS.name, EAGER.name})
    assert len(cell["failures"]) == 3
    assert all("the output is wrong" in failure for failure in cell["failures"])
    assert (cell["batch"], cell["threads"], cell["input"]) == (2, 1, [*SHAPE])
    assert abs(cell["zeros"] - 0.9) < 1e-2
    assert report["complete"]
    assert report["missing"] == [steps[0]] == [f"absent is not installed: {absent.install}"]
    assert report["summary"][0]["best_dense"].startswith("PyTorch eager")
    assert report["summary"][0]["ours_over_best_dense"] > 0
    assert steps[-1] == f"{DIGITS}, 1 thread, batch 2, 90% zeros: measure"


def check_timed(cell: dict[str, Any], libraries: set[str]) -> None:
    timed = [row for row in cell["candidates"] if "us" in row]
    assert {row["library"] for row in timed} == libraries
    for row in timed:
        assert row["us"]["rounds"] == 2
        assert row["error"] < (0.1 if row["dtype"] == "int8" else 1e-5)


@pytest.mark.slow
def test_every_installed_peer() -> None:
    peers = [peer for peer in PEERS if peer.versions()]
    report = measure(plan(sparsities=(0.0, 0.9), batches=(1, 3), peers=peers, max_error=0.05))
    for cell in report["cells"]:
        assert cell["failures"] == []
        check_timed(cell, {OURS.name, *(peer.name for peer in peers)})
    assert [(cell["batch"], cell["sparsity"]) for cell in report["cells"]] == [(1, 0.0), (1, 0.9), (3, 0.0), (3, 0.9)]


def test_an_interrupt_keeps_finished_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(plan: Any, model: Any, batch: int, sparsity: float, *rest: Any) -> dict[str, Any]:
        if len(done) == allowed:
            raise KeyboardInterrupt
        done.append(sparsity)
        return {"candidates": [], "batch": batch, "threads": 1, "sparsity": sparsity}

    done: list[float] = []
    allowed = 2
    monkeypatch.setattr(run, "_measure_cell", measured)
    report = measure(plan())
    assert (report["complete"], len(report["cells"]), done) == (False, 2, [0.0, 0.7])
    done, allowed = [], 0
    with pytest.raises(KeyboardInterrupt):
        measure(plan())


def test_a_model_with_zeros_keeps_them() -> None:
    model = nn.Linear(4, 4)
    model.weight.data[1:] = 0
    source = ModelSource("mine", lambda: model, lambda model: None, is_random=False)
    assert run._sparsities(plan(source=source), model) == [None]
    assert run._sparsities(plan(source=source, sparsities=(0.5,)), model) == [0.5]
    assert run._sparsities(plan(), nn.Linear(4, 4)) == [0.0, 0.7, 0.9]


def test_problems_come_back(tmp_path: Path) -> None:
    model, (x,) = load_model(DIGITS, shape=SHAPE, seed=3)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    problem = ModelProblem(DIGITS, str(tmp_path / "state.pt"), x.numpy(), (2, 10), max_error=0.1)
    problem.save(tmp_path / "p.json")
    again = ModelProblem.load(tmp_path / "p.json")
    assert (again.output_shape, again.max_error, again.onnx) == ((2, 10), 0.1, "")
    np.testing.assert_array_equal(again.x, problem.x)
    with torch.inference_mode():
        assert torch.equal(again.build()(x), model(x))


def test_first_tensor() -> None:
    tensor = torch.zeros(1)
    assert all(first_tensor(output) is tensor for output in (tensor, (tensor, 1), [(tensor,)], {"y": tensor}))


def test_a_model_that_cannot_be_exported(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    pytest.importorskip("onnx")
    with pytest.raises(UnsupportedError, match=r"torch\.onnx\.export: .+") as failure:
        export_onnx(Strange(), torch.randn(2), tmp_path / "a.onnx")
    assert "\n" not in str(failure.value)
