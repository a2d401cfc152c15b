"""Quantization-aware training: layers that compute as their int8 forms will, with gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from sparsecore.calibration import first_names
from sparsecore.errors import UnsupportedError
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.weights import Selector
from sparsecore.quantize.calibrate import observe
from sparsecore.quantize.integer_arithmetic import IntegerArithmetic, LearnedSteps
from sparsecore.quantize.layers import quantize_layer
from sparsecore.quantize.report import ATTRIBUTE, LayerRow, QuantizationReport
from sparsecore.quantize.scheme import Scheme
from sparsecore.quantize.simulated import (
    SimulatedLinear,
    Simulation,
    replace_layer,
    require_unshared,
    simulate,
    simulated_layers,
    trainable_layers,
)

INT8_BITS = 8


def prepare_qat(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    bits: int = 8,
    activation_bits: int | None = None,
    activations: Literal["dynamic", "static"] = "static",
    steps: Literal["range", "learned"] = "range",
    exclude: Selector | Iterable[Selector] = (),
    skip_ends: bool = False,
    progress: bool = True,
) -> nn.Module:
    """Make a model train with quantized weights and activations, in place.

    nn.Linear and nn.Conv2d (not their subclasses) are swapped for layers that hold the same parameters, so optimizers
    and masks go on working: prune first, quantize last, and entries that are zero stay exactly zero. Train as usual,
    then ``convert_qat()`` gives int8 layers and ``fold_qat()`` plain ones. In evaluation mode the output of a layer
    equals that of its int8 form to the bit; in training it is summed in float32.

    Weights are symmetric per output channel, their integers at most 2^(bits - 1) - 1, with a straight-through
    gradient. Static activations have one range per layer, the moving average of the batches' extremes (0.9 of the
    old one in each training step); outside of it the gradient is zero. Dynamic ones are scaled per row.

    A BatchNorm stays where it is. Fold it first, ``sparsecore.graph.fold_batchnorm(model, example_inputs)``, so that
    training sees the weights that will be quantized.

    Args:
        model: any module that contains such layers.
        batches: calibration data to start the static ranges from, as for ``quantize()``; without it they start with
            the first training batch.
        bits: of the weights, 2 to 8.
        activation_bits: of the activations, 2 to 8; None for as many as the weights have. int8 kernels run weights of
            any bits with activations of 8; for fewer there is no kernel, and ``fold_qat()`` is the way out.
        activations: ``"static"`` or ``"dynamic"``, see ``quantize()``.
        steps: ``"range"`` as above. ``"learned"``: the scales of weights and of static activations are parameters and
            are trained, which pays with few bits (8 start better from ranges); make the optimizer afterwards, so that
            it holds them. Static activations need ``batches`` then, to start from.
        exclude: what to leave alone: names of modules, fnmatch patterns or module types.
        skip_ends: leave the first and the last layer alone too, in the order of the model.
        progress: write a line to stderr while calibration takes long.

    Returns:
        The same model.

    Raises:
        ValueError: an argument is out of range, batches are empty, one did not reach a layer, or an activation is NaN
            or infinite.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: there is nothing to quantize, a layer that the int8 kernels cannot run, or one weight would
            have the learned steps of two layers.

    Example:
        >>> model = prepare_qat(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
        >>> model(torch.rand(16, 8)).sum().backward()
        >>> convert_qat(model)[0]
        Int8Linear(in_features=8, out_features=4, bias=True, x_scale=..., x_zero_point=-128)

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        CVPR 2018, sec. 3. Learned steps: Esser et al., Learned Step Size Quantization, ICLR 2020.
    """
    if steps not in ("range", "learned"):
        raise ValueError(f'expected steps "range" or "learned", got {steps!r}')
    activation_bits = bits if activation_bits is None else activation_bits
    for what, value in (("bits", bits), ("activation_bits", activation_bits)):
        if type(value) is not int or not 2 <= value <= INT8_BITS:
            raise ValueError(f"expected {what} from 2 to 8, got {value!r}")
    is_static = Scheme(activations).activations == "static"
    if batches is not None and not is_static:
        raise ValueError('expected calibration batches only with activations="static"')
    if steps == "learned" and is_static and batches is None:
        raise ValueError('expected calibration batches for steps="learned", which start from the ranges of activations')
    layers = trainable_layers(model, exclude, skip_ends)
    if steps == "learned":
        require_unshared(layers, "learned steps", 'steps="range"')
    ranges = {} if batches is None else observe(model, layers, batches, progress=progress)

    def make(name: str, layer: nn.Module) -> Simulation:
        if activation_bits == INT8_BITS:
            quantize_layer(name, layer, {})  # says what the kernels lack before training, not after
        if steps == "learned":
            return LearnedSteps(name, bits, activation_bits, layer.get_parameter("weight"), ranges.get(layer))
        simulation = IntegerArithmetic(name, bits, activation_bits, is_static)
        if layer in ranges:
            simulation.x_range = torch.tensor(ranges[layer])
        return simulation

    return simulate(model, layers, make)


def freeze_ranges(model: nn.Module) -> nn.Module:
    """Keep the ranges of static activations as they are while training goes on, in place.

    For the last part of training: the weights then settle on the steps that the deployed model has. What a
    checkpoint holds are the ranges; call this again after loading one.

    Args:
        model: from ``prepare_qat()``.

    Returns:
        The same model.

    Raises:
        ValueError: a layer with static activations never ran in training; nothing is frozen.
        UnsupportedError: the model has no layers from ``prepare_qat()``.

    Example:
        >>> model = prepare_qat(nn.Sequential(nn.Linear(8, 4)), [torch.rand(16, 8)])
        >>> before = model[0].simulation.seen_range()
        >>> _ = freeze_ranges(model)(100 * torch.rand(16, 8))
        >>> model[0].simulation.seen_range() == before
        True

    Reference:
        Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342, 2018,
        sec. 3.2, for BatchNorm's statistics, which are folded here.
    """
    found = [layer.get_submodule("simulation") for layer in simulated_layers(model).values()]
    simulations = [simulation for simulation in found if isinstance(simulation, IntegerArithmetic)]
    if not simulations:
        raise UnsupportedError(f"expected a model from prepare_qat(), got a {type(model).__name__} trained otherwise")
    for simulation in simulations:
        if simulation.x_range is not None:
            simulation.seen_range()
    for simulation in simulations:
        simulation.is_range_frozen = True
    return model


@torch.no_grad()
def convert_qat(model: nn.Module) -> nn.Module:
    """Replace the layers of a model trained by ``prepare_qat()`` by int8 ones, in place.

    Int8Linear and Int8Conv2d hold the same integers, scales and ranges, so their outputs equal those of the model in
    evaluation mode to the bit; weights of fewer bits are stored as int8. ``compile()`` and ``convert()`` then choose
    among the int8 formats, those without zeros too.

    Args:
        model: from ``prepare_qat()`` with ``activation_bits=8``.

    Returns:
        The same model.

    Raises:
        ValueError: a layer with static activations never ran in training.
        FormatError: a weight has become NaN or infinite.
        UnsupportedError: there is nothing to convert, or activations have fewer than 8 bits.
    """
    layers = simulated_layers(model)
    converted = {layer: _int8_layer(name, layer) for layer, name in first_names(layers).items()}
    rows = [
        LayerRow(name, type(layer).__name__, type(converted[layer]).__name__, None)
        for layer, name in first_names(layers).items()
    ]
    for name, layer in layers.items():
        replace_layer(model, name, converted[layer])
    setattr(model, ATTRIBUTE, QuantizationReport({"training": "quantization-aware"}, None, None, tuple(rows)))
    return model


def _int8_layer(name: str, layer: Any) -> nn.Module:
    from sparsecore.formats import Int8Weight  # late, like sparsecore.nn: both build on this package
    from sparsecore.nn import Int8Conv2d, Int8Linear

    simulation = layer.simulation
    if not isinstance(simulation, IntegerArithmetic):
        raise UnsupportedError(f"{name} was not trained for int8; fold_qat() makes it plain")
    if simulation.activation_bits != INT8_BITS:
        raise UnsupportedError(
            f"{name} has activations of {simulation.activation_bits} bits, which no kernel takes: train with "
            "activation_bits=8, which runs with weights of any bits, or take plain layers from fold_qat()"
        )
    require_finite(f"{name}.weight", layer.weight)
    settings = simulation.static_settings()
    integers, scale = simulation.weight_integers(layer.weight)
    weight = Int8Weight(integers.flatten(1).to(torch.int8), scale.flatten())
    kind: Any = Int8Linear if isinstance(layer, SimulatedLinear) else Int8Conv2d
    return kind.with_weight(layer, weight, **settings).train(layer.training)
