"""Every float and int8 format on single layers, against dense PyTorch, SciPy and torch CSR, in interleaved runs.

    python benchmarks/kernels.py --threads 1 --sparsity 0.7 --sparsity 0.9 --out benchmarks/results/NAME

writes NAME.json and NAME.md. Each row is one interleaved run with an FMA probe in it; packing the weight is not timed,
packing and quantizing the activations is. GFLOP/s count the non-zeros only, a multiply-add as two.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.bench import probes
from sparsecore.bench.timing import interleave
from sparsecore.nn import Int8Linear, PanelConv2d, PanelLinear, SparseConv2d, SparseInt8Linear, SparseLinear

PROBE_SECONDS = 0.005
MIN_TIME_S = 0.4


@dataclass(frozen=True)
class Shape:
    """A layer and its input; M rows for linear, an image side for convolutions."""

    kind: str
    N: int
    K: int
    size: int
    kernel: int = 1
    stride: int = 1

    @property
    def name(self) -> str:
        if self.kind == "linear":
            return f"linear {self.N}x{self.K}, {self.size}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"conv {self.kernel}x{self.kernel}{stride} {self.K}->{self.N} @{self.size}"

    @property
    def columns(self) -> int:
        return self.size if self.kind == "linear" else math.ceil(self.size / self.stride) ** 2


def linear(N: int, K: int, M: int) -> Shape:
    return Shape("linear", N, K, M)


def conv(C: int, N: int, size: int, kernel: int = 1, stride: int = 1) -> Shape:
    return Shape("conv", N, C, size, kernel, stride)


# Transformers (BERT, Llama), ResNet-50, MobileNetV2 and EfficientNet, VGG-16; and sizes that are no multiple of 8.
SHAPES = (
    linear(768, 768, 128),
    linear(3072, 768, 128),
    linear(768, 3072, 128),
    linear(1024, 1024, 197),
    linear(4096, 4096, 16),
    linear(4096, 4096, 1),
    linear(11008, 4096, 1),
    linear(1001, 999, 33),
    conv(64, 256, 56),
    conv(128, 512, 28),
    conv(256, 1024, 14),
    conv(512, 2048, 7),
    conv(512, 512, 14),
    conv(1024, 1024, 7),
    conv(96, 24, 56),
    conv(144, 40, 28),
    conv(64, 64, 56, 3),
    conv(128, 128, 28, 3),
    conv(256, 256, 14, 3),
    conv(512, 512, 7, 3),
    conv(512, 512, 14, 3),
    conv(256, 256, 28, 3, 2),
)


def candidates(shape: Shape, sparsity: float) -> tuple[dict[str, Callable[[], Any]], int]:
    """Name to call, and the non-zeros of the weight."""
    torch.manual_seed(0)
    if shape.kind == "linear":
        dense: Any = nn.Linear(shape.K, shape.N)
        x = torch.randn(shape.size, shape.K)
    else:
        dense = nn.Conv2d(shape.K, shape.N, shape.kernel, shape.stride, shape.kernel // 2)
        x = torch.randn(1, shape.K, shape.size, shape.size)
    with torch.no_grad():
        dense.weight *= torch.rand(dense.weight.shape) >= sparsity
    calls: dict[str, Callable[[], Any]] = {"dense": partial(dense, x)}
    if shape.kind == "linear":
        layers = {
            "csr": SparseLinear.from_dense(dense),
            "panel": PanelLinear.from_dense(dense, **PanelLinear.fit(x.shape)),
            "int8": Int8Linear.from_dense(dense),
            "csr int8": SparseInt8Linear.from_dense(dense),
        }
        matrix = layers["csr"].weight_format
        torch_csr = matrix.to_torch()
        calls["torch csr"] = lambda: torch.sparse.mm(torch_csr, x.T).T + dense.bias
        calls |= scipy_call(matrix, x)
    else:
        layers = {"csr": SparseConv2d.from_dense(dense), "panel": PanelConv2d.from_dense(dense)}
        calls["dense nhwc"] = channels_last(dense, x)
    calls |= {name: partial(layer, x) for name, layer in layers.items()}
    return calls, int(dense.weight.count_nonzero())


def channels_last(dense: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    weight = dense.weight.detach().contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, dense.bias, dense.stride, dense.padding)


def scipy_call(matrix: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """SciPy's CSR product, which runs on one thread; nothing where SciPy is not installed."""
    try:
        sparse = matrix.to_scipy()
    except ImportError:
        return {}
    columns = x.T.contiguous().numpy()
    return {"scipy": lambda: sparse @ columns}


def measure(shape: Shape, sparsity: float, threads: int) -> dict[str, Any]:
    calls, nnz = candidates(shape, sparsity)
    peaks: list[float] = []
    probe = {"probe": lambda: peaks.append(probes.fma_gflops(threads, PROBE_SECONDS))}
    with torch.inference_mode():
        timings = interleave(calls | probe, min_time_s=MIN_TIME_S)
    peak = median(peaks)
    micros = {name: timings[name].median_us for name in calls}
    dense_us = min(us for name, us in micros.items() if name.startswith("dense"))
    flops = 2.0 * nnz * shape.columns
    return asdict(shape) | {
        "name": shape.name,
        "sparsity": sparsity,
        "fma_gflops": peak,
        "us": micros,
        "spread": {name: timings[name].spread for name in calls},
        "speedup": {name: dense_us / us for name, us in micros.items()},
        "share_of_peak": {name: flops / us / 1e3 / peak for name, us in micros.items()},
    }


COLUMNS = ("panel", "csr", "int8", "csr int8", "torch csr", "scipy")


def markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """One table per sparsity: dense time, and speed-up over it; the float sparse share of peak on non-zeros."""
    facts = ", ".join(f"{key} {machine[key]}" for key in ("cpu", "threads", "isa", "torch", "commit", "date"))
    lines = [f"# Single layers\n\n{facts}. From `benchmarks/kernels.py`; medians of interleaved runs.\n"]
    for sparsity in sorted({row["sparsity"] for row in rows}):
        group = [row for row in rows if row["sparsity"] == sparsity]
        lines += [
            f"## {sparsity:.0%} zeros\n",
            f"| layer | dense us | {' | '.join(f'{name} x' for name in COLUMNS)} | best of ours, of FMA peak |",
            f"|---|---|{'---|' * len(COLUMNS)}---|",
        ]
        for row in group:
            dense_us = min(us for name, us in row["us"].items() if name.startswith("dense"))
            cells = [f"{row['speedup'][name]:.2f}" if name in row["speedup"] else "" for name in COLUMNS]
            share = max(row["share_of_peak"][name] for name in ("panel", "csr"))
            lines.append(f"| {row['name']} | {dense_us:.0f} | {' | '.join(cells)} | {share:.0%} |")
        wide = [row for row in group if row["kind"] == "conv" or row["size"] >= 16]
        best = [max(row["speedup"][name] for name in ("panel", "csr")) for row in wide]
        shares = [max(row["share_of_peak"][name] for name in ("panel", "csr")) for row in wide]
        lines.append(
            f"\nGeometric mean over 16 and more columns: {geometric_mean(best):.2f}x over the faster dense form, "
            f"{geometric_mean(shares):.0%} of FMA peak on the non-zeros.\n"
        )
    return "\n".join(lines)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity", type=float, action="append", help="may be repeated; default 0.5 0.7 0.8 0.9 0.95")
    parser.add_argument("--out", type=Path, help="where to write .json and .md; default prints the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sparsities = arguments.sparsity or [0.5, 0.7, 0.8, 0.9, 0.95]
    rows = []
    for sparsity in sparsities:
        for shape in SHAPES:
            rows.append(measure(shape, sparsity, arguments.threads))
            best = max(rows[-1]["speedup"][name] for name in ("panel", "csr"))
            print(f"{sparsity:.0%}  {shape.name:32} {best:.2f}x", flush=True)
    machine = probes.machine()
    table = markdown(rows, machine)
    if arguments.out is None:
        print(table)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
