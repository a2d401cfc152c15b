"""How a layer becomes another form of itself: what candidates on the CPU and on a GPU share."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from sparsecore.nn import CompressedModule
from sparsecore.nn.dense import dense_layer

DENSE = "dense"
Shape = tuple[int, ...]
#: From a layer and the shape of its input, if known, to a form; UnsupportedError if it does not fit or is not worth it.
Maker = Callable[[nn.Module, Shape | None], nn.Module]


def same(layer: nn.Module, shape: Shape | None) -> nn.Module:
    """The layer itself."""
    return layer


def dense_form(layer: nn.Module, shape: Shape | None) -> nn.Module:
    """The dense form of a layer on a compressed weight."""
    assert isinstance(layer, CompressedModule)
    return dense_layer(layer.to_dense_module(), layer.activation)


def rows_of(shape: Shape | None) -> int:
    """Rows of activations of a linear layer; 0 if unknown."""
    return 0 if shape is None else math.prod(shape[:-1])
