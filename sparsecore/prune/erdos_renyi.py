"""How the entries that stay are shared out between layers, as in a sparse random graph."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from math import prod


def erdos_renyi_kept(shapes: Sequence[Sequence[int]], num_kept: int) -> list[int]:
    """Share out the entries to keep so that small layers stay denser than large ones.

    A weight keeps entries in proportion to the sum of its shape: its density is ``epsilon * sum(shape) / prod(shape)``,
    for a linear layer ``epsilon * (n_in + n_out) / (n_in * n_out)``, for a convolution ``epsilon * (n_in + n_out + kh +
    kw) / (n_in * n_out * kh * kw)``, the same epsilon for all. A weight that this would give more than all of its
    entries keeps all, one that it would give less than one entry keeps one, and the others share the rest.

    Whole numbers come from rounding every ``epsilon * sum(shape)``, with the epsilon that makes their sum right
    (Webster's method; of equal claims the earlier weight's counts). So no weight gains when fewer entries are kept.

    Args:
        shapes: Shape of every weight, without zeros.
        num_kept: Entries to keep over all of them; at least one of each stays.

    Returns:
        Entries to keep of each weight; their sum is ``max(num_kept, len(shapes))``.

    Example:
        >>> erdos_renyi_kept([(100, 100), (10, 10)], 1100)  # the small one is full, the other takes the rest
        [1000, 100]

    Reference:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science, Nature Communications 2018. With the sizes of the filter: Evci et al., Rigging the lottery:
        making all tickets winners, ICML 2020.
    """
    sizes, numels = [sum(shape) for shape in shapes], [prod(shape) for shape in shapes]
    total = max(num_kept, len(shapes))
    epsilon = _epsilon(sizes, numels, total)
    kept = [int(_clamp(epsilon * size, numel) + Fraction(1, 2)) for size, numel in zip(sizes, numels, strict=True)]

    layers = range(len(sizes))
    while sum(kept) < total:
        growing = (i for i in layers if kept[i] < numels[i])
        kept[min(growing, key=lambda i: Fraction(2 * kept[i] + 1, sizes[i]))] += 1
    while sum(kept) > total:
        shrinking = (i for i in reversed(layers) if kept[i] > 1)
        kept[max(shrinking, key=lambda i: Fraction(2 * kept[i] - 1, sizes[i]))] -= 1
    return kept


def _epsilon(sizes: Sequence[int], numels: Sequence[int], total: int) -> Fraction:
    """Solve sum(clamp(epsilon * size)) = total exactly: the sum is linear between the points where a clamp ends."""

    def held(epsilon: Fraction) -> Fraction:
        return sum((_clamp(epsilon * size, numel) for size, numel in zip(sizes, numels, strict=True)), Fraction(0))

    ends = [(Fraction(1, size), Fraction(numel, size)) for size, numel in zip(sizes, numels, strict=True)]
    points = sorted({point for pair in ends for point in pair})
    above = bisect_left(points, Fraction(total), key=held)
    if above == 0:
        return points[0]
    low, high = points[above - 1], points[above]
    return low + (high - low) * (total - held(low)) / (held(high) - held(low))


def _clamp(share: Fraction, numel: int) -> Fraction:
    return min(max(share, Fraction(1)), Fraction(numel))
