"""Packing the weights of ResNet-50, step by step: dense -> CSR -> panels, and back.

    python benchmarks/packing.py --threads 2 --sparsity 0.9

Every step runs over all 54 layers (53 convolutions and the head, 25.5 million weights). The steps take turns in one
interleaved run; times are medians. MB/s count the dense float32 weight, 102 MB, whatever the step reads. "Layers" is
PanelConv2d.from_dense() and PanelLinear.from_dense(), which is the first two steps and making the modules. Zeros are
spread at random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from sparsecore.bench.models import resnet50
from sparsecore.bench.timing import Timing, interleave
from sparsecore.formats import CsrWeight
from sparsecore.formats.panel import PanelWeight
from sparsecore.nn import PanelConv2d, PanelLinear

Dense = nn.Conv2d | nn.Linear
HEADINGS = ("zeros", "step", "ms", "spread", "MB/s", "ns per non-zero", "bytes per non-zero")


def sparse_layers(sparsity: float) -> list[Dense]:
    """The convolutions and the head of ResNet-50, pruned at random."""
    generator = torch.Generator().manual_seed(0)
    layers = [module for module in resnet50().modules() if isinstance(module, Dense)]
    for layer in layers:
        weight = layer.weight.detach()
        weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    return layers


def panel_layer(layer: Dense) -> PanelConv2d | PanelLinear:
    return PanelConv2d.from_dense(layer) if isinstance(layer, nn.Conv2d) else PanelLinear.from_dense(layer)


def pack(csr: Sequence[CsrWeight], panel_cols: Sequence[int]) -> list[PanelWeight]:
    return [PanelWeight.pack(weight, cols) for weight, cols in zip(csr, panel_cols, strict=True)]


def measure(sparsity: float, seconds: float) -> Iterator[tuple[str, Timing, int, int, int]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, action="append", help="share of zeros; default 0.7, 0.9 and 0.95")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="time per sparsity")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, threads: {arguments.threads}\n")
    for row in (HEADINGS, ["---"] * 2 + ["---:"] * 5):
        print("|", " | ".join(row), "|")
    for sparsity in arguments.sparsity or (0.7, 0.9, 0.95):
        for step, timing, dense_bytes, made_bytes, nnz in measure(sparsity, arguments.seconds):
            figures = (
                f"{timing.median_us / 1e3:.1f}",
                f"{timing.spread:.0%}",
                f"{dense_bytes / timing.median_us:.0f}",
                f"{timing.median_us * 1e3 / nnz:.1f}",
                f"{made_bytes / nnz:.2f}",
            )
            print("|", " | ".join((f"{sparsity:.0%}", step, *figures)), "|", flush=True)


if __name__ == "__main__":
    main()
