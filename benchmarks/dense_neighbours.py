"""Pooling and scale_shift against PyTorch in both memory formats, on layers of ResNet-50.

    MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864 \\
        python benchmarks/dense_neighbours.py --seconds 2

The variables make glibc keep its memory: a fresh page can cost more than computing what is written to it.

Ours reads and writes NCHW; PyTorch is given its input in the format that the column names. All three take turns in one
interleaved run; the best time of each counts, in microseconds. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecore import ops
from sparsecore.bench.timing import interleave

Call = Callable[[Tensor], Tensor]


def cases() -> list[tuple[str, tuple[int, ...], Call, Call]]:
    """Name, shape of x, ours, and PyTorch's for x in any memory format."""
    scale, shift = torch.rand(256) + 0.5, torch.randn(256)
    wide_scale, wide_shift, gate = scale.view(-1, 1, 1), shift.view(-1, 1, 1), torch.rand(1, 256)
    return [
        ("max 3x3 s2", (64, 112, 112), lambda x: ops.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        ("max 2x2 s2", (64, 112, 112), lambda x: ops.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2)),
        ("max 3x3 s1", (64, 56, 56), lambda x: ops.max_pool2d(x, 3, 1, 1), lambda x: F.max_pool2d(x, 3, 1, 1)),
        ("average 2x2 s2", (64, 112, 112), lambda x: ops.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)),
        ("average 3x3 s1", (64, 56, 56), lambda x: ops.avg_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1)),
        ("global average", (2048, 7, 7), ops.global_avg_pool2d, lambda x: F.adaptive_avg_pool2d(x, 1)),
        (
            "scale + shift + relu",
            (256, 56, 56),
            lambda x: ops.scale_shift(x, scale, shift, activation="relu"),
            lambda x: torch.addcmul(wide_shift, x, wide_scale).relu_(),
        ),
        ("relu", (256, 56, 56), lambda x: ops.scale_shift(x, activation="relu"), torch.relu),
        ("silu", (256, 56, 56), lambda x: ops.scale_shift(x, activation="silu"), F.silu),
        ("gate", (256, 56, 56), lambda x: ops.scale_shift(x, gate), lambda x: x * gate[..., None, None]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each operation")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, us")
    print("| operation | x | ours | PyTorch NCHW | PyTorch channels last |\n|---|---|---|---|---|")
    for name, shape, ours, theirs in cases():
        x = torch.randn(1, *shape)
        last = x.to(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda x=x, f=ours: f(x),
            "NCHW": lambda x=x, f=theirs: f(x),
            "channels last": lambda x=last, f=theirs: f(x),
        }
        with torch.inference_mode():
            timings = interleave(calls, min_time_s=seconds, max_rounds=100_000)
        best = " | ".join(f"{min(timing.samples_us):.0f}" for timing in timings.values())
        print(f"| {name} | {'x'.join(map(str, shape))} | {best} |", flush=True)


if __name__ == "__main__":
    main()
