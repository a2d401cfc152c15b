"""k-means of numbers: clusters are runs of the sorted values, so each step takes k binary searches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def kmeans(
    values: Tensor, k: int, init: str = "linear", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster numbers around at most k centroids by Lloyd's algorithm, until nothing changes.

    Deterministic. A value halfway between two centroids belongs to the lower one. Clusters that end empty are left
    out; up to k different values are their own centroids.

    Args:
        values: ``[n]`` floating point, finite, n of at least 1.
        k: most centroids, at least 1.
        init: where they start: a row of INITS.
        generator: for ``"random"``; None for the global one of torch.

    Returns:
        Centroids ``[<= k]`` in float64, rising, and for each value the index of its own ``[n]``, int64.

    Raises:
        ValueError: there is no such init.

    Example:
        >>> centroids, codes = kmeans(torch.tensor([0.0, 10.0, 1.0, 11.0]), 2)
        >>> centroids.tolist(), codes.tolist()
        ([0.5, 10.5], [0, 1, 0, 1])

    Reference:
        Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 1982.
        Initialisations: Han et al., Deep Compression, ICLR 2016, sec. 3.2.
    """
    check_init(init)
    numbers = values.detach().to(torch.promote_types(values.dtype, torch.float32)).cpu()
    ordered = torch.from_numpy(np.sort(numbers.numpy())).double()  # a third of the time of torch.sort
    centroids, counts = ordered.unique_consecutive(return_counts=True)
    if len(centroids) > k:
        centroids, counts = _lloyd(ordered, INITS[init](ordered, k, generator))
    last = ordered[counts.cumsum(0) - 1]  # of each cluster
    codes = torch.bucketize(numbers, last.to(numbers.dtype))
    return centroids.to(values.device), codes.to(values.device)


def check_init(init: str) -> None:
    """Raise ValueError if there is no such row of INITS."""
    if init not in INITS:
        raise ValueError(f"expected an init of {sorted(INITS)}, got {init!r}")


def _lloyd(ordered: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centroids of the clusters that are not empty, and how many values each has."""
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    visited: set[tuple[int, ...]] = set()  # rounding might lead back to an earlier step
    while True:
        halfway = (centroids[:-1] + centroids[1:]) / 2
        ends = torch.searchsorted(ordered, halfway, right=True).tolist()
        bounds = (0, *ends, len(ordered))
        if bounds in visited:
            break
        visited.add(bounds)
        at = torch.tensor(bounds)
        counts = at.diff()
        centroids = torch.where(counts > 0, sums[at].diff() / counts, centroids)
    return centroids[counts > 0], counts[counts > 0]


def _linear(ordered: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    return torch.linspace(ordered[0].item(), ordered[-1].item(), k, dtype=torch.float64)


def _density(ordered: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    return ordered[((torch.arange(k) + 0.5) * (len(ordered) / k)).long()]


def _random(ordered: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    chosen = torch.randperm(len(ordered), generator=generator)[:k]
    return ordered[chosen.sort().values]


#: Where centroids start, rising: evenly over [min, max], at even shares of the values, or at random values.
INITS: dict[str, Callable[[Tensor, int, torch.Generator | None], Tensor]] = {
    "linear": _linear,
    "density": _density,
    "random": _random,
}
