"""Whether a model can do without channels: whether it runs, and computes what it computes with them zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.prune.structured.copies import copy_to, first_line, inputs_to
from sparsecore.prune.structured.edits import Edits

# Of the largest output. Both runs add up the same numbers in another order, in float64, where 1e-12 is usual.
TOLERANCE = 1e-6
# Where the model cannot run in float64.
_TOLERANCE_OWN_TYPE = 5e-3

_IS_OUTPUT = "they are an output of the model"


@torch.no_grad()
def find_misfit(model: nn.Module, example_inputs: ExampleInputs, edits: Edits) -> str:
    """Run a model cut, on shapes alone.

    Args:
        model: The model before the cut; it is not changed.
        example_inputs: Inputs of which the shapes are used.
        edits: The cut.

    Returns:
        Why it does not run or gives other shapes, or nothing; also for a model that cannot run without values.
    """
    shapes, inputs = copy_to(model, "meta"), inputs_to(example_inputs, "meta")
    try:
        before = _outputs(shapes, inputs)
    except Exception:  # any error of anybody's code
        return ""
    edits.apply(shapes)
    return _compare_shapes(before, shapes, inputs)[1]


@torch.no_grad()
def find_difference(model: nn.Module, example_inputs: ExampleInputs, edits: Edits) -> str:
    """Compare a model cut with the model masked, on a copy in float64.

    Args:
        model: The model before the cut; it is not changed.
        example_inputs: Inputs to compare on.
        edits: The cut.

    Returns:
        What differs, or nothing.
    """
    changed, inputs, tolerance = copy_to(model, None), to_double(example_inputs), TOLERANCE
    edits.mask(changed)
    try:
        masked = _outputs(changed.double(), inputs)
    except Exception:  # a type that is written into the model's code
        changed, inputs, tolerance = copy_to(model, None), example_inputs, _TOLERANCE_OWN_TYPE
        edits.mask(changed)
        masked = _outputs(changed, inputs)
    if not all(bool(output.isfinite().all()) for output in masked):
        return "the model's output on the example inputs is NaN or infinite, so that nothing can be compared"
    edits.apply(changed)
    cut, misfit = _compare_shapes(masked, changed, inputs)
    if misfit:
        return misfit
    largest = max((float(output.abs().max()) for output in masked if output.numel()), default=0.0)
    pairs = zip(masked, cut, strict=True)
    difference = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    if not difference <= tolerance * largest:
        return f"the others depend on them: the outputs would be up to {difference:.1e} from the masked model's"
    return ""


def _compare_shapes(before: list[Tensor], model: nn.Module, inputs: ExampleInputs) -> tuple[list[Tensor], str]:
    """Run a model that was cut; returns its outputs, and what is wrong with them."""
    try:
        after = _outputs(model, inputs)
    except Exception as error:  # any error of anybody's code
        return [], f"the model does not run without them: {first_line(error)}"
    same = [output.shape for output in before] == [output.shape for output in after]
    return after, "" if same else _IS_OUTPUT


def _outputs(model: nn.Module, example_inputs: ExampleInputs) -> list[Tensor]:
    output = call_model(model, cloned(example_inputs))
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def to_double(example_inputs: ExampleInputs) -> ExampleInputs:
    """Return inputs whose floating-point tensors are float64."""

    def convert(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, example_inputs)
