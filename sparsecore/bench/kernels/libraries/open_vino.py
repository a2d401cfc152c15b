"""OpenVINO's CPU plugin: float32, and int8 from a FakeQuantize graph. Input and output memory is shared."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from sparsecore.bench.kernels.libraries.quantized import LEVELS, UInt8Scale, quantize_weight
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import INT8, Builders, Candidate, call_into
from sparsecore.bench.peers.open_vino import bind, prepare
from sparsecore.bench.peers.vnni import weight_note

__all__ = ["candidates", "prepare"]


def candidates(problem: Problem) -> Builders:
    """What OpenVINO offers. Its sparse weights decompression does not take float32 and is left out."""
    return {"dense": partial(_dense, problem), "int8": partial(_int8, problem)}


def _dense(problem: Problem) -> Candidate:
    x = _parameter(problem)
    layout = "NCHW" if problem.is_conv else "x [M, K]"
    return _candidate(problem, x, x, ops.constant(problem.weight), note=layout)


def _int8(problem: Problem) -> Candidate:
    x = _parameter(problem)
    limits = [ops.constant(np.float32(limit)) for limit in UInt8Scale.of(problem.x).range]
    quantized = ops.fake_quantize(x, *limits, *limits, LEVELS + 1)
    weight, scales = quantize_weight(problem)
    per_row = scales.reshape(-1, *[1] * (weight.ndim - 1))
    real = ops.multiply(ops.convert(ops.constant(weight), np.float32), ops.constant(per_row))
    note = f"x and y float32, quantizing x is timed, {weight_note()}"
    return _candidate(problem, x, quantized, real, dtype=INT8, note=note)


def _parameter(problem: Problem) -> Any:
    return ops.parameter(problem.x.shape, np.float32)


def _candidate(problem: Problem, parameter: Any, x: Any, weight: Any, **description: str) -> Candidate:
    y = np.empty(problem.output_shape, np.float32)
    bias = ops.constant(problem.per_output(problem.bias))
    model = openvino.Model([ops.add(_product(problem, x, weight), bias)], [parameter], "layer")
    call = bind(model, [problem.x], y)
    return Candidate(call, lambda: call_into(y, call), **description)  # type: ignore[arg-type]


def _product(problem: Problem, x: Any, weight: Any) -> Any:
    if problem.is_conv:
        pads = [problem.padding] * 2
        return ops.convolution(x, weight, [problem.stride] * 2, pads, pads, [1, 1])
    return ops.matmul(x, weight, False, True)
