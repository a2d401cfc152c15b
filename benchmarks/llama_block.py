"""One decoder block of Llama-7B's size pruned by SparseGPT: seconds of calibration and solver, and the memory.

    python benchmarks/llama_block.py --json llama-block.json --markdown llama-block.md

Weights and hidden states are random: neither time nor memory depends on their values. The block is that of
transformers in float32. Calibration is the pass of all tokens through the dense block, in which the Hessian of every
layer is summed up; the solver inverts the Hessians, chooses what goes and adjusts the rest; then the pruned block runs
again, as it does for the inputs of the next one. Memory is the largest resident set of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from publish import add_file_options, publish
from torch import Tensor, nn

from sparsecore.bench.probes import machine
from sparsecore.bench.text_table import Table
from sparsecore.calls import Call
from sparsecore.prune import SparseGPT, prune
from sparsecore.prune.patterns import Pattern

SAMPLE = 2048


@dataclass(frozen=True)
class TimedSparseGPT(SparseGPT):
    """SparseGPT that notes the seconds of its solver by the shape of the weight."""

    seconds: list[tuple[tuple[int, int], float]] = field(default_factory=list)

    def prune_rows(
        self, weight: Tensor, total: Tensor, sparsity: float, pattern: Pattern, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        pruned = super().prune_rows(weight, total, sparsity, pattern, allowed)
        self.seconds.append(((weight.shape[0], weight.shape[1]), time.perf_counter() - start))
        return pruned


def llama_block(hidden: int, intermediate: int, heads: int, num_samples: int) -> tuple[nn.Module, list[Call]]:
    """Return a random block, and its calls on random hidden states."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads)
    config._attn_implementation = "sdpa"
    block = LlamaDecoderLayer(config, 0).eval()
    states = [torch.randn(1, SAMPLE, hidden) for _ in range(num_samples)]
    positions = LlamaRotaryEmbedding(config)(states[0], torch.arange(SAMPLE)[None])
    return block, [Call((state,), {"position_embeddings": positions}) for state in states]


def max_resident_gib() -> float:
    """Largest resident set of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def measure(hidden: int, intermediate: int, heads: int, num_samples: int, sparsity: float) -> dict[str, Any]:
    """Prune a block and return what it took."""
    block, calls = llama_block(hidden, intermediate, heads, num_samples)
    before_gib = max_resident_gib()
    criterion = TimedSparseGPT()
    start = time.perf_counter()
    masks = prune(block, sparsity, criterion=criterion, batches=calls, sequential=False, progress=False)
    pruned = time.perf_counter()
    for call in calls:
        block(*call.args, **call.kwargs)
    solver = sum(seconds for _, seconds in criterion.seconds)
    return {
        "machine": machine(),
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "tokens": num_samples * SAMPLE,
        "parameters": sum(parameter.numel() for parameter in block.parameters()),
        "sparsity": masks.sparsity(),
        "calibration_seconds": pruned - start - solver,
        "solver_seconds": solver,
        "running_again_seconds": time.perf_counter() - pruned,
        "layers": [
            {"name": name, "shape": shape, "solver_seconds": seconds}
            for name, (shape, seconds) in zip(masks, criterion.seconds, strict=True)
        ],
        "before_gib": before_gib,
        "max_resident_gib": max_resident_gib(),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    steps = [
        ["calibration", f"{report['calibration_seconds']:.1f}"],
        ["solver", f"{report['solver_seconds']:.1f}"],
        *(
            [f"solver: {row['name']} {row['shape'][0]} x {row['shape'][1]}", f"{row['solver_seconds']:.1f}"]
            for row in report["layers"]
        ),
        ["running the pruned block again", f"{report['running_again_seconds']:.1f}"],
    ]
    found = report["machine"]
    return "\n".join(
        [
            "# SparseGPT on a block of Llama-7B's size",
            "",
            f"`benchmarks/llama_block.py` on {found['cpu']}, {found['threads']} thread(s), torch {found['torch']}, "
            f"load average {found['load_average']:.1f}. Hidden size {report['hidden']}, intermediate size "
            f"{report['intermediate']}, {report['heads']} heads, {report['parameters'] / 1e6:.0f} million weights in "
            f"float32, {report['tokens']} tokens in samples of {SAMPLE}, {report['sparsity']:.1%} pruned.",
            "",
            Table("", ["step", "seconds"], steps).markdown(),
            "",
            f"Largest resident set: {report['max_resident_gib']:.2f} GiB, of which "
            f"{report['before_gib']:.2f} GiB before pruning: Python, the block and its inputs.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help=f"of {SAMPLE} tokens")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    report = measure(arguments.hidden, arguments.intermediate, arguments.heads, arguments.samples, arguments.sparsity)
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
