"""Changes of a model's layers and shapes as plain data, to be made again on a fresh model of the same architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sparsecore.calibration import evaluation_mode
from sparsecore.calls import ExampleInputs
from sparsecore.errors import BundleError
from sparsecore.graph.fold import fold_batchnorm_, foldable_layers
from sparsecore.graph.observe import observe
from sparsecore.prune.structured import Edits, RemovedLayers, split_attention
from sparsecore.train.replace import replace_by_low_rank, replace_by_separable

#: ``{"kind": ...}`` and what that kind needs, ready for JSON.
Change = Mapping[str, Any]


def apply_change(model: nn.Module, change: Change, example_inputs: ExampleInputs) -> None:
    """Make a change that was recorded, in place.

    Args:
        model: As it was before the change, with any values.
        change: What was recorded.
        example_inputs: On which the model runs.

    Raises:
        BundleError: There is no such kind of change, or it does not fit the model.
    """
    kind = change.get("kind")
    if kind == "cut":
        Edits.from_dict(change["edits"]).apply(model)
    elif kind == "layers":
        RemovedLayers.from_dict(change).apply(model)
    elif kind == "split_attention":
        split_attention(model)
    elif kind == "separable":
        replace_by_separable(model, **change["options"])
    elif kind == "low_rank":
        replace_by_low_rank(model, rank=change["ranks"])
    elif kind == "fold_batchnorm":
        fold_batchnorm_in_place(model, example_inputs)
    else:
        raise BundleError(f"expected a change of a known kind, got {kind!r}; use the release that recorded it")


def fold_batchnorm_in_place(model: nn.Module, example_inputs: ExampleInputs) -> list[str]:
    """Fold BatchNorm into the layers before it, in place; other modules keep their mode."""
    with evaluation_mode(model):
        return fold_batchnorm_(model, observe(model, example_inputs, foldable_layers(model)))


def cuts_alone(changes: Iterable[Change]) -> Edits | None:
    """Return all cuts as one list of edits, if nothing else has changed what they are made for; else None."""
    edits: Edits | None = None
    for change in changes:
        if change["kind"] == "fold_batchnorm":
            break  # no cut follows
        if change["kind"] != "cut":
            return None
        cut = Edits.from_dict(change["edits"])
        edits = cut if edits is None else edits.then(cut)
    return edits
