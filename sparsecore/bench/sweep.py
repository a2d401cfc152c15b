"""What sparsity would buy for a model: the same model at several sparsities, in one run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

import sparsecore as sc
from sparsecore.bench import probes
from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.bench.versions import (
    Version,
    eager_versions,
    measure,
    memory_bytes,
)

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


def benchmark(
    model: nn.Module,
    x: Tensor,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    exclude: Iterable[str] = (),
    min_time_s: float = 10.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure how fast a model would be at several sparsities, before paying for the training.

    Every sparsity is pruned by magnitude, layer by layer, and converted; accuracy is not looked at.

    Args:
        model: Any module with one tensor as input; it stays as it is.
        x: Its input.
        sparsities: Shares of zeros, each in [0, 1).
        exclude: Layers to leave dense, as in `sparsecore.prune`.
        min_time_s: Seconds that the rounds take at least, all versions together.
        progress: Called with the name of the step and the share done.

    Returns:
        Machine, FMA peak of the run, and the versions with their times; speed-ups are over the
        faster memory format of PyTorch eager.

    Example:
        >>> import torch
        >>> report = benchmark(nn.Sequential(nn.Linear(64, 64)), torch.randn(1, 64), [0.9],
        ...                    min_time_s=0.01)
        >>> [version["name"] for version in report["versions"]]
        ['PyTorch eager', '90% zeros']
    """
    dense = copy.deepcopy(model).eval()
    eager = eager_versions(dense, "PyTorch eager", "as given")[: 2 if x.dim() == 4 else 1]
    versions = [*eager]
    for sparsity in sparsities:
        with stage(progress, f"convert at {sparsity:.0%} zeros"):
            masked = copy.deepcopy(dense)
            sc.prune(masked, sparsity, exclude=exclude)
            fast = sc.convert(masked, x, cache=False)
        what = "pruned by magnitude, the fastest kernel per layer"
        versions.append(Version(f"{sparsity:.0%} zeros", what, "sparsecore", fast))
    with stage(progress, "measure end to end") as share:
        run = measure(versions, x, min_time_s=min_time_s, progress=share)
    baseline = run.faster(*(version.name for version in eager))
    return {
        "machine": probes.machine(),
        "input": list(x.shape),
        "baseline": baseline,
        "fma_gflops": run.fma_gflops,
        "versions": [
            {
                **version.describe(),
                "memory_bytes": memory_bytes(version.model),
                "timings": [run.row(version.name, baseline)],
            }
            for version in versions
        ],
    }
