"""What the Compressor's tests train: 96 images of 2 x 8 x 8, three classes, batches of 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.train.compressor import Compressed

EPOCHS, BATCH = 4, 32
STEPS_PER_EPOCH = 3

#: A structural cut, masks, quantization-aware training and a teacher in one run.
MANY = [
    {"name": "distillation", "start": 1},
    {"name": "l1-filters", "start": 1, "ratio": 0.25},
    {"name": "gradual", "start": 1, "end": 3, "sparsity": 0.75, "frequency": 2},
    {"name": "qat", "start": 3},
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 3),
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x.flatten(1, 2)).mean(1))


def images() -> tuple[Tensor, Tensor]:
    x = torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) * 20).long().clamp(-1, 1) + 1


def accuracy(model: nn.Module) -> float:
    x, y = images()
    return float((model(x).argmax(1) == y).double().mean())


def recipe(strategies: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    return {
        "epochs": EPOCHS,
        "batch": BATCH,
        "calibration_batches": 2,
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "scheduler": "CosineAnnealingLR",
        "compile": False,
        "strategies": strategies,
        **others,
    }


def compressor(content: Any, output: Path, model: nn.Module | None = None, **arguments: Any) -> sc.Compressor:
    functions = {"train_data": images(), "metric": accuracy, **arguments}
    return sc.Compressor(model if model is not None else net(), content, output=output, **functions)


def compress(content: Any, output: Path, **arguments: Any) -> Compressed:
    return compressor(content, output, **arguments).run()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
