"""OpenVINO's CPU plugin in a worker: threads, and requests with shared input and output memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import openvino
from numpy.typing import NDArray

_CORE = openvino.Core()
_SETTINGS: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # who starts the benchmark decides on CPUs
}


def prepare(threads: int) -> None:
    """Set the number of threads of all models to come."""
    _SETTINGS["INFERENCE_NUM_THREADS"] = threads


def bind(model: Any, inputs: Sequence[NDArray[Any]], output: NDArray[Any]) -> Callable[[], object]:
    """Compile a model that reads and writes arrays in place.

    Args:
        model: An ``openvino.Model``, or the path of a file that OpenVINO reads.
        inputs: In the order of its inputs.
        output: Where its only output goes.

    Returns:
        A call that runs the model once.
    """
    request = _CORE.compile_model(model, "CPU", _SETTINGS).create_infer_request()
    for i, array in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(output, shared_memory=True))

    def call(keep: object = (inputs, output)) -> None:
        # infer() does the same and then wraps the outputs, which takes Python longer than a small layer.
        request.start_async()
        request.wait()

    return call
