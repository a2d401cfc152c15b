"""Which layers may leave the model's numeric type, so that its output stays within an error."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from sparsecore.calibration import run_batches, watching


@dataclass(frozen=True)
class Budget:
    """An error budget and what became of it.

    Attributes:
        max_error: the largest relative error of the model's output that was allowed.
        error: what it is on the example, as measured with all layers in their final forms.
        num_given_up: layers that another numeric type makes faster, but that would exceed max_error.
    """

    max_error: float
    error: float
    num_given_up: int


def check_max_error(max_error: object) -> float:
    """Return a budget as a number.

    Raises:
        ValueError: it is not a finite number above 0; rounding alone takes float formats above 0.
    """
    is_number = isinstance(max_error, numbers.Real) and not isinstance(max_error, bool)
    value = float(cast(float, max_error)) if is_number else math.nan
    if not 0 < value < math.inf:
        raise ValueError(
            f"expected max_error as a finite number above 0, such as 0.01, got {max_error!r}; "
            "leave it out to stay in the model's own numeric type"
        )
    return value


def layer_errors(
    model: nn.Module, batches: Iterable[Any], forms: Mapping[nn.Module, nn.Module]
) -> dict[nn.Module, float]:
    """Measure how far each layer's own output is off in another form, in one pass of the model as it is.

    Args:
        model: the model, which stays as it is and runs with its own layers.
        batches: what to run it on.
        forms: layer to the other form.

    Returns:
        ``||y_form - y|| / ||y||`` over all calls of each layer; nothing is kept but the sums.
    """
    sums = {layer: [0.0, 0.0] for layer in forms}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        expected = y.double()
        sums[layer][0] += float((forms[layer](*inputs).double() - expected).square().sum())
        sums[layer][1] += float(expected.square().sum())

    names = {name: layer for name, layer in model.named_modules() if layer in forms}
    with watching(names, see):
        for _ in run_batches(model, batches):
            pass
    return {layer: _root_ratio(*pair) for layer, pair in sums.items()}


def _root_ratio(numerator: float, denominator: float) -> float:
    if numerator == 0:
        return 0.0
    ratio = math.sqrt(numerator / denominator) if denominator else math.inf
    return math.inf if math.isnan(ratio) else ratio


@dataclass(frozen=True)
class Trade:
    """A layer that is faster in another numeric type.

    Attributes:
        layer: as it is in the model.
        exact: its fastest form in its own numeric type.
        faster: the form that is faster still.
        saved: time, in any unit.
        error: relative error of its output.
    """

    layer: nn.Module
    exact: nn.Module
    faster: nn.Module
    saved: float
    error: float


def keep_within(
    trades: list[Trade], error_with: Callable[[Mapping[nn.Module, nn.Module]], float], max_error: float
) -> tuple[list[Trade], float]:
    """Give up trades until the model's output error is within the budget.

    The first to go are those that remove most error per time lost: the errors of layers add up in squares, as far as
    they are independent. How many have to go is found by bisection, so that n trades take about log2(n) runs. What is
    returned was measured: that giving up more leaves less error is no more than what guides the search.

    Args:
        trades: all of them.
        error_with: measures the model's output error with these forms in place of their layers.
        max_error: the budget.

    Returns:
        The trades to keep, and the measured error with them. Without any the error is rounding, whatever the budget.
    """
    order = sorted(trades, key=lambda trade: -trade.error * trade.error / trade.saved)

    def measure(num_given_up: int) -> float:
        return error_with(
            {trade.layer: trade.exact if i < num_given_up else trade.faster for i, trade in enumerate(order)}
        )

    error = measure(0)
    if error <= max_error or not order:
        return order, error
    too_few, enough, fitting = 0, len(order), None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        error = measure(middle)
        if error <= max_error:
            enough, fitting = middle, error
        else:
            too_few = middle
    return order[enough:], measure(enough) if fitting is None else fitting
