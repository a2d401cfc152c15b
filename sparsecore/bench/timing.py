"""The one timing core: candidates take turns (A B A B ...), so that drift hits all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import numpy as np

# The clock's own cost is about 0.05 us; at 100 us per sample it is below 0.1%.
MIN_SAMPLE_NS = 100_000
# Stops the search for a batch size when a call costs nothing that the clock can see.
MAX_CALLS_PER_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Timing:
    """Time per call of one candidate: one sample per round, in the order of the rounds."""

    samples_us: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_us:
            raise ValueError("expected at least one sample, got none")

    @property
    def median_us(self) -> float:
        return self._quantile(0.5)

    @property
    def q25_us(self) -> float:
        return self._quantile(0.25)

    @property
    def q75_us(self) -> float:
        return self._quantile(0.75)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.q75_us - self.q25_us) / self.median_us if self.median_us else 0.0

    def to_dict(self) -> dict[str, float]:
        """Median, quartiles (all in microseconds) and the number of rounds, for JSON."""
        return {
            "median_us": self.median_us,
            "q25_us": self.q25_us,
            "q75_us": self.q75_us,
            "rounds": len(self.samples_us),
        }

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.samples_us, share))


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    min_time_s: float = 0.2,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    warmup: int = 2,
    before: Callable[[], object] | None = None,
    progress: Callable[[float], None] | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Timing]:
    """Time candidates against each other in one interleaved run.

    Every round takes one sample of every candidate, each time in another order, so that none always
    runs first or on the caches that the same other one left. Calls shorter than 100 us are batched
    into one sample. The garbage collector is off meanwhile.

    Args:
        candidates: Name to a call without arguments; its result is dropped.
        min_time_s: Seconds that the rounds take at least, all candidates together.
        min_rounds: Rounds at least, however long they take.
        max_rounds: Rounds at most; wins over ``min_time_s``.
        warmup: Calls per candidate that are not counted; at least one is made.
        before: Called before every call and not counted; a sample is one call then.
        progress: Called after every round with the share done, from 0 to 1.
        clock_ns: A monotonic clock in nanoseconds.

    Returns:
        Name to `Timing`, in the order of ``candidates``; all have the same number of samples.

    Raises:
        ValueError: no candidates, or fewer than one round.

    Example:
        >>> timings = interleave({"long": lambda: sum(range(999)), "short": lambda: None})
        >>> speedup(timings["long"], timings["short"]) > 1
        True
    """
    if not candidates:
        raise ValueError("expected at least one candidate, got none")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"expected 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}")
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    with _garbage_collector_off():
        calls = {name: _warm_up(call, warmup, clock_ns) for name, call in candidates.items()}
        if before is not None:
            calls = dict.fromkeys(calls, 1)
        start = clock_ns()
        for done, order in zip(range(max_rounds), _orders(candidates), strict=False):
            for name in order:
                if before is not None:
                    before()
                elapsed_ns = _elapsed_ns(candidates[name], calls[name], clock_ns)
                samples[name].append(elapsed_ns / calls[name] / 1e3)
            share = _share_done(done + 1, min_rounds, max_rounds, (clock_ns() - start) / 1e9, min_time_s)
            if progress is not None:
                progress(share)
            if share >= 1.0:
                break
    return {name: Timing(tuple(samples[name])) for name in candidates}


def speedup(baseline: Timing, candidate: Timing) -> float:
    """How many times faster the candidate is: the ratio of the medians over the same rounds.

    Args:
        baseline: What to compare against, from the same `interleave` run.
        candidate: What is compared; above 1 it is faster than the baseline.

    Returns:
        ``baseline.median_us / candidate.median_us``.

    Raises:
        ValueError: the two have different numbers of rounds, so they are not from one run.
    """
    if len(baseline.samples_us) != len(candidate.samples_us):
        raise ValueError(
            f"expected two timings of one interleaved run, got {len(baseline.samples_us)} and "
            f"{len(candidate.samples_us)} rounds; time both in one interleave() call"
        )
    return baseline.median_us / candidate.median_us if candidate.median_us else math.inf


def _warm_up(call: Callable[[], object], warmup: int, clock_ns: Callable[[], int]) -> int:
    """Warm the candidate up; return how many calls make a sample of at least MIN_SAMPLE_NS."""
    for _ in range(warmup - 1):
        call()
    calls = 1
    while calls < MAX_CALLS_PER_SAMPLE:
        elapsed_ns = _elapsed_ns(call, calls, clock_ns)
        if elapsed_ns >= MIN_SAMPLE_NS:
            break
        # At most tenfold: the first short measurement may be far off.
        growth = min(10.0, max(1.2 * MIN_SAMPLE_NS / max(elapsed_ns, 1), 2.0))
        calls = min(math.ceil(calls * growth), MAX_CALLS_PER_SAMPLE)
    return calls


def _elapsed_ns(call: Callable[[], object], calls: int, clock_ns: Callable[[], int]) -> int:
    start = clock_ns()
    for _ in range(calls):
        call()
    return clock_ns() - start


def _orders(names: Iterable[str]) -> Iterator[list[str]]:
    """Endless orders, the same on every run: a shuffled one, then its reverse, and so on.

    The reverse cancels drift within a round. Rotating would not do: everyone would keep the same
    predecessor, and the one that always followed a long one measured 1.5x slower.
    """
    order = list(names)
    shuffle = Random(0).shuffle
    while True:
        shuffle(order)
        yield order
        order.reverse()
        yield order


def _share_done(rounds: int, min_rounds: int, max_rounds: int, elapsed_s: float, min_time_s: float) -> float:
    needed = min(rounds / min_rounds, elapsed_s / min_time_s if min_time_s > 0 else 1.0)
    return min(1.0, max(needed, rounds / max_rounds))


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
