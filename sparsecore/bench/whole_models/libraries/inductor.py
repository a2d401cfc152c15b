"""torch.compile with frozen weights; compiling is not timed."""

from __future__ import annotations

from functools import partial

import torch
from torch._inductor import config

from sparsecore.bench.peers.candidate import Builders, Candidate
from sparsecore.bench.peers.pytorch import prepare
from sparsecore.bench.whole_models.libraries.eager import torch_candidate
from sparsecore.bench.whole_models.problem import ModelProblem

__all__ = ["candidates", "prepare"]


def candidates(problem: ModelProblem) -> Builders:
    """The whole model, weights as constants."""
    return {"dense": partial(_compiled, problem)}


def _compiled(problem: ModelProblem) -> Candidate:
    config.freezing = True  # folds BatchNorm and packs weights
    compiled = torch.compile(problem.build())
    candidate = torch_candidate(compiled, torch.from_numpy(problem.x), note="freezing")
    candidate.call()
    return candidate
