"""What int8 costs in accuracy: digits with every observer, and a transformer block with outlier channels.

    python benchmarks/int8_accuracy.py --json int8-accuracy.json --markdown int8-accuracy.md

Digits: the demo's net on scikit-learn's 8x8 digits, trained, pruned to 90% and fine-tuned as in the demo, BatchNorm
folded, calibrated on 256 training images. Accuracy on the 360 test images.

Transformer: one pre-norm encoder block with PyTorch's initial weights, whose two LayerNorms amplify four channels by 20
to 60, and the same without. Calibrated on four batches, the relative error of the output, ||y_int8 - y|| / ||y||, is
measured on a fifth.

Nothing is timed. Seeds choose the data split, the weights, the order of training and the inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accuracy_report import accuracy_sections, by_version, goal_rows, main, over_seeds, page, seed_table
from torch import Tensor, nn
from torch.optim import AdamW

import sparsecore as sc
from sparsecore.bench.demo_digits import BATCH, DigitsPlan, accuracy, prune_and_finetune, train
from sparsecore.bench.models import digits_data, digits_net
from sparsecore.graph import fold_batchnorm
from sparsecore.quantize import OBSERVERS

FLOAT = "float32"
SPARSE = "90% sparse"
FEATURES, HEADS = 512, 8
OUTLIER_GAINS = (20.0, 30.0, 45.0, 60.0)

# Settings of sc.quantize() by the name of the version.
STATIC: dict[str, dict[str, Any]] = {
    f"int8 static, {observer}": {"activations": "static", "observer": observer} for observer in OBSERVERS
}
DIGITS: dict[str, dict[str, Any]] = {
    **STATIC,
    "int8 static, minmax, bias correction": {"activations": "static", "bias_correction": True},
    "int8 dynamic, per token": {"activations": "dynamic"},
}
BLOCK: dict[str, dict[str, Any]] = {
    "dynamic, per token": {"activations": "dynamic"},
    **{
        f"static, per tensor, {observer}": settings
        for observer, settings in zip(OBSERVERS, STATIC.values(), strict=True)
    },
    **{
        f"{activations}, per channel, alpha {alpha}": {"activations": activations, "per_channel": True, "alpha": alpha}
        for activations in ("dynamic", "static")
        for alpha in (0.5, 1.0)
    },
}


def quantized(model: nn.Module, batches: Sequence[Tensor], settings: Mapping[str, Any]) -> nn.Module:
    """Return a copy of a model in int8."""
    needs_batches = settings != {"activations": "dynamic"}
    return sc.quantize(copy.deepcopy(model), batches if needs_batches else None, progress=False, **settings)


def digits_results(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of every version of the digits net, 0 to 1, and how far int8 logits are from those of its float form."""
    torch.manual_seed(seed)
    data, plan = digits_data(seed), DigitsPlan()
    dense = digits_net()
    train(dense, data, AdamW(dense.parameters(), lr=2e-3), plan.train_epochs, lambda share: None)
    masked = copy.deepcopy(dense)
    prune_and_finetune(masked, data, plan, lambda share: None)

    batches = data.train_x[:256].split(BATCH)
    accuracies, errors = {}, {}
    for prefix, model in (("", dense), (f"{SPARSE}, ", masked)):
        accuracies[prefix + FLOAT] = accuracy(model, data.test_x, data.test_y)
        folded = fold_batchnorm(model, data.test_x[:1])
        for name, settings in DIGITS.items():
            int8 = quantized(folded, batches, settings)
            accuracies[prefix + name] = accuracy(int8, data.test_x, data.test_y)
            errors[prefix + name] = relative_error(int8, folded, data.test_x)
    return accuracies, errors


@torch.inference_mode()
def relative_error(model: nn.Module, reference: nn.Module, x: Tensor) -> float:
    """||y - y_reference|| / ||y_reference||"""
    y, expected = model(x).double(), reference(x).double()
    return float((y - expected).norm() / expected.norm())


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP of plain linear layers, so that all of them can be quantized."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.query, self.key, self.value, self.out = (nn.Linear(features, features) for _ in range(4))
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        split = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@torch.no_grad()
def block_errors(seed: int, gains: Sequence[float]) -> dict[str, float]:
    """Relative output error of every version of the block; gains are those of some channels of its norms."""
    torch.manual_seed(seed)
    block = EncoderBlock(FEATURES, HEADS).eval()
    for norm in (block.norm1, block.norm2):
        norm.weight[torch.randperm(FEATURES)[: len(gains)]] = torch.tensor(gains)
    *batches, x = torch.randn(5, 4, 128, FEATURES)
    return {name: relative_error(quantized(block, batches, settings), block, x) for name, settings in BLOCK.items()}


def goals(digits: Mapping[str, Sequence[float]], block: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """What was to be reached, and in how many seeds it was."""

    def within(name: str, points: float) -> int:
        losses = [f - a for f, a in zip(digits[FLOAT], digits[name], strict=True)]
        return sum(100 * loss <= points for loss in losses)

    def below(version: str, error: float) -> int:
        return sum(e < error for e in block[version])

    rows = [(f"{name} within 0.5 points of float32", within(name, 0.5)) for name in STATIC]
    rows += [(f"{SPARSE}, {name} within 1 point of float32", within(f"{SPARSE}, {name}", 1.0)) for name in STATIC]
    rows += [
        (f"transformer block with outliers, {name}: error under 2%", below(name, 0.02))
        for name, settings in BLOCK.items()
        if settings["activations"] == "dynamic"
    ]
    return goal_rows(rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    seeds = report["seeds"]

    def error_table(block: Mapping[str, Sequence[float]]) -> str:
        rows = [[name, *(f"{e:.2%}" for e in values), f"{max(values):.2%}"] for name, values in block.items()]
        return seed_table(seeds, rows, "worst")

    sections = {
        "Digits: relative error of the logits against the same net in float32": error_table(
            report["digits_logit_error"]
        ),
        "Transformer block with outlier channels: relative output error": (
            f"{FEATURES} features, {HEADS} heads; four channels amplified by "
            f"{', '.join(f'{gain:g}' for gain in OUTLIER_GAINS)}.\n\n{error_table(report['block_error'])}"
        ),
        "The same block without outlier channels": error_table(report["plain_block_error"]),
    }
    return page(
        "Accuracy of int8",
        "benchmarks/int8_accuracy.py",
        report,
        {**accuracy_sections(seeds, report["digits_accuracy"], FLOAT), **sections},
    )


def run(seeds: Sequence[int]) -> dict[str, Any]:
    """Measure everything."""
    block = by_version(over_seeds("transformer block", seeds, lambda seed: block_errors(seed, OUTLIER_GAINS)))
    plain_block = by_version(
        over_seeds("transformer block without outliers", seeds, lambda seed: block_errors(seed, ()))
    )
    accuracies, errors = zip(*over_seeds("digits", seeds, digits_results), strict=True)
    digits = by_version(accuracies)
    return {
        "goals": goals(digits, block),
        "digits_accuracy": digits,
        "digits_logit_error": by_version(errors),
        "block_error": block,
        "plain_block_error": plain_block,
    }


if __name__ == "__main__":
    main(__doc__, run, markdown)
