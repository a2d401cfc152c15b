"""How small Deep Compression's file gets: digits from training to the file, and the shapes of AlexNet and VGG-16.

    python benchmarks/deep_compression.py --json deep-compression.json --markdown deep-compression.md

Digits: the demo's net on scikit-learn's 8x8 digits, trained, pruned to 90% and fine-tuned as in the demo; then the
weights of each layer become 31 values, by k-means from a linear start, and the file is written and read again.
Accuracy on the 360 test images; the dense file is the trained net's state_dict in safetensors.

AlexNet and VGG-16: the paper's layers with the densities and bits of its tables 4 and 5. No trained weights are at
hand: weights are Gaussian, the largest are kept and clustered by k-means. So places are uniformly random, which the
paper's were not, and what Huffman coding gains is that of Gaussian weights. Gaps have the widths of the paper's
tables, those of its section 2 (8 bits in convolutions, 5 in the others), or for each layer what makes the file
smallest.

Reference: Han, Mao and Dally, Deep Compression, ICLR 2016.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from publish import add_file_options, publish
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

import sparsecore as sc
from sparsecore.bench.demo_digits import DigitsPlan, accuracy, prune_and_finetune, train
from sparsecore.bench.models import digits_data, digits_net

DIGITS_BITS = 5
DIGITS_RATIO, DIGITS_POINTS = 25.0, 1.0


@dataclass(frozen=True)
class PaperLayer:
    """A layer of the paper's tables: N, K, taps, groups, share of weights kept, bits of a code."""

    N: int
    K: int
    taps: int
    kept: float
    bits: int
    groups: int = 1

    def build(self) -> nn.Module:
        if self.taps == 0:
            return nn.Linear(self.K, self.N)
        return nn.Conv2d(self.K * self.groups, self.N, self.taps, groups=self.groups)


@dataclass(frozen=True)
class PaperNet:
    """A network of the paper: its layers, the width of gaps in its table, and what it reports."""

    layers: Mapping[str, PaperLayer]
    table_gap_bits: int
    ratio_before_huffman: float
    ratio: float

    def section_2_gap_bits(self) -> dict[str, int]:
        return {f"{name}.weight": 8 if layer.taps else 5 for name, layer in self.layers.items()}


NETS = {
    "AlexNet": PaperNet(
        {
            "conv1": PaperLayer(96, 3, 11, 0.84, 8),
            "conv2": PaperLayer(256, 48, 5, 0.38, 8, groups=2),
            "conv3": PaperLayer(384, 256, 3, 0.35, 8),
            "conv4": PaperLayer(384, 192, 3, 0.37, 8, groups=2),
            "conv5": PaperLayer(256, 192, 3, 0.37, 8, groups=2),
            "fc6": PaperLayer(4096, 9216, 0, 0.09, 5),
            "fc7": PaperLayer(4096, 4096, 0, 0.09, 5),
            "fc8": PaperLayer(1000, 4096, 0, 0.25, 5),
        },
        table_gap_bits=4,
        ratio_before_huffman=27,
        ratio=35,
    ),
    "VGG-16": PaperNet(
        {
            "conv1_1": PaperLayer(64, 3, 3, 0.58, 8),
            "conv1_2": PaperLayer(64, 64, 3, 0.22, 8),
            "conv2_1": PaperLayer(128, 64, 3, 0.34, 8),
            "conv2_2": PaperLayer(128, 128, 3, 0.36, 8),
            "conv3_1": PaperLayer(256, 128, 3, 0.53, 8),
            "conv3_2": PaperLayer(256, 256, 3, 0.24, 8),
            "conv3_3": PaperLayer(256, 256, 3, 0.42, 8),
            "conv4_1": PaperLayer(512, 256, 3, 0.32, 8),
            "conv4_2": PaperLayer(512, 512, 3, 0.27, 8),
            "conv4_3": PaperLayer(512, 512, 3, 0.34, 8),
            "conv5_1": PaperLayer(512, 512, 3, 0.35, 8),
            "conv5_2": PaperLayer(512, 512, 3, 0.29, 8),
            "conv5_3": PaperLayer(512, 512, 3, 0.36, 8),
            "fc6": PaperLayer(4096, 25088, 0, 0.04, 5),
            "fc7": PaperLayer(4096, 4096, 0, 0.04, 5),
            "fc8": PaperLayer(1000, 4096, 0, 0.23, 5),
        },
        table_gap_bits=5,
        ratio_before_huffman=31,
        ratio=49,
    ),
}


@torch.no_grad()
def share(weight: Tensor, num_values: int, iterations: int = 30) -> None:
    """Replace weights that are not zero by the centroids of k-means from a linear start, in place."""
    places = weight.nonzero(as_tuple=True)
    values, order = weight[places].sort()
    sums = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    centroids = torch.linspace(float(values[0]), float(values[-1]), num_values, dtype=torch.float64)
    for _ in range(iterations):
        ends = torch.searchsorted(values.double(), (centroids[1:] + centroids[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([values.numel()])])
        counts = ends.diff()
        means = (sums[ends[1:]] - sums[ends[:-1]]) / counts.clamp(min=1)
        centroids = torch.where(counts > 0, means, centroids)
    shared = torch.empty_like(values)
    shared[order] = centroids.float().repeat_interleave(counts)
    weight[places] = shared


def share_all(model: nn.Module, bits: int) -> None:
    """One codebook per layer, in which zero has a place too."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            share(module.weight, 2**bits - 1)


def digits_result(seed: int, folder: Path) -> dict[str, Any]:
    """Accuracies, 0 to 1, and bytes of one seed."""
    torch.manual_seed(seed)
    data, plan = digits_data(seed), DigitsPlan()
    dense = digits_net()
    train(dense, data, AdamW(dense.parameters(), lr=2e-3), plan.train_epochs, lambda share: None)
    dense_path, path = folder / "dense.safetensors", folder / "compressed.safetensors"
    save_file(dense.state_dict(), dense_path)
    model = copy.deepcopy(dense)
    prune_and_finetune(model, data, plan, lambda share: None)
    pruned_accuracy = accuracy(model, data.test_x, data.test_y)
    share_all(model, DIGITS_BITS)
    report = sc.save_compressed(model, path, compare_zstd=True)
    assert report.file_bytes == path.stat().st_size
    loaded = sc.load_compressed(path, digits_net, run_compressed=True).eval()
    return {
        "seed": seed,
        "dense_accuracy": accuracy(dense, data.test_x, data.test_y),
        "pruned_accuracy": pruned_accuracy,
        "file_accuracy": accuracy(loaded, data.test_x, data.test_y),
        "dense_bytes": dense_path.stat().st_size,
        "file_bytes": report.file_bytes,
        "ratio": dense_path.stat().st_size / report.file_bytes,
        "report": report.to_dict(),
    }


@torch.no_grad()
def random_net(net: PaperNet) -> nn.Module:
    """Gaussian weights with the paper's densities, clustered."""
    model = nn.Sequential(OrderedDict((name, layer.build()) for name, layer in net.layers.items()))
    for name, layer in net.layers.items():
        weight = model.get_submodule(name).weight
        weight.normal_()
        magnitude = weight.abs().flatten()
        threshold = magnitude.kthvalue(magnitude.numel() - round(layer.kept * magnitude.numel())).values
        weight.mul_(weight.abs() > threshold)
        share(weight, 2**layer.bits - 1)
    return model


def net_results(net: PaperNet, folder: Path) -> list[dict[str, Any]]:
    """One row per choice of the widths of gaps; every size is that of a file."""
    torch.manual_seed(0)
    model = random_net(net)
    path, rows = folder / "net.safetensors", []
    choices: dict[str, int | dict[str, int] | None] = {
        "the paper's tables": net.table_gap_bits,
        "the paper's section 2": net.section_2_gap_bits(),
        "the smallest file": None,
    }
    for name, gap_bits in choices.items():
        sizes = {}
        for huffman in (False, True):
            report = sc.save_compressed(model, path, gap_bits=gap_bits, huffman=huffman, compare_zstd=huffman)
            assert report.file_bytes == path.stat().st_size
            sizes[huffman] = report.file_bytes
        with_zstd = report.header_bytes + report.other_bytes + sum(w.zstd_bytes or 0 for w in report.weights)
        rows.append(
            {
                "gaps": name,
                "dense_bytes": report.dense_bytes,
                "before_huffman_bytes": sizes[False],
                "file_bytes": sizes[True],
                "zstd_bytes": with_zstd,
                "report": report.to_dict(),
            }
        )
    return rows


def goals(digits: Sequence[Mapping[str, Any]], nets: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What was to be reached, and whether it was."""

    def all_seeds(reached: Callable[[Mapping[str, Any]], bool]) -> str:
        return f"{sum(map(reached, digits))} of {len(digits)} seeds"

    def lost(run: Mapping[str, Any]) -> float:
        return 100 * float(run["dense_accuracy"] - run["file_accuracy"])

    rows = [
        {"goal": f"digits: file at least {DIGITS_RATIO:g} times smaller than the dense one",
         "reached": all_seeds(lambda run: run["ratio"] >= DIGITS_RATIO)},
        {"goal": f"digits: at most {DIGITS_POINTS:g} point lost",
         "reached": all_seeds(lambda run: lost(run) <= DIGITS_POINTS)},
    ]  # fmt: skip
    for name, results in nets.items():
        paper = NETS[name].ratio_before_huffman
        for row in results:
            ratio = row["dense_bytes"] / row["before_huffman_bytes"]
            more = ratio / paper - 1
            rows.append(
                {
                    "goal": f"{name}, gaps of {row['gaps']}: before Huffman at most 5% less than the paper's {paper:g}",
                    "reached": f"{'yes' if more >= -0.05 else '**no**'}: {ratio:.1f} ({more:+.1%})",
                }
            )
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""

    def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        line = ["---", *["---:"] * (len(headings) - 1)]
        return [f"| {' | '.join(cells)} |" for cells in (headings, line, *rows)]

    digits_rows = [
        [
            str(run["seed"]),
            *(f"{run[key]:.2%}" for key in ("dense_accuracy", "pruned_accuracy", "file_accuracy")),
            f"{100 * (run['dense_accuracy'] - run['file_accuracy']):+.2f}",
            *(f"{run[key]:,}" for key in ("dense_bytes", "file_bytes")),
            f"{run['ratio']:.1f}",
        ]
        for run in report["digits"]
    ]
    fillers = {
        f"{name} {weight['name']}": weight["num_entries"] / weight["nnz"] - 1
        for name, results in report["nets"].items()
        for weight in results[0]["report"]["weights"]
        if weight["name"] == "fc6.weight"
    }
    lines = [
        "# The file of Deep Compression",
        "",
        f"`benchmarks/deep_compression.py`: torch {report['torch']}, sparsecore {report['sparsecore']}. What was run "
        "is in the script's first lines. Every size is that of a file, headers included; zstd's is reckoned.",
        "",
        "## Goals",
        "",
        *table(["goal", "reached"], [[row["goal"], row["reached"]] for row in report["goals"]]),
        "",
        "## Digits",
        "",
        *table(
            ["seed", "dense", "90% pruned", "file", "points lost", "dense bytes", "file bytes", "ratio"], digits_rows
        ),
        "",
        f"Mean ratio {mean(run['ratio'] for run in report['digits']):.1f}. The file's accuracy is that of the net read "
        "from it, with linear layers that run from its codes.",
        "",
        "## Gaussian weights in the paper's shapes",
        "",
        "Where the paper's gaps give a larger file than the paper reports, fillers are why: in uniformly random places "
        f"{' and '.join(f'{share:.0%} of {name}' for name, share in fillers.items())} come on top with the tables' "
        "gaps. The paper's table 4 says 3.0% of float32 for AlexNet's fc6, which is 19%: its weights must lie closer "
        "together. Densities are also rounded to whole percent there.",
    ]
    for name, results in report["nets"].items():
        net = NETS[name]
        rows = [
            [
                f"gaps of {row['gaps']}",
                *(f"{row[key]:,}" for key in ("before_huffman_bytes", "file_bytes", "zstd_bytes")),
                *(f"{row['dense_bytes'] / row[key]:.1f}" for key in ("before_huffman_bytes", "file_bytes")),
            ]
            for row in results
        ]
        rows.append(["the paper: trained weights", "", "", "", f"{net.ratio_before_huffman:g}", f"{net.ratio:g}"])
        lines += [
            "",
            f"## {name}: {results[0]['dense_bytes']:,} bytes of float32",
            "",
            *table(["", "before Huffman", "file", "zstd instead", "ratio before Huffman", "ratio"], rows),
            "",
            "Layers of the smallest file:",
            "",
            *table(
                ["weight", "kept", "fillers", "bits", "bits coded", "gap bits", "gap bits coded", "ratio"],
                [_layer_cells(weight) for weight in results[-1]["report"]["weights"]],
            ),
        ]
    return "\n".join([*lines, ""])


def _layer_cells(weight: Mapping[str, Any]) -> list[str]:
    record, entries = weight["record"], weight["num_entries"]
    return [
        weight["name"],
        f"{weight['nnz'] / weight['numel']:.0%}",
        f"{entries / weight['nnz'] - 1:.1%}",
        str(weight["bits"]),
        f"{8 * record['codes'] / entries:.2f}",
        str(weight["gap_bits"]),
        f"{8 * record['gaps'] / entries:.2f}",
        f"{4 * weight['numel'] / sum(record.values()):.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits, nets = [], {}
        for net_name, net in NETS.items():
            print(net_name, file=sys.stderr, flush=True)
            nets[net_name] = net_results(net, folder)
        for seed in range(arguments.seeds):
            print(f"digits, seed {seed}", file=sys.stderr, flush=True)
            digits.append(digits_result(seed, folder))
    report = {
        "torch": torch.__version__,
        "sparsecore": sc.__version__,
        "goals": goals(digits, nets),
        "digits": digits,
        "nets": nets,
    }
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
