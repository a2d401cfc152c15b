"""ONNX Runtime: the exported model, float32 and int8."""

from __future__ import annotations

from functools import partial

import numpy as np

from sparsecore.bench.peers.candidate import FLOAT32, INT8, Builders, Candidate, call_into
from sparsecore.bench.peers.onnx_runtime import bind, prepare
from sparsecore.bench.peers.vnni import weight_note
from sparsecore.bench.whole_models.problem import ModelProblem

__all__ = ["candidates", "prepare"]


def candidates(problem: ModelProblem) -> Builders:
    """Those that there are files of."""
    files = {"dense": (problem.onnx, FLOAT32, ""), "int8": (problem.onnx_int8, INT8, f"static, {weight_note()}")}
    return {name: partial(_candidate, problem, *file) for name, file in files.items() if file[0]}


def _candidate(problem: ModelProblem, path: str, dtype: str, note: str) -> Candidate:
    y = np.empty(problem.output_shape, np.float32)
    call = bind(path, {"x": problem.x}, y)
    return Candidate(call, lambda: call_into(y, call).copy(), dtype=dtype, note=note)
