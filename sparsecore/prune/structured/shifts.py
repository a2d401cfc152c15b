"""What channels without a scale still give to the next layers by their BatchNorm's shift, and how to keep it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsecore.calls import ExampleInputs, call_model, cloned
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.norms import norms_after


@torch.no_grad()
def carry_shifts(
    model: nn.Module, silent: nn.Module, example_inputs: ExampleInputs, units: Iterable[Unit], *, dry_run: bool
) -> dict[str, float]:
    """Give what channels without a scale pass on, which is constant, to the bias of the layers that read them.

    A layer without a bias passes it on to the BatchNorm behind it, which has to be its only reader, and whose mean
    falls by as much; where there is none nothing is carried.

    Args:
        model: The model, changed in place.
        silent: A copy in evaluation mode in which these channels have no scale but still their shift.
        example_inputs: What the copy is run on.
        units: The channels.
        dry_run: Carry nothing.

    Returns:
        Layer -> largest absolute error of its outputs without these channels. A convolution's padding of zeros is no
        part of what is carried, so it leaves an error at the borders.
    """
    readers: dict[str, set[int]] = defaultdict(set)
    for unit in units:
        for name, channels in unit.inputs.items():
            readers[name].update(channels)
    norms = norms_after(model, example_inputs)
    errors = {}
    for name, (constant, passed_on) in _passed_on(silent, example_inputs, readers).items():
        carried = not dry_run and _carry(model, name, norms.get(name), constant)
        errors[name] = float((passed_on - constant[:, None] if carried else passed_on).abs().max())
    return errors


def _passed_on(
    silent: nn.Module, example_inputs: ExampleInputs, readers: Mapping[str, set[int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run the copy: layer -> what input channels add to its outputs, ``[out]`` inside and ``[out, positions]``."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        dim = 1 if isinstance(layer, _ConvNd) else -1
        alone = torch.zeros_like(x)
        indices = torch.tensor(sorted(readers[name]), device=x.device)
        alone.index_copy_(dim, indices, x.index_select(dim, indices))
        passed_on = (layer.forward(alone) - layer.forward(torch.zeros_like(x))).movedim(dim, 0).flatten(1)
        if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
            values = alone.movedim(1, 0).flatten(1).median(dim=1).values
            constant = layer.weight.flatten(2).sum(2) @ values
        else:
            constant = passed_on.median(dim=1).values
        found[name] = constant, passed_on

    for name in readers:
        layer = silent.get_submodule(name)
        # Inputs of a grouped convolution go with its outputs, whole groups at a time.
        if getattr(layer, "groups", 1) == 1:
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: record(name, layer, inputs[0]))
    call_model(silent, cloned(example_inputs))
    return found


def _carry(model: nn.Module, name: str, norm: str | None, constant: Tensor) -> bool:
    """Add a constant per channel to a layer's outputs; returns whether there is a place for it."""
    bias = getattr(model.get_submodule(name), "bias", None)
    if bias is not None:
        bias += constant
    elif norm is not None:
        mean = model.get_submodule(norm).get_buffer("running_mean")
        mean -= constant
    return bias is not None or norm is not None
