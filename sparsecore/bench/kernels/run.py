"""The whole run: layers, sparsities, and one process per library."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecore.bench import probes
from sparsecore.bench.kernels.compare import conclusions
from sparsecore.bench.kernels.exact import check_output, output_bounds
from sparsecore.bench.kernels.layers import Layer
from sparsecore.bench.kernels.libraries import OURS, PEERS
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.kernels.weights import is_for, make_problem, own_sparsity
from sparsecore.bench.peers.contest import Key, Row, Turns, load_candidates, statistics, time_candidates
from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.team import Team
from sparsecore.errors import MissingExtraError

SCHEMA = 1
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
DEFAULT_MASK = "magnitude"
TURN_SECONDS = 0.02
PROBE_SECONDS = 0.005
MIN_ROUNDS = 7

# progress(done, total, cell): after every layer; None before the first.
Progress = Callable[[int, int, Row | None], None]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        layers: Which layers; the mask must fit them.
        sparsities: Shares of zeros.
        threads: Threads of every library.
        mask: A name of ``weights.MASKS``.
        peers: Who competes with sparsecore.
        seconds: Time of the turns of each candidate of a layer together, beside a first call in each; there are
            `MIN_ROUNDS` rounds at least.
        seed: Of weights and orders.
    """

    layers: Sequence[Layer]
    sparsities: Sequence[float] = SPARSITIES
    threads: int = 1
    mask: str = DEFAULT_MASK
    peers: Sequence[Library] = ()
    seconds: float = MIN_ROUNDS * TURN_SECONDS
    seed: int = 0

    @property
    def rounds(self) -> int:
        return max(MIN_ROUNDS, round(self.seconds / TURN_SECONDS))


def find_peers(names: str) -> tuple[list[Library], list[str]]:
    """Read ``--peers``.

    Args:
        names: ``"auto"`` (all that are installed), ``"none"``, or names with commas between them.

    Returns:
        The libraries, and a line for each that ``"auto"`` did not find.

    Raises:
        ValueError: There is no such peer.
        MissingExtraError: A peer that was named is not installed.
    """
    if names == "none":
        return [], []
    wanted = list(PEERS) if names == "auto" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in PEERS]:
        raise ValueError(f"expected auto, none, or some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    peers = [PEERS[name] for name in dict.fromkeys(wanted)]
    missing = [peer for peer in peers if peer.versions() is None]
    lines = [f"{peer.name} is not installed: {peer.install}" for peer in missing]
    if lines and names != "auto":
        raise MissingExtraError("; ".join(lines))
    return [peer for peer in peers if peer not in missing], lines


def fit_mask(mask: str, layers: Sequence[Layer], asked: Sequence[float] = ()) -> tuple[list[Layer], tuple[float, ...]]:
    """Leave out layers that a mask does not fit, and choose the shares of zeros.

    Args:
        mask: A name of ``weights.MASKS``.
        layers: Which layers are wanted.
        asked: Shares of zeros that are wanted; none for the usual ones, or the only one of the mask.

    Returns:
        The layers that are left, and the shares of zeros, each once.

    Raises:
        ValueError: The mask has another share of zeros by itself, or fits none of the layers.
    """
    own = own_sparsity(mask)
    if own is not None and any(not math.isclose(share, own) for share in asked):
        raise ValueError(f"mask {mask} has {own:.0%} zeros by itself; leave out the sparsity")
    fitting = [layer for layer in layers if is_for(layer, mask)]
    if not fitting:
        raise ValueError(f"mask {mask} fits none of these layers: K must be a multiple of {mask.partition(':')[2]}")
    usual = SPARSITIES if own is None else (own,)
    return fitting, tuple(dict.fromkeys(asked or usual))


def measure(plan: Plan, progress: Progress = lambda done, total, cell: None) -> dict[str, Any]:
    """Measure every layer at every sparsity, all libraries in turns.

    Args:
        plan: What to measure.
        progress: Called after every layer.

    Returns:
        The report, ready for JSON: ``machine``, ``versions`` of the peers, ``mask``, ``rounds``, ``cells``, one
        for each layer and sparsity, and what ``compare.conclusions`` draws from them. A cell has the layer, the
        ``candidates`` with their times and errors, the FMA peak of its rounds, and ``failures``, the lines that say
        what went wrong. ``complete`` is False where an interrupt ended it early.

    Raises:
        KeyboardInterrupt: before the first layer was done.
    """
    libraries = (OURS, *plan.peers)
    total = len(plan.layers) * len(plan.sparsities)
    cells: list[dict[str, Any]] = []
    progress(0, total, None)
    with tempfile.TemporaryDirectory(prefix="sparsecore-") as folder, Team(plan.threads, Path(folder)) as team:
        try:
            for sparsity in plan.sparsities:
                for layer in plan.layers:
                    cells.append(_measure_cell(plan, layer, sparsity, libraries, team))
                    progress(len(cells), total, cells[-1])
        except KeyboardInterrupt:
            if not cells:
                raise
    return {
        "schema": SCHEMA,
        "machine": probes.machine() | {"threads": plan.threads},
        "versions": {library.name: library.versions() for library in libraries},
        "mask": plan.mask,
        "rounds": plan.rounds,
        "complete": len(cells) == total,
        "cells": cells,
        **conclusions(cells),
    }


def _measure_cell(
    plan: Plan, layer: Layer, sparsity: float, libraries: Sequence[Library], team: Team
) -> dict[str, Any]:
    problem = make_problem(layer, sparsity, plan.mask, plan.seed)
    candidates = _load(problem, libraries, team)
    turns = Turns(plan.rounds, TURN_SECONDS, PROBE_SECONDS, seed=plan.seed)
    results, peaks = time_candidates(candidates, team, OURS, turns)
    nnz = int(np.count_nonzero(problem.weight))
    for key, taken in results.items():
        share = _share_of_peak(taken, peaks, 2.0 * nnz * problem.num_columns)
        candidates[key] |= statistics(taken) | {"share_of_peak": share}
    return {
        "layer": layer.describe(),
        "sparsity": sparsity,
        "nnz": nnz,
        "fma_gflops": median(peaks) if peaks else None,
        "candidates": list(candidates.values()),
        "failures": team.take_failures(),
    }


def _load(problem: Problem, libraries: Sequence[Library], team: Team) -> dict[Key, dict[str, Any]]:
    """Let every library build its candidates, and check their outputs."""
    exact, bounds = output_bounds(problem)
    path = team.folder / "problem.npz"
    problem.save(path)

    def check(output: NDArray[Any], dtype: str) -> tuple[float, bool]:
        return check_output(output, exact, bounds.get(dtype, math.inf))

    return load_candidates(path, libraries, team, check)


def _share_of_peak(turns: Sequence[Row], peaks: Sequence[float], operations: float) -> float | None:
    """Median over the rounds of the share of each round's FMA peak."""
    shares = [
        operations / turn["median_us"] / 1e3 / peak
        for turn, peak in zip(turns, peaks, strict=False)
        if turn["median_us"]
    ]
    return median(shares) if shares else None
