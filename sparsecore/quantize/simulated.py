"""Layers for training that compute with quantized weights; they hold the parameters of the layers they stand for.

A layer in training is a geometry (SimulatedLinear, SimulatedConv2d) with a simulation, which says what is computed from
the parameters: integers in qat.py, one bit in binary.py, three values in ternary.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.calibration import first_names
from sparsecore.errors import UnsupportedError, require_module
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.weights import Selector, require_floating_point
from sparsecore.quantize.layers import find_layers


class Geometry(Protocol):
    """What a simulation asks of its layer."""

    weight: Tensor
    bias: Tensor | None
    row_dims: tuple[int, ...]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Do the layer with these tensors."""


class Simulation(nn.Module):
    """How a layer computes in training: by default like the plain one, from other values of the weight."""

    def values(self, weight: Tensor) -> Tensor:
        """Return what the layer multiplies with in the weight's place: in evaluation mode, what becomes of it."""
        raise NotImplementedError

    def forward(self, x: Tensor, layer: Geometry) -> Tensor:
        return layer.product(x, self.values(layer.weight), layer.bias)


class SimulatedLinear(nn.Linear):
    """An nn.Linear whose output its simulation computes."""

    plain_type = nn.Linear
    row_dims = (-1,)
    simulation: Simulation

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.simulation(x, self)
        return y


class SimulatedConv2d(nn.Conv2d):
    """An nn.Conv2d whose output its simulation computes."""

    plain_type = nn.Conv2d
    row_dims = (-3, -2, -1)
    simulation: Simulation

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.simulation(x, self)
        return y


SIMULATED: dict[type[nn.Module], type[nn.Module]] = {
    kind.plain_type: kind for kind in (SimulatedLinear, SimulatedConv2d)
}


def trainable_layers(model: nn.Module, exclude: Selector | Iterable[Selector], skip_ends: bool) -> dict[str, nn.Module]:
    """Return the plain linear layers and 2-D convolutions to swap, under each of their names.

    Args:
        model: any module.
        exclude: what to leave alone: names, fnmatch patterns or types of modules.
        skip_ends: leave the first and the last of these layers alone too, in the order of the model.

    Raises:
        ValueError: a name in ``exclude`` means nothing in the model.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: nothing is left, or a weight is not the layer's own.
    """
    layers = find_layers(model, exclude, SIMULATED)
    if skip_ends:
        every = list(find_layers(model, (), SIMULATED).values())
        layers = {name: layer for name, layer in layers.items() if layer not in (every[0], every[-1])}
        if not layers:
            raise UnsupportedError(f"no layer is left between the first and the last of {type(model).__name__}")
    _require_own_weights(model, layers)
    return layers


def require_unshared(layers: Mapping[str, nn.Module], what: str, way_out: str) -> None:
    """Raise UnsupportedError where two layers hold one weight.

    Args:
        layers: from ``trainable_layers()``.
        what: of which a weight cannot have two.
        way_out: the setting that does without them.
    """
    owners: dict[int, tuple[str, nn.Module]] = {}
    for name, layer in layers.items():
        first, owner = owners.setdefault(id(layer.get_parameter("weight")), (name, layer))
        if owner is not layer:
            raise UnsupportedError(
                f"{first} and {name} share a weight, which cannot have the {what} of both; take {way_out}, or leave "
                f"both as they are with exclude={[first, name]}"
            )


def simulate(
    model: nn.Module, layers: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Simulation]
) -> nn.Module:
    """Swap layers for their form in training, in place.

    Args:
        model: any module.
        layers: from ``trainable_layers()``.
        make: gives the simulation of a layer, by its first name and itself; errors leave the model as it is.
    """
    swapped = {layer: _swapped(layer, make(name, layer)) for layer, name in first_names(layers).items()}
    for name, layer in layers.items():
        replace_layer(model, name, swapped[layer])
    return model


def simulated_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers in training under each of their names.

    Raises:
        UnsupportedError: there are none.
    """
    require_module(model)
    kinds = tuple(SIMULATED.values())
    found = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, kinds)}
    if not found:
        raise UnsupportedError(
            f"expected a model from prepare_qat(), prepare_binary() or prepare_ternary(), got a {type(model).__name__} "
            "without layers in training"
        )
    return found


@torch.no_grad()
def fold_qat(model: nn.Module) -> nn.Module:
    """Turn layers in training back into nn.Linear and nn.Conv2d, with the quantized values as weights, in place.

    The parameters stay the same objects. Activations are no longer quantized.

    Args:
        model: from ``prepare_qat()``, ``prepare_binary()`` or ``prepare_ternary()``.

    Returns:
        The same model.

    Raises:
        FormatError: a weight has become NaN or infinite; nothing is changed.
        UnsupportedError: the model has no layers in training.

    Example:
        >>> from sparsecore.quantize import prepare_binary
        >>> model = fold_qat(prepare_binary(nn.Sequential(nn.Linear(8, 4)), scale="layer"))
        >>> type(model[0]).__name__, len(model[0].weight.abs().unique())
        ('Linear', 1)
    """
    layers = simulated_layers(model)
    values: dict[nn.Module, Tensor] = {}
    for layer, name in first_names(layers).items():
        require_finite(f"{name}.weight", layer.get_parameter("weight"))
        values[layer] = _final_values(layer)
        require_finite(f"{name}: the quantized weight", values[layer])
    plain = {layer: _plain(layer) for layer in values}
    for layer, value in values.items():
        layer.get_parameter("weight").copy_(value)
    for name, layer in layers.items():
        model.set_submodule(name, plain[layer])
    return model


def _final_values(layer: Any) -> Tensor:
    was_training = layer.simulation.training
    layer.simulation.eval()
    values: Tensor = layer.simulation.values(layer.weight)
    layer.simulation.train(was_training)
    return values


def _require_own_weights(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Weights are parameters with finite values, and folding them changes nothing else."""
    names = first_names(layers)
    others = {
        id(parameter): name
        for name, module in model.named_modules()
        if module not in names
        for parameter in module.parameters(recurse=False)
    }
    for layer, name in names.items():
        weight = layer._parameters.get("weight")
        if weight is None:
            raise UnsupportedError(
                f"{name}.weight is computed from other parameters; Masks.from_model(model) makes pruning by "
                f"torch.nn.utils plain, exclude={name!r} leaves the layer out"
            )
        if weight.is_meta:
            raise UnsupportedError(f"{name}.weight has no values yet; initialise the model first")
        require_floating_point(f"{name}.weight", weight)
        require_finite(f"{name}.weight", weight)
        if id(weight) in others:
            raise UnsupportedError(
                f"{name} shares its weight with {others[id(weight)]}, which stays as it is; exclude={name!r} leaves "
                "both alone"
            )


def _swapped(layer: nn.Module, simulation: Simulation) -> nn.Module:
    swapped = _converted(layer, SIMULATED[type(layer)])
    swapped.simulation = simulation.to(layer.get_parameter("weight").device)
    return swapped.train(layer.training)


def _plain(layer: Any) -> nn.Module:
    plain = _converted(layer, layer.plain_type)
    del plain.simulation
    return plain


def _converted(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A layer of another class with the same settings, hooks, parameters and buffers."""
    converted = kind.__new__(kind)
    converted.__dict__.update(layer.__dict__)
    for registry in ("_parameters", "_buffers", "_modules"):
        converted.__dict__[registry] = dict(layer.__dict__[registry])
    return converted


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another one; its parents call it from now on."""
    from sparsecore.nn import leave_fast_path  # late: sparsecore.nn builds on this package

    model.set_submodule(name, layer)
    leave_fast_path(model, name)
