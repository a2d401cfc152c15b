"""PyTorch: dense eager in both memory formats, and its CSR product."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import Builders, Candidate
from sparsecore.bench.peers.pytorch import numpy_of, prepare

__all__ = ["candidates", "dense_layer", "prepare"]


def candidates(problem: Problem) -> Builders:
    """What PyTorch offers. torch.ao's dynamic int8 is deprecated and left out."""
    builders: dict[str, Callable[[], Candidate]] = {"dense": partial(_dense, problem)}
    if problem.is_conv:
        builders["dense nhwc"] = partial(_channels_last, problem)
    if problem.is_product:
        builders["csr"] = partial(_csr, problem)
    return builders


def dense_layer(problem: Problem) -> nn.Linear | nn.Conv2d:
    """The layer as PyTorch's own module."""
    N, C = problem.weight.shape[:2]
    layer: nn.Linear | nn.Conv2d
    if problem.is_conv:
        kernel = problem.weight.shape[2:]
        layer = nn.Conv2d(C, N, kernel, problem.stride, problem.padding, device="meta")
    else:
        layer = nn.Linear(C, N, device="meta")
    layer.weight = nn.Parameter(torch.from_numpy(problem.weight), requires_grad=False)
    layer.bias = nn.Parameter(torch.from_numpy(problem.bias), requires_grad=False)
    return layer.eval()


def _dense(problem: Problem) -> Candidate:
    call = partial(dense_layer(problem), torch.from_numpy(problem.x))
    return Candidate(call, lambda: numpy_of(call()), note="NCHW" if problem.is_conv else "x [M, K]")


def _channels_last(problem: Problem) -> Candidate:
    layer = dense_layer(problem).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    call = partial(layer, torch.from_numpy(problem.x).contiguous(memory_format=torch.channels_last))
    return Candidate(call, lambda: numpy_of(call()), note="x and y channels last")


def _csr(problem: Problem) -> Candidate:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
        weight = torch.from_numpy(problem.matrix).to_sparse_csr()
    call = partial(torch.sparse.mm, weight, torch.from_numpy(problem.columns()))
    return Candidate(
        call,
        lambda: problem.from_columns(numpy_of(call())) + problem.per_output(problem.bias),
        sparse=True,
        note="x [K, P], y [N, P]; no bias",
    )
