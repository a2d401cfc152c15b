"""One problem, all candidates: built, checked against the right output, and timed in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.process import RUN_TIMEOUT_S
from sparsecore.bench.peers.rounds import take_rounds
from sparsecore.bench.peers.team import Team
from sparsecore.bench.peers.turn import MIN_CALLS
from sparsecore.bench.timing import Timing

Key = tuple[str, str]  # library, candidate
Row = Mapping[str, Any]
# check(output, dtype): the error of a candidate's output, and whether it is right.
Check = Callable[[NDArray[Any], str], tuple[float, bool]]
PROBE = ("", "FMA probe")  # takes its turns like a candidate


@dataclass(frozen=True)
class Turns:
    """How turns are taken.

    Attributes:
        rounds: Turns of every candidate.
        seconds: Of a turn, after its first call.
        probe_seconds: Of a turn of the FMA probe.
        min_calls: Calls of a turn at least, after the first.
        timeout_s: Of a turn.
        seed: Of the orders.
    """

    rounds: int
    seconds: float
    probe_seconds: float
    min_calls: int = MIN_CALLS
    timeout_s: float = RUN_TIMEOUT_S
    seed: int = 0


def load_candidates(problem: Path, libraries: Iterable[Library], team: Team, check: Check) -> dict[Key, dict[str, Any]]:
    """Let every library build its candidates, and check their outputs.

    Args:
        problem: The file of the problem.
        libraries: Who builds.
        team: Their workers; what goes wrong is among its failures.
        check: Judges an output.

    Returns:
        Candidates as they describe themselves, with ``library``, ``name``, ``error`` (None where it is not finite) and
        ``wrong``.
    """
    candidates: dict[Key, dict[str, Any]] = {}
    for library in libraries:
        answer = team.load(library, problem=str(problem), folder=str(team.folder))
        for name, reason in answer["failed"].items():
            team.failures.append(f"{library.name} {name}: {reason}")
        for name, description in answer["candidates"].items():
            found = np.load(description.pop("output"), allow_pickle=False)
            error, is_right = check(found, description["dtype"])
            if not is_right:
                team.failures.append(f"{library.name} {name}: the output is wrong (error {error:.1e}); not timed")
            verdict = {"error": error if math.isfinite(error) else None, "wrong": not is_right}  # JSON has no infinity
            candidates[library.name, name] = {"library": library.name, "name": name} | description | verdict
    return candidates


def time_candidates(
    candidates: Mapping[Key, Row], team: Team, prober: Library, turns: Turns
) -> tuple[dict[Key, list[Row]], list[float]]:
    """Let candidates that are not wrong take turns with each other and with the FMA probe.

    Args:
        candidates: From `load_candidates`.
        team: Their workers.
        prober: The library whose worker has the probe.
        turns: How often and how long.

    Returns:
        The turns of every candidate that finished, and the multiply-add peaks of the same rounds in GFLOP/s.
    """

    def turn(library: str, candidate: str) -> Callable[[], Row | None]:
        options = {"seconds": turns.seconds, "min_calls": turns.min_calls, "timeout_s": turns.timeout_s}
        return lambda: team.ask(library, "run", candidate=candidate, **options)

    calls: dict[Key, Callable[[], Row | None]] = {
        key: turn(*key) for key, candidate in candidates.items() if not candidate["wrong"]
    }
    calls[PROBE] = lambda: team.ask(prober.name, "probe", seconds=turns.probe_seconds)
    results = take_rounds(calls, turns.rounds, turns.seed)
    peaks = [taken["fma_gflops"] for taken in results.pop(PROBE, [])]
    return results, peaks


def statistics(turns: Sequence[Row]) -> dict[str, Any]:
    """Times of a candidate over the rounds, ``us`` and, for the first calls of the turns, ``first_us``."""
    return {
        "us": Timing(tuple(turn["median_us"] for turn in turns)).to_dict(),
        "first_us": Timing(tuple(turn["first_us"] for turn in turns)).to_dict(),
    }
