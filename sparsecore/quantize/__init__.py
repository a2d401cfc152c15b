"""Fewer bits per weight: int8 after training or with it, values shared by k-means, three values, one bit.

``quantize()`` needs no training. The others work inside one's own training loop, and end in int8 layers or in plain
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import nn

from sparsecore.calibration import check_batches, first_names
from sparsecore.prune.weights import Selector
from sparsecore.quantize.binary import clip_binary, prepare_binary
from sparsecore.quantize.groups import GROUP_SIZE
from sparsecore.quantize.layers import find_layers
from sparsecore.quantize.observers import OBSERVERS, MeanSquaredError, MinMax, Observer, Percentile
from sparsecore.quantize.qat import convert_qat, freeze_ranges, prepare_qat
from sparsecore.quantize.report import (
    ATTRIBUTE,
    LayerError,
    LayerRow,
    QuantizationReport,
    Sensitivity,
    quantization_report,
)
from sparsecore.quantize.scheme import Scheme
from sparsecore.quantize.sensitivity import ReferenceOutputs, fit_budget, sensitivity
from sparsecore.quantize.sharing import SharedWeights, share_weights
from sparsecore.quantize.simulated import fold_qat
from sparsecore.quantize.ternary import prepare_ternary

__all__ = [
    "OBSERVERS",
    "LayerError",
    "LayerRow",
    "MeanSquaredError",
    "MinMax",
    "Observer",
    "Percentile",
    "QuantizationReport",
    "Sensitivity",
    "SharedWeights",
    "clip_binary",
    "convert_qat",
    "fold_qat",
    "freeze_ranges",
    "prepare_binary",
    "prepare_qat",
    "prepare_ternary",
    "quantization_report",
    "quantize",
    "sensitivity",
    "share_weights",
]


def quantize(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    activations: Literal["dynamic", "static"] = "dynamic",
    exclude: Selector | Iterable[Selector] = (),
    observer: str | Observer | Callable[[], Observer] = "minmax",
    per_channel: bool = False,
    alpha: float = 0.5,
    bias_correction: bool = False,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    max_error: float | None = None,
    progress: bool = True,
) -> nn.Module:
    """Replace the linear layers and 2-D convolutions of a model by int8 ones, in place.

    nn.Linear and nn.Conv2d become Int8Linear and Int8Conv2d, SparseLinear and SparseConv2d their
    SparseInt8 forms; subclasses stay as they are. Weights are symmetric per output channel, and
    zeros stay exactly zero. Layers are replaced only after everything else went well.
    With ``bits=4`` linear layers become SparseInt4Linear, for pruned weights and a few rows of activations.
    ``quantization_report(model)`` says what became of each.

    Args:
        model: any module that contains such layers.
        batches: calibration data: tensors, tuples of positional or dicts of keyword arguments of the
            model, which runs in evaluation mode. A generator will do for static activations alone;
            per_channel, bias_correction and max_error run the batches more than once and need a list.
        activations: ``"dynamic"`` scales each row of activations (a token) by its own maximum when
            it comes; ``"static"`` takes one scale and zero point per layer from the calibration
            batches.
        exclude: what to leave alone: names of modules, fnmatch patterns (``"blocks.0.*"``) or
            module types. A module stands for all that is inside.
        observer: how the static range is chosen from what was seen: a row of OBSERVERS
            (``"minmax"``, ``"percentile"``, ``"mse"``), or an observer such as ``Percentile(99.9)``.
        per_channel: divide each input channel by a scale of its own, which goes into the weight, so
            that outlier channels do not take the range of the others; with either kind of activations.
        alpha: how much of a channel's range goes into the weight, 0 to 1; 1 is all.
        bias_correction: take the mean error of each output channel on the batches off the bias; one
            pass, with the inputs that layers have in the float model.
        bits: of the weights of linear layers, 8 or 4. With 4 they have a scale per output channel and group of
            inputs, the share of its largest magnitude with the least squared error; activations and convolutions
            stay int8.
        group_size: inputs that share a scale with ``bits=4``: a multiple of 16, at most 2048.
        max_error: largest relative error of the model's output on the batches, such as 0.01. Layers
            stay float, the most sensitive first, until the measured error is within it; with a
            warning if none can be quantized. See ``sensitivity()`` for the error.
        progress: write a line to stderr while it takes long.

    Returns:
        The same model.

    Raises:
        ValueError: an argument is out of range, batches are missing or empty, or an activation is
            NaN or infinite.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: there is nothing to quantize, or a layer that the int8 kernels cannot run.

    Example:
        >>> type(quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))[0]).__name__
        'Int8Linear'

        With ranges of activations from calibration batches:

        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> quantize(model, [torch.rand(16, 8)], activations="static")[0].x_zero_point
        -128

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, CVPR 2018.
    """
    scheme = Scheme(activations, observer, per_channel, alpha, bias_correction, bits, group_size)
    if max_error is not None and not max_error >= 0:
        raise ValueError(f"expected a max_error of at least 0, got {max_error}")
    if (scheme.uses_batches or max_error is not None) != (batches is not None):
        raise ValueError(
            'expected calibration batches exactly with activations="static", per_channel, bias_correction or max_error'
        )
    if batches is not None:
        batches = check_batches(batches, scheme.passes + (max_error is not None))
    layers = find_layers(model, exclude)
    quantized = scheme.quantize(model, layers, batches, progress)
    error, errors = None, dict[str, float]()
    if max_error is not None and batches is not None:
        reference = ReferenceOutputs(model, layers, batches)
        quantized, error, errors = fit_budget(reference, quantized, max_error, progress=progress)
    report = QuantizationReport(scheme.describe(), max_error, error, _rows(layers, quantized, errors))

    from sparsecore.nn import put_layer

    for name, layer in layers.items():
        if layer in quantized:
            put_layer(model, name, quantized[layer])
    setattr(model, ATTRIBUTE, report)
    return model


def _rows(
    layers: dict[str, nn.Module], quantized: dict[nn.Module, nn.Module], errors: dict[str, float]
) -> tuple[LayerRow, ...]:
    return tuple(
        LayerRow(name, type(layer).__name__, type(quantized.get(layer, layer)).__name__, errors.get(name))
        for layer, name in first_names(layers).items()
    )
