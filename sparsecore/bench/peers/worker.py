"""The process that one library runs in: ``python -m sparsecore.bench.peers.worker MODULE PROBLEM THREADS``.

Commands come as lines of JSON on stdin, and each gets one line of JSON on stdout:

    load   problem, folder      builds the candidates and writes each one's output to folder as .npy
    run    candidate, seconds   one turn of a candidate; min_calls too, where three calls would be too many
    probe  seconds              the float32 multiply-add peak, where the module has fma_gflops()
    quit                        ends the process, as the end of stdin does

PROBLEM names the class of the problems, MODULE:CLASS. The first line, before any command, says that the library is
there. An answer with ``error`` means that this command failed and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from sparsecore.bench.peers.candidate import Candidate
from sparsecore.bench.peers.turn import MIN_CALLS, take_turn
from sparsecore.errors import UnsupportedError

# The calls before the timed ones: libraries choose kernels and allocate in the first few.
WARM_UP_CALLS = 2


class Worker:
    """A library and the candidates of the problem that was loaded last."""

    def __init__(self, library: ModuleType, problem: type[Any], threads: int) -> None:
        self.library = library
        self.problem = problem
        self.threads = threads
        self.candidates: dict[str, Candidate] = {}

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Obey one command; what goes wrong in it is its answer."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "run": self._run,
            "probe": self._probe,
        }
        try:
            return commands[command](**arguments)
        except Exception as error:
            return {"error": one_line(error)}

    def _load(self, problem: str, folder: str) -> dict[str, Any]:
        self.candidates.clear()  # before the next ones need the memory
        built: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name, build in self.library.candidates(self.problem.load(Path(problem))).items():
            try:
                candidate = build()
                path = Path(folder) / f"{len(built)}.npy"
                np.save(path, candidate.output(), allow_pickle=False)
                for _ in range(WARM_UP_CALLS):
                    candidate.call()
            except UnsupportedError:  # a format that this layer does not fit, as blocks of rows where there are none
                continue
            except Exception as error:
                failed[name] = one_line(error)
                continue
            self.candidates[name] = candidate
            built[name] = candidate.describe() | {"output": str(path)}
        return {"candidates": built, "failed": failed}

    def _run(self, candidate: str, seconds: float, min_calls: int = MIN_CALLS) -> dict[str, Any]:
        return asdict(take_turn(self.candidates[candidate].call, seconds, min_calls))

    def _probe(self, seconds: float) -> dict[str, Any]:
        return {"fma_gflops": self.library.fma_gflops(self.threads, seconds)}


def one_line(error: BaseException) -> str:
    """Type and message of an error, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def main(module: str, problem: str, threads: int) -> None:
    """Answer commands until stdin ends."""
    _die_with_parent()
    answers = _claim_stdout()
    try:
        library = import_module(module)
        problem_module, _, problem_class = problem.partition(":")
        problem_type = getattr(import_module(problem_module), problem_class)
        library.prepare(threads)
    except Exception as error:
        _send(answers, {"error": one_line(error)})
        return
    _send(answers, {"ready": True})
    worker = Worker(library, problem_type, threads)
    for line in sys.stdin:
        message = json.loads(line)
        command = message.pop("command")
        if command == "quit":
            return
        _send(answers, worker.answer(command, message))


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _claim_stdout() -> IO[str]:
    """Keep stdout for answers, and send whatever libraries print there to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _die_with_parent() -> None:
    """Leave no stopped process behind when the parent is killed (Linux; elsewhere stdin's end does what it can)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
