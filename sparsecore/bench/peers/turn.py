"""One turn of a candidate: a call on cold caches, then calls until enough time has passed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

MIN_CALLS = 3


@dataclass(frozen=True)
class Turn:
    """What a turn measured.

    Attributes:
        first_us: The first call, on caches that the others left.
        median_us: Median of the calls after it.
        calls: How many those were.
    """

    first_us: float
    median_us: float
    calls: int


def take_turn(
    call: Callable[[], object],
    seconds: float,
    min_calls: int = MIN_CALLS,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Turn:
    """Time a call, garbage collection off.

    Args:
        call: What is timed; its result is dropped.
        seconds: How long calls go on after the first, which is apart.
        min_calls: Calls at least, after the first.
        clock_ns: A monotonic clock in nanoseconds.

    Returns:
        The figures of this turn.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        first_ns = _time(call, clock_ns)
        end_ns = clock_ns() + round(seconds * 1e9)
        times_ns: list[int] = []
        while len(times_ns) < min_calls or clock_ns() < end_ns:
            times_ns.append(_time(call, clock_ns))
    finally:
        if was_enabled:
            gc.enable()
    return Turn(first_ns / 1e3, median(times_ns) / 1e3, len(times_ns))


def _time(call: Callable[[], object], clock_ns: Callable[[], int]) -> int:
    start = clock_ns()
    call()
    return clock_ns() - start
