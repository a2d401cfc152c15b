"""Cheaper pairs in the place of layers: multiply-adds by formula and as counted, and wall time beside them.

    python benchmarks/layer_replacement.py --json layer-replacement.json --markdown layer-replacement.md

Layers of common networks on one image or one batch, in PyTorch eager on one thread: a k x k convolution with N output
channels as depthwise and pointwise ones costs 1/N + 1/k^2 of it, and a layer [N, K] in factors of rank r costs
r (N + K) / (N K). A layer and its pairs are timed beside each other in one interleaved run. Accuracy is another matter:
the pairs are to be trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from publish import add_file_options, publish
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.bench.model_cost import compare_cost
from sparsecore.bench.text_table import Table
from sparsecore.train import low_rank, separable

# Channels in and out, kernel, stride and image size of convolutions; features in and out and rows of linear layers.
CONVOLUTIONS = ((64, 64, 3, 1, 56), (128, 128, 3, 2, 56), (256, 256, 3, 1, 14), (512, 512, 3, 1, 7), (32, 64, 5, 1, 28))
LINEARS = ((768, 3072, 128), (1024, 1024, 1))
RANK_SHARES = (4, 16)  # ranks are a 4th and a 16th of the smaller side


def layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    for C, N, kernel, stride, size in CONVOLUTIONS:
        name = f"conv {kernel}x{kernel}, {C} to {N}, stride {stride}, {size}x{size}"
        yield name, nn.Conv2d(C, N, kernel, stride, kernel // 2), torch.randn(1, C, size, size)
    for K, N, rows in LINEARS:
        yield f"linear, {K} to {N}, {rows} rows", nn.Linear(K, N), torch.randn(rows, K)


def pairs(layer: nn.Module) -> Iterator[tuple[str, nn.Module, Fraction]]:
    """Every pair with the share of the multiply-adds that the formula gives."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    N, K = layer.weight.flatten(1).shape
    if isinstance(layer, nn.Conv2d):
        yield "depthwise, pointwise", separable(layer), Fraction(1, N) + Fraction(1, layer.weight[0, 0].numel())
    for share in RANK_SHARES:
        rank = min(N, K) // share
        yield f"rank {rank}", low_rank(layer, rank=rank), Fraction(rank * (N + K), N * K)


def measure(name: str, layer: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    formulas = {"dense": Fraction(1)}
    models = {"dense": layer.eval()}
    for form, pair, share in pairs(layer):
        models[form], formulas[form] = pair.eval(), share
    costs = {cost.name: cost for cost in compare_cost(models, x, min_time_s=1.0)}
    return [
        {
            "layer": name,
            "form": form,
            "multiply_adds": cost.multiply_adds,
            "counted_share": cost.multiply_adds / costs["dense"].multiply_adds,
            "formula_share": float(formulas[form]),
            "is_equal": cost.multiply_adds == formulas[form] * costs["dense"].multiply_adds,
            "median_ms": cost.median_ms,
            "time_share": cost.median_ms / costs["dense"].median_ms,
        }
        for form, cost in costs.items()
    ]


def markdown(report: dict[str, Any]) -> str:
    headings = ("layer", "form", "multiply-adds", "of dense", "by formula", "equal", "ms", "of dense")
    rows = [
        (
            row["layer"],
            row["form"],
            f"{row['multiply_adds']:,}",
            f"{row['counted_share']:.2%}",
            f"{row['formula_share']:.2%}",
            "yes" if row["is_equal"] else "**no**",
            f"{row['median_ms']:.3f}",
            f"{row['time_share']:.1%}",
        )
        for row in report["rows"]
    ]
    intro = (
        f"`benchmarks/layer_replacement.py`: torch {report['torch']}, sparsecore {report['sparsecore']}, one thread."
    )
    return f"# Cheaper layers\n\n{intro}\n\n{Table('', headings, rows, names=2).markdown()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [row for name, layer, x in layers() for row in measure(name, layer, x)]
    report = {"torch": torch.__version__, "sparsecore": sc.__version__, "rows": rows}
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
