"""Which tensors and sizes of a layer belong to its output and input channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# Which channels of a layer: those it produces, those it takes, or one and the same for both.
OUT, IN, BOTH = "out", "in", "both"

# Layers that give channels of their own: those that can be asked for.
Producer = _ConvNd | nn.Linear
_CHANNEL_TENSORS = ("weight", "bias", "running_mean", "running_var")


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer with a weight ``[K, N]``."""
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__) and hasattr(module, "nf")


def is_producer(module: object) -> bool:
    """Whether a layer gives output channels of its own."""
    return isinstance(module, nn.Module) and (isinstance(module, Producer) or is_conv1d_of_transformers(module))


def num_channels(module: nn.Module) -> int:
    """Output channels of a layer that gives channels of its own, or embedding."""
    for attribute in ("out_channels", "out_features", "embedding_dim", "nf"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    raise TypeError(f"{type(module).__name__} gives no channels of its own")


def channel_tensors(module: nn.Module, space: str) -> list[tuple[str, int]]:
    """Return (tensor, dimension) of a layer that have an index for each of its channels.

    Args:
        module: A layer.
        space: OUT, IN or BOTH.

    Returns:
        Names within the layer. The inputs of a grouped convolution have none: they go with its outputs.
    """
    if isinstance(module, _ConvNd):
        rows, columns = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        if module.groups > 1:
            rows, columns = (-1, 0) if isinstance(module, _ConvTransposeNd) else (0, -1)
    elif is_conv1d_of_transformers(module):
        rows, columns = 1, 0
    elif isinstance(module, nn.Linear):
        rows, columns = 0, 1
    elif isinstance(module, nn.Embedding):
        return [("weight", 1)]
    else:
        found = (name for name in _CHANNEL_TENSORS if isinstance(getattr(module, name, None), Tensor))
        return [(name, 0) for name in found]
    tensors = []
    if space != IN:
        tensors += [("weight", rows)] * (rows >= 0) + [("bias", 0)] * (getattr(module, "bias", None) is not None)
    if space != OUT and columns >= 0:
        tensors.append(("weight", columns))
    return tensors


def sizes_after(module: nn.Module, removed_out: int, removed_in: int) -> dict[str, int]:
    """Return the sizes that a layer remembers, after a cut.

    Args:
        module: The layer as it is.
        removed_out: Output channels that go.
        removed_in: Input channels that go; the same as ``removed_out`` for a layer that has one count for both.
    """
    if isinstance(module, _ConvNd):
        out_channels = module.out_channels - removed_out
        groups = {"groups": module.groups * out_channels // module.out_channels} if module.groups > 1 else {}
        return {"out_channels": out_channels, "in_channels": module.in_channels - removed_in, **groups}
    if isinstance(module, nn.Linear):
        return {"out_features": module.out_features - removed_out, "in_features": module.in_features - removed_in}
    if is_conv1d_of_transformers(module):
        sizes = {"nf": removed_out, "nx": removed_in}
        return {name: getattr(module, name) - removed for name, removed in sizes.items() if hasattr(module, name)}
    if isinstance(module, nn.GroupNorm):
        channels = module.num_channels - removed_out
        return {"num_channels": channels, "num_groups": module.num_groups * channels // module.num_channels}
    for attribute, kind in (("num_features", _NormBase), ("num_parameters", nn.PReLU), ("embedding_dim", nn.Embedding)):
        if isinstance(module, kind):
            return {attribute: getattr(module, attribute) - removed_out}
    return {}


def tied_channels(module: nn.Module, space: str, index: int) -> list[tuple[str, int, int]]:
    """Return the channels of the same layer that go together with one of them, as (space, begin, end).

    A grouped convolution is cut by whole groups, inputs and outputs together, which leaves the other groups exactly as
    they are; so is GroupNorm, whose groups are normalised each by itself.
    """
    if isinstance(module, _ConvNd) and module.groups > 1 and space != BOTH:
        widths = {OUT: module.out_channels // module.groups, IN: module.in_channels // module.groups}
        group = index // widths[space]
        return [(side, group * width, (group + 1) * width) for side, width in widths.items()]
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        width = module.num_channels // module.num_groups
        return [(space, index // width * width, (index // width + 1) * width)]
    return []


def output_dim(module: nn.Module) -> int:
    """Return the dimension of a layer's weight that is its output channels, or that of its groups' outputs."""
    return 1 if isinstance(module, _ConvTransposeNd) or is_conv1d_of_transformers(module) else 0


def filters(module: nn.Module, weight: Tensor) -> Tensor:
    """Bring a tensor of the shape of a layer's weight to ``[N, K]``: a row for each output channel."""
    if isinstance(module, _ConvTransposeNd):
        # [in, out / groups, ...]: each group's inputs belong to its own outputs.
        grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).reshape(module.out_channels, -1)
    return weight.t() if is_conv1d_of_transformers(module) else weight.flatten(1)
