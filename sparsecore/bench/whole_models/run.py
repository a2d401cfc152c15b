"""The whole run: batches, threads, shares of zeros, and one process per library."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecore._threads import use_threads
from sparsecore.bench import probes
from sparsecore.bench.models.load import ModelSource, load_model
from sparsecore.bench.peers.candidate import FLOAT32
from sparsecore.bench.peers.contest import Turns, load_candidates, statistics, time_candidates
from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.team import Team
from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.bench.text_table import count_threads
from sparsecore.bench.whole_models.compare import compare
from sparsecore.bench.whole_models.export import export_onnx, quantize_onnx
from sparsecore.bench.whole_models.libraries import ONNX_PEERS, OURS
from sparsecore.bench.whole_models.problem import ModelProblem, first_tensor
from sparsecore.bench.whole_models.pruning import PrunedModel, prune_model, require_pattern, zeros_of
from sparsecore.errors import UnsupportedError
from sparsecore.prune.patterns import parse_pattern

SCHEMA = 1
SPARSITIES = (0.0, 0.7, 0.9)
# A model given with more zeros than this is measured with them.
HAS_ZEROS = 0.3
TURN_SECONDS = 0.2
PROBE_SECONDS = 0.01
TURN_TIMEOUT_S = 600.0
# Relative error of the output that a candidate may have: float32 sums in another order, or by Winograd; int8 without
# training.
TOLERANCE = {FLOAT32: 1e-3}
INT8_TOLERANCE = 0.5


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        source: The model.
        shape: Of its input, with the batch; none is the model's own.
        batches: Samples of the input; none is the shape's first size.
        sparsities: Shares of zeros; none is the pattern's own, or `SPARSITIES`, or what a model with weights has.
        threads: Numbers of threads.
        peers: Who competes with sparsecore, where it is installed.
        max_error: Of our int8 model, see `sparsecore.convert`; None leaves int8 out, the peers' too.
        rounds: Turns of every candidate.
        turn_seconds: Of a turn, after its first call; one more call at least is made.
        seed: Of weights, input and orders.
        pattern: Of the zeros, as in `sparsecore.prune`.
    """

    source: ModelSource
    shape: tuple[int, ...] = ()
    batches: Sequence[int] = ()
    sparsities: Sequence[float] = ()
    threads: Sequence[int] = (1,)
    peers: Sequence[Library] = ()
    max_error: float | None = None
    rounds: int = 7
    turn_seconds: float = TURN_SECONDS
    seed: int = 0
    pattern: str = "unstructured"


def measure(plan: Plan, progress: Progress = silent) -> dict[str, Any]:
    """Measure a model, all libraries in turns.

    Args:
        plan: What to measure.
        progress: Called with the name of the step and the share done.

    Returns:
        The report, ready for JSON: ``machine``, ``model``, ``versions`` of the libraries, lines on the peers that are
        ``missing``, ``cells``, one for each number of threads, batch and share of zeros, and the ``summary`` of each. A
        cell has the ``candidates`` with their times and relative errors, what was ``pruned``, the FMA peak of its
        rounds, and ``failures``, the lines that say what went wrong. ``complete`` is False where an interrupt ended it
        early.

    Raises:
        ModelError: The model's input is not known.
        UnsupportedError: There is nothing to prune.
        FormatError: The pattern fits no layer.
        KeyboardInterrupt: before the first cell was done.
    """
    model, (x,) = load_model(plan.source, shape=plan.shape, seed=plan.seed)
    settings = [
        (threads, batch, sparsity)
        for threads in dict.fromkeys(plan.threads)
        for batch in dict.fromkeys(plan.batches or (len(x),))
        for sparsity in _sparsities(plan, model)
    ]
    if plan.pattern != "unstructured":
        require_pattern(model, x, plan.pattern)  # now, not after the dense model was measured
    libraries = (OURS, *(peer for peer in plan.peers if peer.versions() is not None))
    missing = [f"{peer.name} is not installed: {peer.install}" for peer in plan.peers if peer not in libraries]
    for line in missing:
        progress(line, 1.0)
    cells: list[dict[str, Any]] = []
    try:
        for threads in dict.fromkeys(plan.threads):
            with tempfile.TemporaryDirectory(prefix="sparsecore-") as folder, Team(threads, Path(folder)) as team:
                for _, batch, sparsity in (setting for setting in settings if setting[0] == threads):
                    cells.append(_measure_cell(plan, model, batch, sparsity, libraries, team, progress))
    except KeyboardInterrupt:
        if not cells:
            raise
    return {
        "schema": SCHEMA,
        "machine": probes.machine() | {"threads": list(dict.fromkeys(plan.threads))},
        "versions": {library.name: library.versions() for library in libraries},
        "missing": missing,
        "model": plan.source.name,
        "pattern": plan.pattern,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rounds": plan.rounds,
        "complete": len(cells) == len(settings),
        "cells": cells,
        "summary": [compare(cell).summary() for cell in cells],
    }


def _sparsities(plan: Plan, model: nn.Module) -> list[float | None]:
    if plan.sparsities:
        return list(dict.fromkeys(plan.sparsities))
    if parse_pattern(plan.pattern).sparsity is not None:
        return [None]
    has_own = not plan.source.is_random and zeros_of(model) >= HAS_ZEROS
    return [None] if has_own else [*SPARSITIES]


def _measure_cell(
    plan: Plan,
    model: nn.Module,
    batch: int,
    sparsity: float | None,
    libraries: Sequence[Library],
    team: Team,
    progress: Progress,
) -> dict[str, Any]:
    if sparsity is not None:
        zeros = f"{sparsity:.0%} zeros"
    else:
        zeros = "its own zeros" if plan.pattern == "unstructured" else plan.pattern
    step = f"{plan.source.name}, {count_threads(team.threads)}, batch {batch}, {zeros}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + batch)
        x = plan.source.make_input(model, batch, plan.shape)
    with stage(progress, f"{step}: prune and export"):
        pruned = prune_model(plan.source, model, x, sparsity, plan.seed, plan.pattern)
        problem, exact = _make_problem(plan, pruned, x, team)
    with stage(progress, f"{step}: build"):
        path = team.folder / "problem.json"
        problem.save(path)
        candidates = load_candidates(path, libraries, team, _Check(exact))
    with stage(progress, f"{step}: measure"):
        turns = Turns(plan.rounds, plan.turn_seconds, PROBE_SECONDS, 1, TURN_TIMEOUT_S, plan.seed)
        results, peaks = time_candidates(candidates, team, OURS, turns)
    for key, taken in results.items():
        candidates[key] |= statistics(taken)
    return {
        "batch": batch,
        "threads": team.threads,
        "sparsity": sparsity,
        "zeros": pruned.sparsity,
        "pruned": pruned.what,
        "input": list(x.shape),
        "fma_gflops": median(peaks) if peaks else None,
        "candidates": list(candidates.values()),
        "failures": team.take_failures(),
    }


def _make_problem(plan: Plan, pruned: PrunedModel, x: Tensor, team: Team) -> tuple[ModelProblem, NDArray[np.float64]]:
    """Write the model for all libraries, and compute its output in float64 with dense kernels."""
    exact = _exact_output(pruned.model, x, team.threads)
    state, onnx, onnx_int8 = (team.folder / name for name in ("state.pt", "model.onnx", "int8.onnx"))
    torch.save(pruned.model.state_dict(), state)
    fields: dict[str, Any] = {"model": plan.source.name, "state": str(state), "x": x.numpy()}
    fields |= {"output_shape": exact.shape, "max_error": plan.max_error}
    if any(peer in ONNX_PEERS for peer in plan.peers):
        try:
            export_onnx(pruned.model, x, onnx)
            fields["onnx"] = str(onnx)
            if plan.max_error is not None:
                array = team.folder / "x.npy"
                np.save(array, x.numpy(), allow_pickle=False)
                quantize_onnx(onnx, array, onnx_int8)
                fields["onnx_int8"] = str(onnx_int8)
        except UnsupportedError as error:
            team.failures.append(str(error))
    return ModelProblem(**fields), exact


def _exact_output(model: nn.Module, x: Tensor, threads: int) -> NDArray[np.float64]:
    with use_threads(threads), torch.inference_mode():
        exact = first_tensor(copy.deepcopy(model).double()(x.double() if x.is_floating_point() else x))
    return exact.numpy()


@dataclass(frozen=True)
class _Check:
    """Judges an output by its relative error, ``||y - exact|| / ||exact||``."""

    exact: NDArray[np.float64]

    def __call__(self, output: NDArray[Any], dtype: str) -> tuple[float, bool]:
        if output.shape != self.exact.shape:
            return float("inf"), False
        norm = float(np.linalg.norm(self.exact)) or 1.0
        error = float(np.linalg.norm(output.astype(np.float64) - self.exact)) / norm
        return error, error <= TOLERANCE.get(dtype, INT8_TOLERANCE)  # NaN is not
