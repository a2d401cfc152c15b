"""A worker as its parent sees it: started, asked, stopped while it is not its turn, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsecore.bench.peers.library import Library

START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 60.0
# SIGSTOP and SIGCONT are missing on Windows, where a worker that waits is left to itself.
STOP = getattr(signal, "SIGSTOP", None)
CONTINUE = getattr(signal, "SIGCONT", None)
LAST_WORDS = 300  # characters of stderr in an error


class WorkerError(Exception):
    """A worker that died, hangs, or could not start. The message is one line."""


class CommandError(Exception):
    """A command that failed in a worker that is well. The message is one line."""


def environment(threads: int) -> dict[str, str]:
    """Environment of every worker: threads, and memory that stays with the process.

    By default glibc gives large blocks back to the system at every free, and takes them anew, page by page, at the
    next call: 2.4 us per 4 KB page were measured on a virtual machine, more than the arithmetic of many layers. No
    library should win or lose by that.
    """
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_DYNAMIC": "FALSE",
        "OMP_DYNAMIC": "FALSE",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest that every glibc takes
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }


class WorkerProcess:
    """One library in a process of its own; a context manager that always ends it.

    Args:
        library: Whose module the worker imports.
        threads: Threads to compute with.
        folder: Where its stderr goes.
        start_timeout_s: How long importing the library may take.

    Raises:
        WorkerError: It died or did not answer.
        CommandError: The library cannot be imported or set up.
    """

    def __init__(self, library: Library, threads: int, folder: Path, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self.library = library
        self._stderr = folder / f"{library.name}.stderr"
        command = [sys.executable, "-m", "sparsecore.bench.peers.worker", library.module, library.problem, str(threads)]
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(threads),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            )
        self._unread = b""
        try:
            self._receive("start", start_timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, timeout_s: float = RUN_TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
        """Let the worker go on, obey a command, and stop it again.

        Returns:
            Its answer.

        Raises:
            WorkerError: It died, or did not answer in time; it has been ended.
            CommandError: The command failed.
        """
        self._signal(CONTINUE)
        message = json.dumps({"command": command} | arguments) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message.encode())
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: closed before
            raise self._ended(command) from None
        return self._receive(command, timeout_s)

    def close(self) -> None:
        """End the worker, whatever it does; it may have ended already."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written to a dead process
                    pipe.close()

    def _receive(self, command: str, timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line(command, timeout_s))
        self._signal(STOP)
        if "error" in answer:
            raise CommandError(answer["error"])
        return answer

    def _line(self, command: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.close()
                raise WorkerError(f"no answer to {command} within {timeout_s:g} s{self._last_words()}")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._ended(command)
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self, command: str) -> WorkerError:
        self.close()
        status = self._process.returncode
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return WorkerError(f"{how} during {command}{self._last_words()}")

    def _last_words(self) -> str:
        text = self._stderr.read_text(encoding="utf-8", errors="replace").strip()
        return f"; last words: {' '.join(text[-LAST_WORDS:].split())}" if text else ""

    def _signal(self, number: int | None) -> None:
        if number is not None and self._process.poll() is None:
            self._process.send_signal(number)
