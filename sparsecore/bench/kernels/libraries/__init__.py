"""One module per library. Each has ``prepare(threads)`` and ``candidates(problem)``; nothing here imports them."""

from __future__ import annotations

from sparsecore.bench.peers.library import INSTALL_PEERS, Library


def _library(name: str, module: str, *distributions: str, install: str = INSTALL_PEERS) -> Library:
    return Library(name, f"{__name__}.{module}", distributions, install=install)


OURS = _library("sparsecore", "ours", "sparsecore")
PEERS = {
    library.name: library
    for library in (
        _library("torch", "pytorch", "torch"),
        _library("onnxruntime", "onnx_runtime", "onnxruntime", "onnx"),
        _library("openvino", "open_vino", "openvino"),
        _library("mkl", "intel_mkl", "mkl"),
        _library("scipy", "scipy_sparse", "scipy"),
        _library("ggml", "ggml", "llama-cpp-python", install="see benchmarks/ggml_q4.py, it is compiled for this CPU"),
    )
}
