"""One scale per input channel, moved from the activations into the weight.

``y = (x / s) @ (weight * s)^T`` for any s > 0: where a few channels of x are much larger than the others, their size is
taken into the weight, which has a scale per output channel, before x gets one for all of its channels.

Reference: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models,
ICML 2023, eq. 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Weights of a channel count as at least this share of the largest: those of a pruned channel are all zero.
_LEAST_WEIGHT = 1e-5


def channel_scale(x_absmax: Tensor, weight_absmax: Tensor, alpha: float = 0.5) -> Tensor:
    """Return ``s = x_absmax^alpha / weight_absmax^(1 - alpha)`` of each input channel.

    A channel that was zero throughout counts as a middling one, for it may not always be.

    Args:
        x_absmax: ``[C]`` float, largest magnitude of each input channel.
        weight_absmax: ``[C]`` float, largest magnitude of the weights of each input channel.
        alpha: how much of the range goes into the weight: 0 none, 1 all of it.

    Returns:
        ``[C]`` float32, finite and positive, to divide x and multiply the weight by.

    Raises:
        ValueError: alpha is out of range.

    Example:
        >>> channel_scale(torch.tensor([1.0, 100.0]), torch.tensor([1.0, 1.0]))
        tensor([ 1., 10.])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected an alpha between 0 and 1, got {alpha}")
    x, weight = x_absmax.double(), weight_absmax.double()
    if not (bool(x.any()) and bool(weight.any())):
        return torch.ones_like(x, dtype=torch.float32)
    x = torch.where(x == 0, x[x > 0].median(), x)
    weight = weight.clamp_min(_LEAST_WEIGHT * float(weight.max()))
    limits = torch.finfo(torch.float32)
    return (x**alpha / weight ** (1 - alpha)).clamp(limits.tiny, limits.max).float()


def weight_channel_absmax(layer: nn.Module) -> Tensor:
    """Return the largest magnitude of the weights of each input channel: ``[in_features]`` or ``[in_channels]``.

    Args:
        layer: linear, or a 2-D convolution, of whose channels each belongs to one group.
    """
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    assert isinstance(weight, Tensor)
    rows = weight.detach().abs().float().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return rows.amax((1, 3)).flatten()


def channel_dim(layer: nn.Module) -> int:
    """Which dimension of the input and the output of a layer is its channels."""
    return -3 if hasattr(layer, "kernel_size") else -1


def channel_rows(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the input or output of a layer as ``[positions, channels]``."""
    return torch.atleast_2d(x.movedim(channel_dim(layer), -1)).flatten(0, -2)


def divide_channels(x: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Return x with every channel divided by its scale ``[C]``."""
    return x / scale.to(x.device).reshape(-1, *[1] * (-1 - dim))
