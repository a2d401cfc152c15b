"""Dense 4-bit and 8-bit weights by ggml, the library of llama.cpp: are its results right, and how fast is it?

``python benchmarks/ggml_q4.py [--threads N] [--shapes NAME] [--sparsity S]`` checks every product against its own
dequantized weights in float64, then times it beside sparsecore in turns, one process each, and prints the table. The
peer is also in ``sparsecore kernels bench --peers ggml``, once Python finds it.

ggml comes in the sources of the PyPI package llama-cpp-python, which are compiled for the CPU at hand; this takes a
half an hour on one core, a C++ compiler and CMake. Only its shared libraries are used, none of its Python, so it stays
in a folder of its own without what it depends on::

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" pip install --no-deps --target ggml llama-cpp-python
    export PYTHONPATH=$PWD/ggml
"""

from __future__ import annotations

import argparse

import numpy as np

from sparsecore.bench.kernels import tables
from sparsecore.bench.kernels.layers import Layer, select
from sparsecore.bench.kernels.libraries import PEERS
from sparsecore.bench.kernels.run import DEFAULT_MASK, Plan, fit_mask, measure
from sparsecore.bench.kernels.weights import make_problem
from sparsecore.errors import UnsupportedError


def check(layer: Layer, sparsity: float, threads: int) -> list[str]:
    """Compare every product of a layer with float64; a line for each."""
    from sparsecore.bench.kernels.libraries import ggml  # loads the library

    ggml.prepare(threads)
    problem = make_problem(layer, sparsity, DEFAULT_MASK)
    lines = []
    for name, build in ggml.candidates(problem).items():
        try:
            found = build().output()
        except UnsupportedError as error:
            lines.append(f"{layer.name} {name}: {error}")
            continue
        exact, bound = ggml.exact_output(problem, name.removesuffix(" packed"))
        share = float((np.abs(found - exact) / bound).max())
        lines.append(f"{layer.name} {name}: {'right' if share <= 1 else 'WRONG'}, at most {share:.2f} of the bound")
    return lines


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description="ggml's quantized products, checked and timed beside sparsecore.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default="llama", help="as in sparsecore kernels bench; linear layers")
    parser.add_argument("--sparsity", type=float, default=0.9, help="zeros, which ggml computes like other values")
    arguments = parser.parse_args()
    peer = PEERS["ggml"]
    if peer.versions() is None:
        parser.exit(2, "llama-cpp-python is not found; the head of this file says how to get it\n")
    layers = [layer for layer in select(arguments.shapes) if not layer.kernel]
    for layer in layers:
        print(*check(layer, arguments.sparsity, arguments.threads), sep="\n", flush=True)
    layers, sparsities = fit_mask(DEFAULT_MASK, layers, (arguments.sparsity,))
    report = measure(Plan(layers, sparsities, arguments.threads, peers=(peer,)))
    print(tables.markdown(report))


if __name__ == "__main__":
    main()
