"""Packing weights: ResNet-50's float32 ones step by step, dense -> CSR -> panels and back, and int8 ones of one layer.

    python benchmarks/packing.py --threads 1 --threads 2 --sparsity 0.9

Every float32 step runs over all 54 layers (53 convolutions and the head, 25.5 million weights). MB/s count the dense
float32 weight, 102 MB, whatever the step reads. "Layers" is PanelConv2d.from_dense() and PanelLinear.from_dense(),
which is the first two steps and making the modules.

int8 is PackedInt8Weight.pack() from a quantized weight, for two sizes: where the time is linear in N * K, the time
per weight is the same. Bytes per weight are those of the larger one, per entry of the dense weight.

Steps and formats take turns in one interleaved run; times are medians. Zeros are spread at random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from sparsecore.bench.models import create
from sparsecore.bench.timing import Timing, interleave
from sparsecore.formats import CsrWeight, Int8Weight, PackedInt8Weight
from sparsecore.formats.panel import PanelWeight
from sparsecore.nn import PanelConv2d, PanelLinear

Dense = nn.Conv2d | nn.Linear
FLOAT_SPARSITIES = (0.7, 0.9, 0.95)
INT8_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
INT8_FORMATS = ("int8", "bitmap", "lookup")
INT8_SIZES = (2048, 4096)  # N and K
FLOAT_HEADINGS = ("zeros", "step", "ms", "spread", "MB/s", "ns per non-zero", "bytes per non-zero")
INT8_HEADINGS = (
    "zeros",
    "format",
    *(f"{size}x{size}: {figure}" for size in INT8_SIZES for figure in ("ms", "spread", "ns per weight")),
    "bytes per weight",
)


def sparse_layers(sparsity: float) -> list[Dense]:
    """The convolutions and the head of ResNet-50, pruned at random."""
    generator = torch.Generator().manual_seed(0)
    layers = [module for module in create("resnet50").modules() if isinstance(module, Dense)]
    for layer in layers:
        weight = layer.weight.detach()
        weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    return layers


def panel_layer(layer: Dense) -> PanelConv2d | PanelLinear:
    return PanelConv2d.from_dense(layer) if isinstance(layer, nn.Conv2d) else PanelLinear.from_dense(layer)


def pack(csr: Sequence[CsrWeight], panel_cols: Sequence[int]) -> list[PanelWeight]:
    return [PanelWeight.pack(weight, cols) for weight, cols in zip(csr, panel_cols, strict=True)]


def measure_float(sparsity: float, seconds: float) -> Iterator[tuple[str, Timing, int, int, int]]:
    """Yield step, time, bytes of the dense weights, bytes of what the step makes, and non-zeros."""
    layers = sparse_layers(sparsity)
    dense = [layer.weight.detach() for layer in layers]
    masks = [weight != 0 for weight in dense]
    csr = [CsrWeight.from_dense(weight) for weight in dense]
    panel_cols = [panel_layer(layer).panel_cols for layer in layers]
    panels = pack(csr, panel_cols)
    steps: dict[str, Callable[[], object]] = {
        "dense -> CSR": lambda: [CsrWeight.from_dense(weight) for weight in dense],
        "dense + mask -> CSR": lambda: [
            CsrWeight.from_dense(weight, mask) for weight, mask in zip(dense, masks, strict=True)
        ],
        "CSR -> panels": lambda: pack(csr, panel_cols),
        "layers": lambda: [panel_layer(layer) for layer in layers],
        "panels -> CSR": lambda: [weight.unpack() for weight in panels],
        "CSR -> dense": lambda: [weight.to_dense() for weight in csr],
    }
    dense_bytes, nnz = sum(weight.nbytes for weight in dense), sum(weight.nnz for weight in csr)
    csr_bytes, panel_bytes = (sum(weight.nbytes for weight in packed) for packed in (csr, panels))
    made = dict.fromkeys(steps, csr_bytes) | {
        "CSR -> panels": panel_bytes,
        "layers": panel_bytes,
        "CSR -> dense": dense_bytes,
    }
    for step, timing in interleave(steps, min_time_s=seconds).items():
        yield step, timing, dense_bytes, made[step], nnz


def float_rows(sparsity: float, seconds: float) -> Iterator[list[str]]:
    for step, timing, dense_bytes, made_bytes, nnz in measure_float(sparsity, seconds):
        yield [
            f"{sparsity:.0%}",
            step,
            f"{timing.median_us / 1e3:.1f}",
            f"{timing.spread:.0%}",
            f"{dense_bytes / timing.median_us:.0f}",
            f"{timing.median_us * 1e3 / nnz:.1f}",
            f"{made_bytes / nnz:.2f}",
        ]


def int8_weight(size: int, sparsity: float) -> Int8Weight:
    """A square weight of normal numbers, pruned at random."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator)
    return Int8Weight.from_dense(weight * (torch.rand(weight.shape, generator=generator) >= sparsity))


def int8_rows(sparsity: float, seconds: float) -> Iterator[list[str]]:
    weights = {size: int8_weight(size, sparsity) for size in INT8_SIZES}
    packs = {
        f"{format} {size}": partial(PackedInt8Weight.pack, weight, format)
        for format in INT8_FORMATS
        for size, weight in weights.items()
    }
    timings = interleave(packs, min_time_s=seconds)
    largest = INT8_SIZES[-1]
    for format in INT8_FORMATS:
        figures = []
        for size in INT8_SIZES:
            timing = timings[f"{format} {size}"]
            per_weight_ns = timing.median_us * 1e3 / size**2
            figures += [f"{timing.median_us / 1e3:.1f}", f"{timing.spread:.0%}", f"{per_weight_ns:.2f}"]
        packed_bytes = packs[f"{format} {largest}"]().nbytes
        yield [f"{sparsity:.0%}", format, *figures, f"{packed_bytes / largest**2:.3f}"]


def print_table(title: str, headings: Sequence[str], rows: Iterator[list[str]]) -> None:
    print(f"{title}, threads: {torch.get_num_threads()}\n")
    for row in (headings, ["---"] * 2 + ["---:"] * (len(headings) - 2)):
        print("|", " | ".join(row), "|")
    for row in rows:
        print("|", " | ".join(row), "|", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sparsity", type=float, action="append", help="share of zeros; default 0.7 to 0.95, for int8 0.5 to 0.95"
    )
    parser.add_argument("--threads", type=int, action="append", help="several times for several runs; default 1 and 2")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per sparsity")
    parser.add_argument("--only", choices=("float32", "int8"), help="one of the two tables")
    arguments = parser.parse_args()
    tables = {
        "float32": ("ResNet-50, float32", FLOAT_HEADINGS, FLOAT_SPARSITIES, float_rows),
        "int8": ("One layer, int8", INT8_HEADINGS, INT8_SPARSITIES, int8_rows),
    }
    print(f"torch {torch.__version__}\n")
    for threads in arguments.threads or (1, 2):
        torch.set_num_threads(threads)
        for name, (title, headings, usual, rows_of) in tables.items():
            if arguments.only in (None, name):
                shares = arguments.sparsity or usual
                rows = (row for share in shares for row in rows_of(share, arguments.seconds))
                print_table(title, headings, rows)


if __name__ == "__main__":
    main()
