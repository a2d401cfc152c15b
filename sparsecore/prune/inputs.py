"""What enters the prunable weights of a model: the rows of x in ``y = x @ weight^T``, whatever the layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecore.errors import UnsupportedError
from sparsecore.prune.sharding import is_sharded
from sparsecore.prune.weights import CONVOLUTIONS, PrunableWeight, is_stored_transposed

# Entries of the patches of a convolution that are unfolded at once, 64 MB in float32.
_MAX_PATCH_ENTRIES = 1 << 24

_ATTENTION_INPUTS = {
    "in_proj_weight": (0, 1, 2),
    "q_proj_weight": (0,),
    "k_proj_weight": (1,),
    "v_proj_weight": (2,),
}


@dataclass(frozen=True)
class Use:
    """A layer that multiplies its inputs by a weight.

    Attributes:
        layer: The module that is called.
        name: Its name in the model.
        attribute: Name of the weight in the layer.
        num_parts: Equal shares of the weight's rows that see inputs of their own: the groups of a convolution; query,
            key and value of an attention.
        is_transposed: The layer takes the weight as ``[K, N]``.
    """

    layer: nn.Module
    name: str
    attribute: str
    num_parts: int = 1
    is_transposed: bool = False


def find_uses(weight: PrunableWeight) -> list[Use]:
    """List the layers that a weight belongs to, each once.

    Raises:
        UnsupportedError: A module of another kind holds the weight too, or its layers use it in different ways: what
            enters it cannot be told. The weight is sharded.
    """
    if is_sharded(weight.stored):
        raise _unsupported(weight, "it is sharded over processes")
    strangers = [
        name.removesuffix("_orig")
        for name, parameter in weight.owners[""].named_parameters(remove_duplicate=False)
        if parameter is weight.stored and name.removesuffix("_orig") not in weight.names
    ]
    if strangers:
        raise _unsupported(weight, f"it is also {strangers[0]}, a module whose inputs are not known")
    uses: dict[tuple[int, str], Use] = {}
    for name in weight.names:
        use = _use(weight, name)
        uses.setdefault((id(use.layer), use.attribute), use)
    found = list(uses.values())
    for use in found:
        if (use.num_parts, use.is_transposed) != (found[0].num_parts, weight.is_transposed):
            raise _unsupported(weight, f"{found[0].name} and {use.name} use it in different ways")
    return found


def input_rows(use: Use, inputs: tuple[Any, ...]) -> Iterator[tuple[int, Tensor]]:
    """Yield what enters the weight in a call of its layer, as (part, ``[samples, K]``).

    Args:
        use: One that :func:`find_uses` found.
        inputs: Arguments of the call, in the order of the layer's signature.
    """
    if isinstance(use.layer, CONVOLUTIONS):
        for patches in _patches(use.layer, inputs[0]):
            yield from enumerate(patches)
    elif not isinstance(use.layer, nn.MultiheadAttention):
        yield 0, _as_rows(inputs[0])
    elif use.attribute in _ATTENTION_INPUTS:
        for part, index in enumerate(_ATTENTION_INPUTS[use.attribute]):
            yield part, _as_rows(inputs[index])
    else:
        yield 0, _as_rows(_attention_output(use.layer, inputs))


def _use(weight: PrunableWeight, name: str) -> Use:
    path, _, attribute = name.rpartition(".")
    layer = weight.owners[path]
    parent = path.rpartition(".")[0]
    attention = weight.owners[parent]
    if isinstance(attention, nn.MultiheadAttention) and layer is attention.out_proj:  # never called, only read
        return Use(attention, parent, f"out_proj.{attribute}")
    num_parts = layer.groups if isinstance(layer, CONVOLUTIONS) else len(_ATTENTION_INPUTS.get(attribute, (0,)))
    return Use(layer, path, attribute, num_parts, is_stored_transposed(layer))


def _unsupported(weight: PrunableWeight, why: str) -> UnsupportedError:
    return UnsupportedError(
        f'{weight.name}: {why}; leave it out with exclude={weight.name!r} or use criterion="magnitude"'
    )


def _as_rows(x: Tensor) -> Tensor:
    return torch.atleast_2d(x).flatten(0, -2)


def _patches(conv: Any, x: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of a convolution as ``[groups, samples, K]``, zeros of the padding among them."""
    num_dims = len(conv.kernel_size)
    x = x if x.dim() == num_dims + 2 else x[None]
    if any(conv._reversed_padding_repeated_twice):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for dim in range(num_dims):
        reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1) + 1
        x = x.unfold(dim + 2, reach, conv.stride[dim])[..., :: conv.dilation[dim]]
    x = x.unflatten(1, (conv.groups, -1))  # [batch, group, channel, positions..., filter...]
    positions = range(3, 3 + num_dims)
    filters = range(3 + num_dims, 3 + 2 * num_dims)
    x = x.permute(1, 0, *positions, 2, *filters)
    num_images = max(_MAX_PATCH_ENTRIES // max(x[:, :1].numel(), 1), 1)
    for images in x.split(num_images, 1):
        yield images.flatten(2 + num_dims).flatten(1, -2)


def _attention_output(attention: nn.MultiheadAttention, inputs: tuple[Any, ...]) -> Tensor:
    """Return what enters out_proj: the output of the attention with the identity in its place."""
    weight = attention.out_proj.weight
    identity = nn.Module()
    identity.register_parameter("weight", nn.Parameter(torch.eye(weight.shape[1]).to(weight), requires_grad=False))
    identity.register_parameter("bias", None)
    probe: Any = copy.copy(attention)  # shares all tensors; forward() calls no hooks
    probe._modules = {**attention._modules, "out_proj": identity}
    output: Tensor = probe.forward(*inputs)[0]
    return output
