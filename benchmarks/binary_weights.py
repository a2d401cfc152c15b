"""Linear layers with binary and ternary weights beside PyTorch's dense float32 ones.

    python benchmarks/binary_weights.py --threads 1 --size 4096x4096 --size 1024x1024 --rows 1 --rows 16

All weights are float32 numbers for PyTorch; a third of the ternary ones is zero. Layers take turns in one interleaved
run; times are lower quartiles, which other programs on the machine disturb least, and the spread is the quartiles'
distance over the median. G/s counts weights times rows of activations, zeros included: one addition stands for four.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn

from sparsecore.bench.timing import Timing, interleave
from sparsecore.nn import BinaryLinear, TernaryLinear

HEADINGS = ("N x K", "rows", "layer", "us", "spread", "G/s", "of dense", "bits per weight")
ZEROS = 1 / 3


def dense_layer(N: int, K: int, zeros: float) -> nn.Linear:
    """Weights -0.5, 0 and 0.5 at random."""
    layer = nn.Linear(K, N).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(N, K, generator=generator) >= zeros
    layer.weight.copy_(torch.where(torch.rand(N, K, generator=generator) < 0.5, -0.5, 0.5) * kept)
    return layer


def measure(N: int, K: int, rows: int, seconds: float) -> Iterator[tuple[str, Timing, float]]:
    """Yield layer, time and bits per weight."""
    dense = dense_layer(N, K, 0.0)
    layers: dict[str, nn.Module] = {
        "dense": dense,
        "binary": BinaryLinear.from_dense(dense),
        "ternary": TernaryLinear.from_dense(dense_layer(N, K, ZEROS)),
    }
    x = torch.randn(rows, K)
    timings = interleave({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, min_time_s=seconds)
    for name, layer in layers.items():
        tensors = [dense.weight] if layer is dense else list(layer.buffers())
        yield name, timings[name], 8 * sum(tensor.nbytes for tensor in tensors) / (N * K)


def size(text: str) -> tuple[int, int]:
    N, K = text.split("x")
    return int(N), int(K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=size, action="append", help="NxK, repeatable")
    parser.add_argument("--rows", type=int, action="append", help="rows of activations, repeatable")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size and number of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("|".join(("", *HEADINGS, "")))
    print("|" + "---|" * len(HEADINGS))
    with torch.inference_mode():
        for N, K in arguments.size or [(1024, 1024), (4096, 4096), (4096, 11008)]:
            for rows in arguments.rows or [1, 4, 16, 64]:
                results = list(measure(N, K, rows, arguments.seconds))
                dense_us = results[0][1].q25_us
                for name, timing, bits in results:
                    us = timing.q25_us
                    rate, ratio = N * K * rows / us / 1e3, dense_us / us
                    print(f"|{N}x{K}|{rows}|{name}|{us:.0f}|{timing.spread:.0%}|{rate:.0f}|{ratio:.2f}x|{bits:.2f}|")


if __name__ == "__main__":
    main()
