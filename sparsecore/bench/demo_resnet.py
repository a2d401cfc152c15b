"""Second half of the demo: ResNet-50, full size, 90% zeros, against PyTorch eager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import sparsecore as sc
from sparsecore.bench.models import create, settle_batchnorm
from sparsecore.bench.progress import Progress, stage
from sparsecore.bench.versions import (
    CHANNELS_LAST,
    Version,
    eager_versions,
    max_relative_difference,
    measure,
)
from sparsecore.graph import fold_batchnorm

EAGER = "PyTorch eager"


@dataclass(frozen=True)
class ResNetPlan:
    """What to measure and for how long."""

    sparsity: float = 0.9
    image_size: int = 224
    min_time_s: float = 20.0
    min_rounds: int = 7


def run_resnet(seed: int, progress: Progress, plan: ResNetPlan | None = None) -> dict[str, Any]:
    """Prune ResNet-50 with random weights, convert it, and time it against PyTorch eager.

    Args:
        seed: Of the weights and the input.
        progress: Told about every step.
        plan: What to measure and for how long; None is the demo's own.

    Returns:
        The ``resnet50`` section of the report; speed-ups are over the faster format of eager.
    """
    plan = plan or ResNetPlan()
    torch.manual_seed(seed)
    x = torch.randn(1, 3, plan.image_size, plan.image_size)
    with stage(progress, f"ResNet-50: prune to {plan.sparsity:.0%}"):
        masked, sparsity = _pruned_resnet(plan, seed)
    with stage(progress, "ResNet-50: convert, measuring every layer") as share:
        # Without the cache: what the report shows was measured in this run.
        fast = sc.convert(masked, x, cache=False, progress=share)
    difference = max_relative_difference(fast, masked, x)
    versions = [
        *eager_versions(masked, EAGER, "dense kernels, a zero is computed like any weight"),
        Version(
            f"{EAGER}, BatchNorm folded",
            "how much of the gain needs no zeros",
            "PyTorch",
            fold_batchnorm(masked, x),
        ),
        Version(
            "sparsecore",
            "sc.convert: BatchNorm folded, the fastest kernel per layer",
            "sparsecore",
            fast,
        ),
    ]
    with stage(progress, "ResNet-50: measure end to end") as share:
        run = measure(versions, x, min_time_s=plan.min_time_s, min_rounds=plan.min_rounds, progress=share)
    baseline = run.faster(EAGER, f"{EAGER}{CHANNELS_LAST}")
    return {
        "input": list(x.shape),
        "sparsity": sparsity,
        "pruned": "Every convolution and the classifier are pruned by magnitude, layer by layer, "
        "except the first convolution, which stays dense.",
        "seed": seed,
        "baseline": baseline,
        "fma_gflops": run.fma_gflops,
        "max_relative_difference": difference,
        "versions": [{**version.describe(), "timings": [run.row(version.name, baseline)]} for version in versions],
        "layers": sc.explain(fast).to_dict()["rows"],
    }


def _pruned_resnet(plan: ResNetPlan, seed: int) -> tuple[nn.Module, float]:
    """ResNet-50 with zeros, and with BatchNorm statistics that fit the pruned weights."""
    model = create("resnet50")
    masks = sc.prune(model, plan.sparsity, exclude="conv1")
    settle_batchnorm(model, torch.randn(2, 3, plan.image_size, plan.image_size), seed=seed)
    return model.eval(), masks.sparsity()
