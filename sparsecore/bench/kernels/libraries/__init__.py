"""One module per library. Each has ``prepare(threads)`` and ``candidates(problem)``; nothing here imports them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Library:
    """A library that computes layers.

    Attributes:
        name: In reports and after ``--peers``.
        module: What its worker imports: ``prepare(threads)`` sets the library up, ``candidates(problem)`` returns a
            dict from the name of a candidate to a function that builds it, and ours has ``fma_gflops(threads,
            seconds)`` too.
        distributions: What pip installs, all needed.
        install: How to get it.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str = 'pip install "sparsecore[peers]"'

    def versions(self) -> dict[str, str] | None:
        """Version of every distribution, None if one is missing."""
        try:
            return {name: version(name) for name in self.distributions}
        except PackageNotFoundError:
            return None


def _library(name: str, module: str, *distributions: str, **options: str) -> Library:
    return Library(name, f"{__name__}.{module}", distributions, **options)


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
