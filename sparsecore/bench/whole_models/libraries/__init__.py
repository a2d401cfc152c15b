"""One module per library. Each has ``prepare(threads)`` and ``candidates(problem)``; nothing here imports them."""

from __future__ import annotations

from sparsecore.bench.peers.library import Library

PROBLEM = "sparsecore.bench.whole_models.problem:ModelProblem"
# Measuring every layer of a large model on one thread, or compiling C++, takes minutes.
LOAD_TIMEOUT_S = 1800.0


def _library(name: str, module: str, *distributions: str) -> Library:
    return Library(name, f"{__name__}.{module}", distributions, PROBLEM, load_timeout_s=LOAD_TIMEOUT_S)


OURS = _library("sparsecore", "ours", "sparsecore")
EAGER = _library("PyTorch eager", "eager", "torch")
TORCH_COMPILE = _library("torch.compile", "inductor", "torch")
# Those that run the exported model.
ONNX_PEERS = (
    _library("ONNX Runtime", "onnx_runtime", "onnxruntime", "onnx"),
    _library("OpenVINO", "open_vino", "openvino"),
)
PEERS = (EAGER, *ONNX_PEERS)
