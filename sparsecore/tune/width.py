"""How many channels are fast: latency against the width of layers, measured around a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.graph import Call
from sparsecore.nn.dense import dense_layer
from sparsecore.tune.cache import TimeCache
from sparsecore.tune.candidates import candidates, holds_zeros
from sparsecore.tune.chooser import MARGIN
from sparsecore.tune.makers import DENSE
from sparsecore.tune.measure import make_forms, measure_layer

# A vector of the widest CPUs' kernels is 8 or 16 channels; 16 are two steps.
_LARGEST_STEP = 8
# A step is at most this share of the target, so that rounding down costs little accuracy.
_TARGET_PER_STEP = 8


def dense_time_us(layer: nn.Module, calls: Sequence[Call], cache: TimeCache | None) -> float:
    """Time a layer in the fastest form that has room for all of its weights, PyTorch's or ours, as compile() runs it.

    Args:
        layer: A layer of torch.nn, in the shape of interest; the values of its weights do not matter.
        calls: Its calls in one pass of a model.
        cache: Where times are looked up and put; None always measures.

    Returns:
        Microseconds of all calls together.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d):
        layer = dense_layer(layer)
    layer.eval()
    makers = {name: make for name, make in candidates(layer).items() if holds_zeros(layer, name)}
    is_ours = makers and all(call.dtype in FLOAT_DTYPES for call in calls)
    forms = make_forms(layer, makers, calls) if is_ours else {DENSE: layer}
    times, _ = measure_layer(layer, calls, forms, cache, is_recorded=True)
    return min(times.values())


def nearby_counts(target: int, most: int, width: int = 1) -> list[int]:
    """Counts of channels worth measuring: the target, and multiples of a step from one below to two above it.

    Args:
        target: Units that are to stay.
        most: Units that there are.
        width: Channels of a unit.

    Returns:
        Counts, rising. The step is a power of two: at most 8 channels, at most an eighth of the target.

    Example:
        >>> nearby_counts(45, 64), nearby_counts(179, 256), nearby_counts(3, 4)
        ([44, 45, 48, 52], [176, 179, 184, 192], [2, 3, 4])
    """
    step = _LARGEST_STEP
    while step > 1 and (step > target // _TARGET_PER_STEP or step * width > _LARGEST_STEP):
        step //= 2
    multiples = range(-(-(target - step) // step) * step, target + 2 * step + 1, step)
    return sorted({target, *(count for count in multiples if 1 <= count <= most)})


def fastest_count(time_us: Callable[[int], float], target: int, most: int, width: int = 1) -> int:
    """Round a number of channels to the fastest nearby; of those that are as fast, to the most.

    Args:
        time_us: Latency with that many units; times within 3% of the shortest are as short.
        target: As in :func:`nearby_counts`.
        most: As in :func:`nearby_counts`.
        width: As in :func:`nearby_counts`.

    Returns:
        A count that is at most a step below the target.

    Example:
        >>> fastest_count(lambda count: -(-count // 16) * 1.0, 45, 64)  # time goes with vectors of 16 channels
        48
    """
    times = {count: time_us(count) for count in nearby_counts(target, most, width)}
    shortest = min(times.values())
    return max(count for count, time in times.items() if time * MARGIN <= shortest)
