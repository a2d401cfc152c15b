"""ONNX Runtime in a worker: threads, and sessions with bound input and output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

_OPTIONS = onnxruntime.SessionOptions()


def prepare(threads: int) -> None:
    """Set the number of threads of all sessions to come.

    Their threads spin after a call, and those of one session would do so beside the next one that runs. So sessions
    share one pool; where Python cannot ask for that, in older releases, spinning ends with the call.
    """
    _OPTIONS.log_severity_level = 3
    if hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _OPTIONS.use_per_session_threads = False
    else:
        _OPTIONS.intra_op_num_threads = threads
        _OPTIONS.inter_op_num_threads = 1
        _OPTIONS.add_session_config_entry("session.force_spinning_stop", "1")


def bind(model: bytes | str, inputs: Mapping[str, NDArray[Any]], output: NDArray[Any]) -> Callable[[], object]:
    """Build a session that reads and writes arrays in place.

    Args:
        model: An ONNX model, or its path.
        inputs: Its inputs by name.
        output: Where its output ``y`` goes.

    Returns:
        A call that runs the model once.
    """
    session = onnxruntime.InferenceSession(model, _OPTIONS, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(output))

    def call(keep: object = (inputs, output)) -> None:  # the binding knows addresses only
        session.run_with_iobinding(binding)

    return call
