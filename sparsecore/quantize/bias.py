"""Bias correction: rounding the weights shifts the mean of a layer's outputs, and the bias can take that back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.calibration import counted, progress_line, run_batches, watching
from sparsecore.quantize.channels import channel_rows


def correct_bias(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    quantized: Mapping[nn.Module, nn.Module],
    batches: Iterable[Any],
    *,
    progress: bool = True,
) -> None:
    """Take the mean error of each output channel off the biases of quantized layers, in place.

    One pass: every layer is corrected on the inputs that it has in the float model, so what the layers before it
    still do wrong is not made up for. An activation in the layer is left out on both sides. Layers that did not run
    stay as they are.

    Args:
        model: the float model.
        layers: its layers to quantize, by name.
        quantized: their int8 forms; the bias is made if there is none, and is float32 afterwards.
        batches: what to run the model on.
        progress: write a line to stderr while it takes long.

    Reference:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, sec. 4.2 and
        appendix D (with data).
    """
    plain = {layer: (_without_activation(layer), _without_activation(form)) for layer, form in quantized.items()}
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        exact, rounded = (form.forward(*inputs) for form in plain[layer])
        error = channel_rows(rounded.double() - exact.double(), layer)
        sums[layer] = sums.get(layer, 0) + error.sum(0)
        counts[layer] = counts.get(layer, 0) + error.shape[0]

    with watching(layers, see), progress_line(progress) as show:
        for _ in run_batches(model, counted(batches, show, "correcting biases")):
            pass
    for layer, total in sums.items():
        if counts[layer]:
            _shift_bias(quantized[layer], -total / counts[layer])


def _without_activation(layer: nn.Module) -> Any:
    """A view of a layer that shares its tensors."""
    if getattr(layer, "activation", "none") == "none":
        return layer
    plain: Any = copy.copy(layer)
    plain.activation = "none"
    return plain


def _shift_bias(layer: nn.Module, shift: Tensor) -> None:
    bias = layer.bias
    corrected = shift if bias is None else bias.detach().double() + shift  # type: ignore[operator]
    layer.bias = nn.Parameter(corrected.to(torch.float32), requires_grad=False)
