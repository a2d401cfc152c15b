"""How long work tells where it is: a call with the name of the step and the share done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TextIO

# progress(step, share): 0 begins a step, 1 ends it; anything between may be called at any time. A step that ends but
# never began is a note.
Progress = Callable[[str, float], None]


def silent(step: str, share: float) -> None:
    """Report nothing."""


def lines(stream: TextIO | None = None) -> Progress:
    """Report every step in a line of its own when it ends, with the seconds it took.

    Args:
        stream: Where to write; None is standard error.

    Returns:
        The progress callback.
    """
    started: dict[str, float] = {}

    def report(step: str, share: float) -> None:
        if share < 1.0:
            started.setdefault(step, time.monotonic())
            return
        took = f"  {time.monotonic() - started.pop(step):.1f} s" if step in started else ""
        print(f"  {step}{took}", file=stream or sys.stderr, flush=True)

    return report


@contextmanager
def stage(progress: Progress, step: str) -> Iterator[Callable[[float], None]]:
    """Begin a step and end it when the block is left; yields the call for what lies between."""
    progress(step, 0.0)
    yield partial(_between, progress, step)
    progress(step, 1.0)


def _between(progress: Progress, step: str, share: float) -> None:
    # The end belongs to stage(): a step ends once, and only when its block is done.
    if share < 1.0:
        progress(step, share)
