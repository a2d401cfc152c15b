"""ONNX Runtime: float32, int8 from uint8 to uint8, and int8 with dynamic quantization. Input and output are bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sparsecore.bench.kernels.libraries.quantized import UInt8Scale, quantize_bias, quantize_weight
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import INT8, Builders, Candidate, call_into
from sparsecore.bench.peers.onnx_runtime import bind, prepare
from sparsecore.bench.peers.vnni import weight_note

__all__ = ["candidates", "prepare"]

OPSET, IR_VERSION = 17, 8  # old enough for every release since 2022
CONTRIB = "com.microsoft"
Arrays = Mapping[str, NDArray[Any]]


def candidates(problem: Problem) -> Builders:
    """What ONNX Runtime offers."""
    builders: dict[str, Callable[[], Candidate]] = {
        "dense": partial(_dense, problem),
        "int8": partial(_static, problem),
    }
    if not problem.is_conv:
        builders["int8 dynamic"] = partial(_dynamic, problem)
    return builders


def _dense(problem: Problem) -> Candidate:
    node = _conv_node(problem, "Conv", "xwb") if problem.is_conv else _node("Gemm", "xwb", transB=1)
    y = np.empty(problem.output_shape, np.float32)
    call = _bind([node], problem.x, y, {"w": problem.weight, "b": problem.bias})
    return Candidate(call, lambda: call_into(y, call), note="NCHW" if problem.is_conv else "x [M, K]")


def _static(problem: Problem) -> Candidate:
    """As inside an int8 network: activations come and go as uint8, with scales known beforehand."""
    x_scale = UInt8Scale.of(problem.x)
    weight, scales = quantize_weight(problem)
    y_scale = UInt8Scale.of(_float_output(problem))
    constants = {
        "xs": np.array(x_scale.scale),
        "xz": np.array(x_scale.zero_point),
        "w": weight,
        "ws": scales,
        "wz": np.zeros(len(scales), np.int8),
        "ys": np.array(y_scale.scale),
        "yz": np.array(y_scale.zero_point),
        "b": quantize_bias(problem, x_scale.scale * scales),
    }
    if problem.is_conv:
        node = _conv_node(problem, "QLinearConv", ("x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"))
    else:
        constants["w"] = np.ascontiguousarray(weight.T)
        node = _node("QGemm", ("x", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"), domain=CONTRIB)
    y = np.empty(problem.output_shape, np.uint8)
    call = _bind([node], x_scale.quantize(problem.x), y, constants)
    return Candidate(
        call,
        lambda: y_scale.dequantize(call_into(y, call)),
        dtype=INT8,
        note=f"x and y uint8, {weight_note()}",
    )


def _dynamic(problem: Problem) -> Candidate:
    """The pattern that ONNX Runtime fuses into one DynamicQuantizeMatMul."""
    weight, scales = quantize_weight(problem)
    constants = {
        "w": np.ascontiguousarray(weight.T),
        "ws": scales,
        "wz": np.zeros(len(scales), np.int8),
        "b": problem.bias,
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"]),
        _node("MatMulInteger", ("q", "w", "xz", "wz"), "sums"),
        _node("Cast", ("sums",), "real", to=TensorProto.FLOAT),
        _node("Mul", ("xs", "ws"), "scales"),
        _node("Mul", ("real", "scales"), "product"),
        _node("Add", ("product", "b")),
    ]
    y = np.empty(problem.output_shape, np.float32)
    call = _bind(nodes, problem.x, y, constants)
    return Candidate(
        call,
        lambda: call_into(y, call),
        dtype=INT8,
        note=f"x and y float32, quantizing x is timed, {weight_note()}",
    )


def _float_output(problem: Problem) -> NDArray[Any]:
    return _dense(problem).output()


def _node(op: str, inputs: Sequence[str], output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], **attributes)


def _conv_node(problem: Problem, op: str, inputs: Sequence[str]) -> NodeProto:
    return _node(
        op,
        inputs,
        kernel_shape=list(problem.weight.shape[2:]),
        strides=[problem.stride] * 2,
        pads=[problem.padding] * 4,
    )


def _bind(nodes: Sequence[NodeProto], x: NDArray[Any], y: NDArray[Any], constants: Arrays) -> Callable[[], object]:
    """Build a session from x to y, which it reads and writes in place."""
    graph = helper.make_graph(
        list(nodes),
        "layer",
        [_value("x", x)],
        [_value("y", y)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bind(model.SerializeToString(), {"x": x}, y)


def _value(name: str, array: NDArray[Any]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
