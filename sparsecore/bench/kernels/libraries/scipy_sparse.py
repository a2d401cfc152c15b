"""SciPy: its CSR product, which runs on one thread whatever it is told."""

from __future__ import annotations

import scipy.sparse

from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import Builders, Candidate


def prepare(threads: int) -> None:
    """Nothing can be set."""


def candidates(problem: Problem) -> Builders:
    """CSR, where the layer is one matrix product."""
    return {"csr": lambda: _csr(problem)} if problem.is_product else {}


def _csr(problem: Problem) -> Candidate:
    weight = scipy.sparse.csr_array(problem.matrix)
    x = problem.columns()
    if problem.num_columns == 1:
        x = x[:, 0].copy()  # a vector takes a shorter way

    def call() -> object:
        return weight @ x

    return Candidate(
        call,
        lambda: problem.from_columns(weight @ x) + problem.per_output(problem.bias),
        sparse=True,
        note="x [K, P], y [N, P]; no bias; one thread",
    )
