"""PyTorch eager: both memory formats, with BatchNorm as it is and folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsecore.bench.peers.candidate import FLOAT32, Builders, Candidate
from sparsecore.bench.peers.pytorch import numpy_of, prepare
from sparsecore.bench.whole_models.problem import ModelProblem, first_tensor
from sparsecore.graph import fold_batchnorm

__all__ = ["candidates", "prepare", "torch_candidate"]


def candidates(problem: ModelProblem) -> Builders:
    """Channels last where the input is images, folded where there is BatchNorm."""
    model = problem.build()
    x = torch.from_numpy(problem.x)
    versions: dict[str, Callable[[], nn.Module]] = {"dense": partial(copy.deepcopy, model)}
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        versions["BatchNorm folded"] = partial(fold_batchnorm, model, x)
    formats = {"": torch.contiguous_format}
    if x.dim() == 4:
        formats[", channels last"] = torch.channels_last
    return {
        f"{name}{ending}": partial(_candidate, make, x, memory_format)
        for name, make in versions.items()
        for ending, memory_format in formats.items()
    }


def torch_candidate(
    model: nn.Module | Callable[[Tensor], object], x: Tensor, *, dtype: str = FLOAT32, sparse: bool = False, note: str
) -> Candidate:
    """A model called with a tensor; its first output is looked at."""
    call = partial(model, x)
    return Candidate(call, lambda: numpy_of(first_tensor(call()).float()), dtype=dtype, sparse=sparse, note=note)


def _candidate(make: Callable[[], nn.Module], x: Tensor, memory_format: torch.memory_format) -> Candidate:
    with torch.inference_mode(False), torch.no_grad():
        model = make().to(memory_format=memory_format)  # type: ignore[call-overload]
    return torch_candidate(model, x.contiguous(memory_format=memory_format), note="")
