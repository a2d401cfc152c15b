"""Workers: the protocol, and that they stop, die and end as they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.weights import make_problem
from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.process import CommandError, WorkerError, WorkerProcess, environment

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Arguments of load."""
    path = tmp_path / "problem.npz"
    make_problem(Layer("", 3, 4, 2), 0.5, "random").save(path)
    return {"problem": str(path), "folder": str(tmp_path)}


@pytest.fixture
def worker(python_path: Path, fake_library: Library, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(fake_library, 3, tmp_path) as process:
        yield process


def state_of(pid: int) -> str:
    """R, S, T, Z, ...; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def pid_of(worker: WorkerProcess) -> int:
    return worker._process.pid


def test_protocol(worker: WorkerProcess, files: dict[str, str]) -> None:
    answer = worker.ask("load", **files)
    assert answer["failed"] == {"fails": "ValueError: cannot build this"}
    zeros = answer["candidates"]["zeros"]
    assert (zeros["dtype"], zeros["sparse"], zeros["note"]) == ("float32", False, "fake")
    assert answer["candidates"]["int8"]["dtype"] == "int8"
    np.testing.assert_array_equal(np.load(zeros["output"], allow_pickle=False), np.zeros((2, 3)))

    turn = worker.ask("run", candidate="zeros", seconds=0.001)
    assert turn["calls"] >= 3
    assert turn["first_us"] > 0
    assert worker.ask("probe", seconds=0.001) == {"fma_gflops": 30.0}

    # A command that fails leaves the worker as it was.
    with pytest.raises(CommandError, match="KeyError: 'no such candidate'"):
        worker.ask("run", candidate="no such candidate", seconds=0.001)
    with pytest.raises(CommandError, match="FileNotFoundError"):
        worker.ask("load", problem="/no/such/file.npz", folder="")
    with pytest.raises(CommandError, match="KeyError: 'dance'"):
        worker.ask("dance")
    assert worker.ask("probe", seconds=0.001) == {"fma_gflops": 30.0}

    # One that dies says how, and stays dead.
    worker.ask("load", **files)
    with pytest.raises(WorkerError) as failure:
        worker.ask("run", candidate="dies", seconds=0.001)
    message = str(failure.value)
    assert message.startswith("killed by SIGKILL during run; last words:")
    assert message.endswith("about to die")
    assert "\n" not in message
    with pytest.raises(WorkerError, match="killed by SIGKILL during probe"):
        worker.ask("probe", seconds=0.001)


def test_one_that_hangs_is_ended(worker: WorkerProcess, files: dict[str, str]) -> None:
    worker.ask("load", **files)
    assert not Path("/proc").is_dir() or wait_until(lambda: state_of(pid_of(worker)) == "T")
    with pytest.raises(WorkerError, match=r"no answer to run within 0\.2 s"):
        worker.ask("run", timeout_s=0.2, candidate="hangs", seconds=0.001)
    assert state_of(pid_of(worker)) == ""


def test_a_library_that_cannot_be_imported(python_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        WorkerProcess(Library("broken", "broken_library", ()), 1, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a parent death signal")
def test_a_stopped_worker_goes_with_its_parent(python_path: Path) -> None:
    code = """
import os, signal, subprocess, sys, time
command = [sys.executable, "-m", "sparsecore.bench.peers.worker", "fake_library",
           "sparsecore.bench.kernels.problem:Problem", "1"]
worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
worker.stdout.readline()
worker.send_signal(signal.SIGSTOP)
print(worker.pid, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert wait_until(lambda: state_of(pid) == "T")
        parent.kill()
    assert wait_until(lambda: state_of(pid) in ("", "Z"))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    variables: dict[str, Any] = environment(2)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "2"
    assert variables["PATH"] == os.environ["PATH"]
    assert {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"} <= set(variables)
