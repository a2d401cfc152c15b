"""Observers: see every activation that enters a layer, and propose the range that int8 is to cover."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sparsecore.quantize.affine import INPUT_MAX, INPUT_MIN

LOG2_BINS = 12  # bins per sign: 8 or more per step of int8, in 64 KB per layer
BINS = 2**LOG2_BINS
_CHUNK = 2**20  # activations sorted into bins at once, so that memory does not grow with them


@runtime_checkable
class Observer(Protocol):
    """Sees every activation that enters one layer, and proposes a range."""

    def update(self, x: Tensor) -> None: ...

    def range(self) -> tuple[float, float] | None:
        """Return (low, high), or None when nothing was seen."""


class MinMax:
    """The extreme values seen: nothing is clipped, and one outlier widens every step."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def update(self, x: Tensor) -> None:
        if x.numel():
            low, high = check_finite(x)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float] | None:
        return (self.low, self.high) if self.low <= self.high else None


class Histogram(MinMax):
    """Counts of equal bins on both sides of zero, and of zero itself.

    The width of a bin is a power of two. It is doubled, and neighbours are merged, when larger values come, so the
    counts depend on the values alone and not on their order or their batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(
            2 * BINS, dtype=torch.int64
        )  # bin i holds [(i - BINS) * width, (i + 1 - BINS) * width)
        self.num_zeros = 0
        self._exponent = -1100  # of the width: below that of any number

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self._exponent

    def update(self, x: Tensor) -> None:
        x = x.detach().float().flatten()
        super().update(x)
        self._widen(max(-self.low, self.high))
        for part in x.split(_CHUNK):
            nonzero = part[part != 0]
            self.num_zeros += part.numel() - nonzero.numel()
            index = torch.floor(nonzero.double() / self.width).long() + BINS
            self.counts += torch.bincount(index, minlength=2 * BINS).cpu()

    def _widen(self, absmax: float) -> None:
        # absmax < 2^exponent, so it falls into the bins; all of it is exact.
        exponent = math.frexp(absmax)[1] - LOG2_BINS
        if absmax <= 0 or exponent <= self._exponent:
            return
        index = torch.arange(-BINS, BINS) >> min(exponent - self._exponent, LOG2_BINS)
        self.counts = torch.zeros_like(self.counts).index_add_(0, index + BINS, self.counts)
        self._exponent = exponent


class Percentile(Histogram):
    """From percentile 100 - percent to percentile percent of all values: the outliers beyond are clipped.

    Args:
        percent: above 50; 100 is the same as MinMax.

    Raises:
        ValueError: percent is out of range.
    """

    def __init__(self, percent: float = 99.99) -> None:
        if not 50 < percent <= 100:
            raise ValueError(f"expected a percentile above 50 and at most 100, got {percent}")
        super().__init__()
        self.percent = percent

    def __repr__(self) -> str:
        return f"Percentile({self.percent})"

    def range(self) -> tuple[float, float] | None:
        if super().range() is None:
            return None
        edges = np.arange(-BINS, BINS + 1) * self.width
        counts = np.insert(self.counts.numpy(), BINS, self.num_zeros)
        # The edge away from the middle stands for a bin, so that it is not clipped.
        low = _quantile(counts, np.insert(edges[:-1], BINS, 0.0), 1 - self.percent / 100)
        high = _quantile(counts, np.insert(edges[1:], BINS, 0.0), self.percent / 100)
        return max(low, self.low), min(high, self.high)


class MeanSquaredError(Histogram):
    """The range with the smallest expected squared error of affine int8.

    A value beyond the range is wrong by its distance, any other one by step^2 / 12 on average (zero, which is exact,
    by nothing); the rare clipped values are counted with step^2 / 12 too, which makes the sum convex.

    Reference:
        Banner et al., Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment, NeurIPS 2019
        (ACIQ), which assumes a distribution where this one counts.
    """

    def range(self) -> tuple[float, float] | None:
        if super().range() is None:
            return None
        counts = self.counts.numpy()
        num_steps = INPUT_MAX - INPUT_MIN
        rounding = counts.sum() / (12 * num_steps**2)  # rounding * (high - low)^2 is the rounding error
        upper = _Tail(counts[BINS:], self.width)
        lower = _Tail(counts[:BINS][::-1], self.width)

        # At the minimum, values beyond either end exceed it by the same sum: rounding * (high - low).
        least, most = 0.0, rounding * 2 * BINS * self.width
        for _ in range(100):
            excess = (least + most) / 2
            if rounding * (upper.end(excess) + lower.end(excess)) > excess:
                least = excess
            else:
                most = excess
        return max(-lower.end(most), self.low), min(upper.end(most), self.high)


class _Tail:
    """One side of a histogram: how far the values beyond an end exceed it in sum, and back."""

    def __init__(self, counts: np.ndarray, width: float) -> None:
        counts = np.trim_zeros(counts, "b").astype(np.float64)
        self.ends = np.arange(len(counts) + 1) * width
        beyond = np.append(np.cumsum(counts[::-1])[::-1], 0.0)
        total = np.append(np.cumsum((counts * (self.ends[:-1] + width / 2))[::-1])[::-1], 0.0)
        self.excess = total - self.ends * beyond

    def end(self, excess: float) -> float:
        """The end that is exceeded by this sum; 0 if not even that is."""
        return float(np.interp(excess, self.excess[::-1], self.ends[::-1]))


#: How to choose a range; a method is a row.
OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "mse": MeanSquaredError,
}


def observer_factory(observer: str | Observer | Callable[[], Observer]) -> Callable[[], Observer]:
    """Return what makes an observer for each layer.

    Args:
        observer: a row of OBSERVERS, an observer that every layer gets a copy of (``Percentile(99.9)``), or its class.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(observer, str) and observer in OBSERVERS:
        return OBSERVERS[observer]
    if isinstance(observer, type):
        return observer
    if isinstance(observer, Observer):
        return lambda: copy.deepcopy(observer)
    raise ValueError(f"expected an observer of {', '.join(OBSERVERS)}, or such as Percentile(99.9), got {observer!r}")


def check_finite(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of a tensor with at least one.

    Raises:
        ValueError: one is NaN or infinite.
    """
    low, high = (value.item() for value in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            "expected finite activations, got NaN or infinity; check the calibration batches and the weights before it"
        )
    return low, high


def _quantile(counts: np.ndarray, values: np.ndarray, share: float) -> float:
    """Value at a share of the way through values in order, between two of them if need be (like numpy.quantile)."""
    cumulative = np.cumsum(counts)
    position = share * float(cumulative[-1] - 1)
    below = math.floor(position)
    at, after = (
        float(values[np.searchsorted(cumulative, rank, side="right")]) for rank in (below, math.ceil(position))
    )
    return at + (position - below) * (after - at)
