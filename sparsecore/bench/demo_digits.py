"""First half of the demo: real digits, from training to every compressed version of the net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import sparsecore as sc
from sparsecore._threads import use_threads
from sparsecore.bench.models import Digits, digits_data, digits_net
from sparsecore.bench.progress import Progress, stage
from sparsecore.bench.versions import (
    CHANNELS_LAST,
    Run,
    Version,
    eager_versions,
    measure,
    memory_bytes,
    replace_layers,
)
from sparsecore.graph import fold_batchnorm
from sparsecore.nn import (
    Int8Conv2d,
    Int8Linear,
    SparseConv2d,
    SparseInt8Conv2d,
    SparseInt8Linear,
    SparseLinear,
)
from sparsecore.prune import GradualPruner

BATCH = 64
DENSE = "dense"


@dataclass(frozen=True)
class DigitsPlan:
    """How long to train and what to measure."""

    sparsity: float = 0.9
    train_epochs: int = 12
    prune_epochs: int = 12
    finetune_epochs: int = 6
    batches: tuple[int, ...] = (1, 64)
    min_time_s: float = 4.0


def run_digits(out_dir: Path, seed: int, progress: Progress, plan: DigitsPlan | None = None) -> dict[str, Any]:
    """Train, prune, quantize and convert the digits net; measure all its versions.

    Args:
        out_dir: Existing folder; every version is saved in it.
        seed: Of the data split, the weights and the order of training.
        progress: Told about every step.
        plan: How long to train and what to measure; None is the demo's own.

    Returns:
        The ``digits`` section of the report.
    """
    plan = plan or DigitsPlan()
    torch.manual_seed(seed)
    data = digits_data(seed)
    # One thread trains in 11 s where two take 8, but two wait for each other on a busy machine:
    # 120 s. And the result is the same for any number of threads.
    with use_threads(1):
        with stage(progress, "digits: train") as share:
            dense = digits_net()
            train(dense, data, AdamW(dense.parameters(), lr=2e-3), plan.train_epochs, share)
        with stage(progress, f"digits: prune to {plan.sparsity:.0%} and fine-tune") as share:
            masked = copy.deepcopy(dense)
            sparsity = prune_and_finetune(masked, data, plan, share)
    with stage(progress, "digits: quantize and convert"):
        # Without the cache: what the report shows was measured in this run.
        converted = {batch: sc.convert(masked, data.test_x[:batch], cache=False) for batch in plan.batches}
        versions = _versions(dense, masked, converted, data)
    runs = [_measure(versions, data, batch, plan, progress) for batch in plan.batches]
    return {
        "sparsity": sparsity,
        "test_images": len(data.test_x),
        "seed": seed,
        "baselines": [_baseline(run) for run in runs],
        "fma_gflops": [run.fma_gflops for run in runs],
        "versions": [_row(version, data, runs, out_dir) for version in versions],
        "conversions": [
            {"batch": batch, "layers": sc.explain(model).to_dict()["rows"]} for batch, model in converted.items()
        ],
    }


def train(
    model: nn.Module,
    data: Digits,
    optimizer: Optimizer,
    epochs: int,
    share: Callable[[float], None],
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train in place on a cosine schedule; the model ends in eval mode."""
    schedule = CosineAnnealingLR(optimizer, epochs * steps_per_epoch(data))
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.train_x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(data.train_x[rows]), data.train_y[rows]).backward()
            optimizer.step()
            schedule.step()
            if after_step:
                after_step()
        share((epoch + 1) / epochs)
    model.eval()


def prune_and_finetune(model: nn.Module, data: Digits, plan: DigitsPlan, share: Callable[[float], None]) -> float:
    """Prune in place while training goes on; return the sparsity of the prunable weights."""
    optimizer = AdamW(model.parameters(), lr=1e-3)
    pruner = GradualPruner(
        model,
        optimizer,
        plan.sparsity,
        end=plan.prune_epochs * steps_per_epoch(data),
        frequency=steps_per_epoch(data) // 2,
    )
    epochs = plan.prune_epochs + plan.finetune_epochs
    train(model, data, optimizer, epochs, share, after_step=pruner.step)
    return pruner.masks.sparsity()


def _versions(dense: nn.Module, masked: nn.Module, converted: Mapping[int, nn.Module], data: Digits) -> list[Version]:
    """Every way to run the net; the forced ones keep each layer in their format, even a loser."""
    folded = fold_batchnorm(masked, data.test_x[:1])
    csr = replace_layers(folded, {nn.Linear: SparseLinear.from_dense, nn.Conv2d: SparseConv2d.from_dense})
    int8 = copy.deepcopy(folded)
    batches = data.train_x[:256].split(BATCH)
    sc.quantize(int8, batches, activations="static", progress=False)
    lookup = replace_layers(int8, {Int8Linear: SparseInt8Linear.from_int8, Int8Conv2d: SparseInt8Conv2d.from_int8})
    return [
        *eager_versions(dense, DENSE, "as trained, PyTorch eager"),
        Version("masked dense", "pruned, the zeros stored like any weight", "PyTorch", masked),
        Version("CSR", "pruned, every layer float32 CSR", "sparsecore", csr),
        Version("int8", "pruned and quantized, every layer dense int8", "sparsecore", int8),
        Version("lookup int8", "pruned and quantized, every layer int8 by table lookup", "sparsecore", lookup),
        *(
            Version(
                f"converted, batch {batch}",
                f"pruned, float32, the fastest per layer as measured at batch {batch}",
                "sparsecore",
                model,
            )
            for batch, model in converted.items()
        ),
    ]


def _measure(versions: Sequence[Version], data: Digits, batch: int, plan: DigitsPlan, progress: Progress) -> Run:
    with stage(progress, f"digits: measure batch {batch}") as share:
        x = data.test_x[:batch].clone()
        return measure(versions, x, min_time_s=plan.min_time_s, progress=share)


def _row(version: Version, data: Digits, runs: Sequence[Run], out_dir: Path) -> dict[str, Any]:
    path = out_dir / f"digits-{version.name.replace(', ', '-').replace(' ', '-').lower()}.safetensors"
    sc.save(version.model, path)
    return {
        **version.describe(),
        "accuracy": accuracy(version.model, data.test_x, data.test_y),
        "file": path.name,
        "disk_bytes": path.stat().st_size,
        "memory_bytes": memory_bytes(version.model),
        "timings": [run.row(version.name, _baseline(run)) for run in runs],
    }


def _baseline(run: Run) -> str:
    return run.faster(DENSE, f"{DENSE}{CHANNELS_LAST}")


def steps_per_epoch(data: Digits) -> int:
    return -(-len(data.train_x) // BATCH)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose digit is recognised."""
    return float((model(x).argmax(dim=1) == y).double().mean())
