"""sparsecore: the model compiled for this machine, and with int8 layers where they are allowed."""

from __future__ import annotations

from functools import partial

import torch

from sparsecore.bench.peers.candidate import FLOAT32, INT8, Builders, Candidate
from sparsecore.bench.peers.pytorch import prepare
from sparsecore.bench.probes import fma_gflops
from sparsecore.bench.whole_models.fast import make_fast
from sparsecore.bench.whole_models.libraries.eager import torch_candidate
from sparsecore.bench.whole_models.problem import ModelProblem

__all__ = ["candidates", "fma_gflops", "prepare"]

SPARSE = "compiled"


def candidates(problem: ModelProblem) -> Builders:
    """Float32, and within the problem's error int8."""
    builders = {SPARSE: partial(_fast, problem, None, FLOAT32)}
    if problem.max_error is not None:
        builders["int8"] = partial(_fast, problem, problem.max_error, INT8)
    return builders


def _fast(problem: ModelProblem, max_error: float | None, dtype: str) -> Candidate:
    x = torch.from_numpy(problem.x)
    with torch.inference_mode(False), torch.no_grad():
        fast = make_fast(problem.build(), (x,), max_error=max_error)
    note = "" if max_error is None else f"error of at most {max_error:g} allowed"
    return torch_candidate(fast, x, dtype=dtype, sparse=True, note=note)
