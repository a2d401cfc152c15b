"""Which layers may leave the model's numeric type, so that its output stays within an error."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        num_given_up: layers that max_error keeps from a faster numeric type, or in their own one since the others'
            errors, each alone, exceed it; those are not timed.
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
    model: nn.Module, batches: Iterable[Any], forms: Mapping[nn.Module, Mapping[str, nn.Module]]
) -> dict[nn.Module, dict[str, float]]:
    """Measure how far each layer's own output is off in other forms, in one pass of the model as it is.

    Args:
        model: the model, which stays as it is and runs with its own layers.
        batches: what to run it on.
        forms: layer to its other forms by name.

    Returns:
        ``||y_form - y|| / ||y||`` over all calls, by layer and name; nothing is kept but the sums.
    """
    sums = {layer: {name: [0.0, 0.0] for name in others} for layer, others in forms.items() if others}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        expected = y.double()
        square = float(expected.square().sum())
        for name, pair in sums[layer].items():
            pair[0] += float((forms[layer][name](*inputs).double() - expected).square().sum())
            pair[1] += square

    if not sums:
        return {}
    names = {name: layer for name, layer in model.named_modules() if layer in sums}
    with watching(names, see):
        for _ in run_batches(model, batches):
            pass
    return {layer: {name: _root_ratio(*pair) for name, pair in pairs.items()} for layer, pairs in sums.items()}


def _root_ratio(numerator: float, denominator: float) -> float:
    if numerator == 0:
        return 0.0
    ratio = math.sqrt(numerator / denominator) if denominator else math.inf
    return math.inf if math.isnan(ratio) else ratio


def excessive(errors: Mapping[str, float], error_alone: Callable[[str], float], max_error: float) -> frozenset[str]:
    """Return the forms of a layer that exceed the budget even if no other layer changes.

    One whose own output is within the budget is taken to fit. Of the others the most exact are tried first: with one
    that exceeds it all that are less exact do.

    Args:
        errors: relative error of the layer's output by form.
        error_alone: measures the model's output error with the layer in a form.
        max_error: the budget.
    """
    forms = sorted((form for form in errors if errors[form] > max_error), key=lambda form: errors[form])
    for at, form in enumerate(forms):
        if error_alone(form) > max_error:
            return frozenset(forms[at:])
    return frozenset()


@dataclass(frozen=True)
class Option:
    """A form that a layer may get.

    Attributes:
        name: of the form.
        form: the layer in it.
        time: in any unit.
        error: relative error of the layer's output; 0 in its own numeric type.
    """

    name: str
    form: nn.Module
    time: float
    error: float


def keep_within(
    options: Mapping[nn.Module, Sequence[Option]],
    error_with: Callable[[Mapping[nn.Module, nn.Module]], float],
    max_error: float,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[nn.Module, Option], float]:
    """Choose the fastest options whose error together is within the budget.

    All layers start with their fastest option. While the model's error is too large, layers go on to slower and more
    exact ones; first where that removes most error of the model per time lost: what a layer by itself, in its fastest
    option, does to the model's output is measured, and such errors add up in squares, as far as they are independent.
    (In a ResNet-50 with random weights the first layers' errors reach the output 10 times as large, the last ones' a
    fifth as large.) How many steps it takes is found by bisection: a run for every layer, and log2(n) for n steps.
    What is returned was measured: that more steps leave less error is no more than what guides the search.

    Args:
        options: of each layer.
        error_with: measures the model's output error with these forms in place of their layers.
        max_error: the budget.
        progress: called with the share of runs done.

    Returns:
        The choice for each layer, and the measured error with it. With the most exact option everywhere the error is
        rounding, whatever the budget.
    """
    fastest = {layer: _fastest_first(of_layer)[0] for layer, of_layer in options.items()}
    steps = [step for item in options.items() for step in _steps(*item)]

    def after(num_steps: int) -> dict[nn.Module, Option]:
        return fastest | {step.layer: step.to for step in steps[:num_steps]}

    def measure(num_steps: int) -> float:
        return error_with({layer: option.form for layer, option in after(num_steps).items()})

    error = measure(0)
    if error <= max_error or not steps:
        return fastest, error
    growth: dict[nn.Module, float] = {}
    inexact = list(dict.fromkeys(step.layer for step in steps))
    for done, layer in enumerate(inexact, start=1):
        growth[layer] = _growth(fastest[layer], error_with({layer: fastest[layer].form}))
        progress(done / len(inexact))
    steps.sort(key=lambda step: -step.gain * growth[step.layer] ** 2)
    too_few, enough, fitting = 0, len(steps), None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        error = measure(middle)
        if error <= max_error:
            enough, fitting = middle, error
        else:
            too_few = middle
    return after(enough), measure(enough) if fitting is None else fitting


def _growth(option: Option, error_at_output: float) -> float:
    """How much larger an error of a layer is at the output of the model, if that can be told."""
    return error_at_output / option.error if 0 < option.error < math.inf else 1.0


@dataclass(frozen=True)
class _Step:
    """A layer goes on to a slower and more exact option.

    gain: square of the error of its own output that goes, per time lost.
    """

    layer: nn.Module
    to: Option
    gain: float


def _steps(layer: nn.Module, options: Sequence[Option]) -> list[_Step]:
    """From the fastest option of a layer to the most exact one, gains falling.

    An option between two others that gains less than going past it at once shares the gain of that way.
    """
    front = _fastest_first(options)
    steps: list[_Step] = []
    at = 0
    while at < len(front) - 1:
        gains = {to: _gain(front[at], front[to]) for to in range(at + 1, len(front))}
        best = max(gains, key=lambda to: gains[to])
        gain = min(gains[best], steps[-1].gain) if steps else gains[best]  # rounding must not swap steps
        steps += [_Step(layer, option, gain) for option in front[at + 1 : best + 1]]
        at = best
    return steps


def _gain(before: Option, after: Option) -> float:
    return (before.error * before.error - after.error * after.error) / (after.time - before.time)


def _fastest_first(options: Sequence[Option]) -> list[Option]:
    """Those to which no other is both as fast and as exact, the fastest and least exact first."""
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (option.time, option.error)):
        if not front or option.error < front[-1].error:
            front.append(option)
    return front
