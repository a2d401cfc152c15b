"""All libraries' workers: what one of them does wrong becomes a line in the report, and the run goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.process import CommandError, WorkerError, WorkerProcess

# A library whose worker ended this often is not started again.
MAX_STARTS = 3


class Team:
    """Workers by the name of their library; a context manager that ends them all.

    Args:
        threads: Threads of every library.
        folder: For files that parent and workers exchange.

    Attributes:
        failures: What went wrong, one line each.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        self.threads = threads
        self.folder = folder
        self.failures: list[str] = []
        self._stack = ExitStack()
        self._running: dict[str, WorkerProcess] = {}
        self._starts: dict[str, int] = {}

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, library: Library, **arguments: Any) -> dict[str, Any]:
        """Give a problem to a library's worker, which is started where it does not run.

        Returns:
            The worker's answer, without candidates if it could not be had.
        """
        if library.name not in self._running:
            self._start(library)
        answer = self.ask(library.name, "load", timeout_s=library.load_timeout_s, **arguments)
        return answer or {"candidates": {}, "failed": {}}

    def ask(self, library: str, command: str, **options: Any) -> dict[str, Any] | None:
        """Ask a worker; None where it does not run or cannot do it."""
        worker = self._running.get(library)
        if worker is None:
            return None
        try:
            return worker.ask(command, **options)
        except (WorkerError, CommandError) as error:
            self.failures.append(f"{library}: {error}")
            if isinstance(error, WorkerError):
                del self._running[library]
            return None

    def take_failures(self) -> list[str]:
        """What went wrong since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def _start(self, library: Library) -> None:
        starts = self._starts.get(library.name, 0) + 1
        if starts > MAX_STARTS:
            return
        self._starts[library.name] = starts
        try:
            worker = WorkerProcess(library, self.threads, self.folder)
        except (WorkerError, CommandError) as error:
            self.failures.append(f"{library.name}: {error}")
            self._starts[library.name] = MAX_STARTS  # it would fail again
        else:
            self._running[library.name] = self._stack.enter_context(worker)
