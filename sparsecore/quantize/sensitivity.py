"""How much quantizing each layer changes the model's output, and which layers an error budget leaves in float."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsecore.calibration import check_batches, first_names, progress_line, run_batches, watching
from sparsecore.prune.weights import Selector
from sparsecore.quantize.groups import GROUP_SIZE
from sparsecore.quantize.layers import find_layers
from sparsecore.quantize.observers import Observer
from sparsecore.quantize.report import LayerError, Sensitivity
from sparsecore.quantize.scheme import Scheme


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    activations: Literal["dynamic", "static"] = "dynamic",
    exclude: Selector | Iterable[Selector] = (),
    observer: str | Observer | Callable[[], Observer] = "minmax",
    per_channel: bool = False,
    alpha: float = 0.5,
    bias_correction: bool = False,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    progress: bool = True,
) -> Sensitivity:
    """Measure how far the model's output is off when one layer at a time is quantized.

    The error of an output is ``||y_quantized - y|| / ||y||`` over all batches; where the model has several outputs
    (a tuple, a dict, a ModelOutput), the worst of them counts. The float outputs of all batches stay in memory.

    Args:
        model: any module; it stays as it is.
        batches: what to run it on, in a list; see ``quantize()``, as for the other arguments.
        activations: ``"dynamic"`` or ``"static"``.
        exclude: what to leave alone.
        observer: how a static range is chosen.
        per_channel: scale input channels.
        alpha: of per_channel.
        bias_correction: correct the mean of the outputs.
        bits: of the weights of linear layers, 8 or 4.
        group_size: inputs that share a scale with ``bits=4``.
        progress: write a line to stderr while it takes long.

    Returns:
        Rows (layer, error), the most sensitive first; ``print()`` shows a table.

    Raises:
        ValueError: an argument is out of range, batches are missing, empty or a generator, or an activation is NaN
            or infinite.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: there is nothing to quantize, or a layer that the int8 kernels cannot run.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sorted(layer for layer, error in sensitivity(model, [torch.rand(16, 8)]))
        ['0', '2']
    """
    scheme = Scheme(activations, observer, per_channel, alpha, bias_correction, bits, group_size)
    batches = check_batches(batches, scheme.passes + 1)
    layers = find_layers(model, exclude)
    quantized = scheme.quantize(model, layers, batches, progress)
    with progress_line(progress) as show:
        errors = ReferenceOutputs(model, layers, batches).errors_alone(quantized, show)
    return Sensitivity(tuple(sorted(errors, key=lambda row: -row.error)))


class ReferenceOutputs:
    """The float outputs of a model on batches, and how far those with int8 layers are from them.

    Raises:
        ValueError: an output is NaN.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.names = first_names(layers)
        self.expected = [[y.clone() for y in _float_tensors(output)] for output in run_batches(model, batches)]
        for index, outputs in enumerate(self.expected):
            if any(bool(y.isnan().any()) for y in outputs):
                raise ValueError(f"expected numbers from the model, got NaN on calibration batch {index}")

    def error(self, quantized: Mapping[nn.Module, nn.Module]) -> float:
        """Return the relative error of the worst output with these layers in place of their float ones.

        Outputs of other shapes, such as another number of detected objects, are infinitely far.
        """
        watched = {self.names[layer]: layer for layer in quantized}
        squares: dict[int, list[float]] = {}
        with watching(watched, lambda layer, inputs, _: quantized[layer](*inputs)):
            outputs = run_batches(self.model, self.batches)
            for output, expected in zip(outputs, self.expected, strict=True):
                found = list(_float_tensors(output))
                if [y.shape for y in found] != [y.shape for y in expected]:
                    return math.inf
                for index, pair in enumerate(zip(found, expected, strict=True)):
                    sums = squares.setdefault(index, [0.0, 0.0])
                    for i, square in enumerate(_squares(*pair)):
                        sums[i] += square
        return max((_root_ratio(*sums) for sums in squares.values()), default=0.0)

    def errors_alone(self, quantized: Mapping[nn.Module, nn.Module], show: Callable[[str], None]) -> list[LayerError]:
        """Return the error of each layer alone, in the order of the model."""
        rows = []
        for done, (layer, form) in enumerate(quantized.items()):
            show(f"sensitivity: {done} of {len(quantized)} layers")
            rows.append(LayerError(self.names[layer], self.error({layer: form})))
        return rows


def fit_budget(
    reference: ReferenceOutputs,
    quantized: Mapping[nn.Module, nn.Module],
    max_error: float,
    *,
    progress: bool = True,
) -> tuple[dict[nn.Module, nn.Module], float, dict[str, float]]:
    """Leave out layers, the most sensitive first, until the model's output error is within the budget.

    Args:
        reference: the float model's outputs.
        quantized: all layers in int8, by their float form.
        max_error: the budget.
        progress: write a line to stderr while it takes long.

    Returns:
        The layers to quantize, the error with them, and the error of each layer alone by name (empty if all fit).
    """
    kept = dict(quantized)
    error = reference.error(kept)
    if error <= max_error:
        return kept, error, {}
    with progress_line(progress) as show:
        rows = reference.errors_alone(quantized, show)
        errors = dict(zip(quantized, (row.error for row in rows), strict=True))
        for layer in sorted(errors, key=lambda layer: -errors[layer]):
            del kept[layer]
            error = reference.error(kept) if kept else 0.0
            show(f"error budget: {error:.3%} with {len(kept)} of {len(quantized)} layers in int8")
            if error <= max_error:
                break
    if not kept:
        least = min(rows, key=lambda row: row.error)
        warnings.warn(
            f"no layer was quantized: max_error is {max_error:.3%}, and {least.layer} alone, the least sensitive, "
            f"changes the output by {least.error:.3%}",
            stacklevel=3,
        )
    return kept, error, dict(rows)


def _float_tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    elif is_dataclass(output):
        parts = (getattr(output, field.name) for field in fields(output))
    for part in parts:
        yield from _float_tensors(part)


def _squares(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """||found - expected||^2 and ||expected||^2; infinities, such as masked scores, count where they are not kept."""
    found, expected = found.double(), expected.double()
    difference = torch.where(found == expected, 0.0, found - expected)
    magnitude = torch.where(expected.isinf(), 0.0, expected)
    return float(difference.square().sum()), float(magnitude.square().sum())


def _root_ratio(numerator: float, denominator: float) -> float:
    if numerator == 0:
        return 0.0
    ratio = math.sqrt(numerator / denominator) if denominator else math.inf
    return ratio if not math.isnan(ratio) else math.inf
