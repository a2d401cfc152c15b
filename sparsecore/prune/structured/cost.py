"""What a model costs, layer by layer: channels, parameters, multiply-adds; also after a cut that is not made yet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from sparsecore.calls import ExampleInputs, cloned
from sparsecore.cost import count_by_layer
from sparsecore.errors import require_module
from sparsecore.prune.structured.copies import copy_to, inputs_to
from sparsecore.prune.structured.edits import Edits, Shapes, shapes_of
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.layers import is_producer, output_dim


@dataclass(frozen=True)
class Costs:
    """Parameters and multiply-adds of a model on its example inputs; prints as a table.

    Counted are the products with the weights of convolutions and linear layers; the products of activations with
    each other in attention, norms and additions are not. A multiply-add is two operations (FLOPs).

    Attributes:
        shapes: Of every parameter.
        buffers: Of every buffer, and of weights under names that are no parameter's: tied or computed ones.
        positions: For each layer how often each entry of its weight is used: pixels or rows, batch included.
        output_dims: For each layer the dimension of its weight that is its output channels.
    """

    shapes: Shapes
    buffers: Shapes
    positions: Mapping[str, int]
    output_dims: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all layers."""
        return sum(map(self.multiply_adds_of, self.positions))

    @property
    def flops(self) -> int:
        """Operations: two per multiply-add."""
        return 2 * self.multiply_adds

    def multiply_adds_of(self, layer: str) -> int:
        """Multiply-adds of one layer."""
        return self.positions[layer] * math.prod(self._weight_shape(layer))

    def parameters_of(self, layer: str) -> int:
        """Parameters of one layer."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.rpartition(".")[0] == layer)

    def channels_of(self, layer: str) -> int:
        """Output channels of one layer."""
        return self._weight_shape(layer)[self.output_dims[layer]]

    def after(self, edits: Edits) -> Costs:
        """Return the costs of the model after a cut, exactly; nothing is run.

        Args:
            edits: A cut of the model that was counted.
        """
        return self._with(edits.shapes_after({**self.shapes, **self.buffers}))

    def without(self, units: Iterable[Unit]) -> Costs:
        """Return the costs of the model without some of its units, each given once; nothing is run."""
        removed: Counter[tuple[str, int]] = Counter()
        for unit in units:
            removed.update({place: len(indices) for place, indices in unit.slices.items()})
        shapes = {name: list(shape) for name, shape in {**self.shapes, **self.buffers}.items()}
        for (name, dim), count in removed.items():
            shapes[name][dim] -= count
        return self._with({name: tuple(shape) for name, shape in shapes.items()})

    def compare(self, after: Costs) -> str:
        """Return a table of these costs and those after a cut, ``before -> after`` where they differ."""
        sides = (self, after)
        rows = [["layer", "channels", "parameters", "multiply-adds"]]
        for layer in self.positions:
            rows.append(
                [
                    layer,
                    _change(*(side.channels_of(layer) for side in sides)),
                    _change(*(side.parameters_of(layer) for side in sides)),
                    _change(*(side.multiply_adds_of(layer) for side in sides)),
                ]
            )
        totals = (_change(self.parameters, after.parameters), _change(self.multiply_adds, after.multiply_adds))
        rows.append(["total", "", *totals])
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows]
        return "\n".join("  ".join(line) for line in lines)

    def __str__(self) -> str:
        return self.compare(self)

    def _weight_shape(self, layer: str) -> tuple[int, ...]:
        name = _weight(layer)
        return self.shapes[name] if name in self.shapes else self.buffers[name]

    def _with(self, shapes: Shapes) -> Costs:
        parameters = {name: shapes[name] for name in self.shapes}
        return replace(self, shapes=parameters, buffers={name: shapes[name] for name in self.buffers})


def count_costs(model: nn.Module, example_inputs: ExampleInputs) -> Costs:
    """Count parameters and multiply-adds of a model, layer by layer.

    Args:
        model: Any module; it is not changed. It is run once in evaluation mode, on shapes alone if it can be.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        The costs, of the batch that the inputs have.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 4, 10))
        >>> print(count_costs(model, torch.zeros(1, 3, 4, 4)))
        layer  channels  parameters  multiply-adds
        0             8         216            864
        2            10         330            320
        total                   546           1184
    """
    require_module(model)
    try:
        multiply_adds = _count(copy_to(model, "meta"), inputs_to(example_inputs, "meta"))
    except Exception:  # a model whose code needs values
        multiply_adds = _count(copy_to(model, None), cloned(example_inputs))
    layers = {name: model.get_submodule(name) for name, count in multiply_adds.items() if count}
    weights = {_weight(name): tuple(cast(Tensor, layer.weight).shape) for name, layer in layers.items()}
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    buffers = {name: shape for name, shape in (weights | shapes_of(model)).items() if name not in parameters}
    positions = {name: multiply_adds[name] // math.prod(weights[_weight(name)]) for name in layers}
    return Costs(parameters, buffers, positions, {name: output_dim(layer) for name, layer in layers.items()})


def _count(model: nn.Module, inputs: ExampleInputs) -> dict[str, int]:
    return count_by_layer(model, inputs, {name: layer for name, layer in model.named_modules() if is_producer(layer)})


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"
