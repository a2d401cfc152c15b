"""One layer as two cheaper ones: depthwise and pointwise convolutions, and factors of low rank."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sparsecore.arguments import is_real
from sparsecore.errors import UnsupportedError
from sparsecore.prune.criteria import require_finite


def separable(conv: nn.Conv2d, multiplier: int = 1) -> nn.Sequential:
    """Return a depthwise convolution and a pointwise one in the place of a k x k convolution.

    It costs ``multiplier * (1 / N + 1 / k**2)`` times the multiply-adds, N output channels. The two have the weights
    that are closest to those of the convolution in the sum of squares: the leading singular vectors of the ``[N, k*k]``
    matrix of each input channel. With ``multiplier = min(N, k**2)`` they compute the same.

    Args:
        conv: ``[N, C, k, k]`` of one group; it is not changed.
        multiplier: Depthwise filters per input channel.

    Returns:
        ``nn.Sequential`` of ``depthwise`` and ``pointwise``, in the dtype and on the device of the convolution.

    Raises:
        ValueError: The multiplier is not in 1 to min(N, k*k).
        UnsupportedError: The convolution is 1 x 1 or has groups.
        FormatError: A weight is NaN or infinite.

    Example:
        >>> conv = nn.Conv2d(16, 32, 3, padding=1)
        >>> pair = separable(conv, multiplier=9)
        >>> x = torch.randn(1, 16, 8, 8)
        >>> torch.allclose(pair(x), conv(x), atol=1e-5)
        True

    Reference:
        Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
        arXiv 1704.04861, 2017, sec. 3.1. Weights: Guo et al., Network Decoupling: From Regular to Depthwise Separable
        Convolutions, BMVC 2018.
    """
    weight = _own_weight(conv)
    filters = weight.flatten(2).transpose(0, 1)  # [C, N, k*k]
    C, N, positions = filters.shape
    if conv.groups != 1 or positions == 1:
        raise UnsupportedError(f"expected a convolution of one group, larger than 1x1, got {conv}")
    if not 1 <= multiplier <= min(N, positions):
        raise ValueError(f"expected a multiplier from 1 to {min(N, positions)}, got {multiplier!r}")
    left, singular, right = torch.linalg.svd(filters, full_matrices=False)
    roots = singular[:, :multiplier].sqrt()
    depthwise = _window(conv, C * multiplier, groups=C)
    pointwise = _pointwise(conv, C * multiplier)
    _set(depthwise, roots.unsqueeze(2) * right[:, :multiplier], conv)  # [C, multiplier, k*k]
    _set(pointwise, (left[:, :, :multiplier] * roots.unsqueeze(1)).transpose(0, 1), conv)  # [N, C, multiplier]
    return _pair(conv, depthwise=depthwise, pointwise=pointwise)


def low_rank(layer: nn.Linear | nn.Conv2d, *, rank: int | None = None, error: float | None = None) -> nn.Sequential:
    """Return two layers whose weights multiply to the best approximation of a layer's weight of a rank.

    A linear layer ``[N, K]`` becomes ``[r, K]`` and ``[N, r]``; a convolution ``[N, C, k, k]`` one to r channels with
    the same window and a 1 x 1 one to N. The multiply-adds for each output position fall from ``N * K`` to
    ``r * (N + K)``, K = C * k * k.

    Args:
        layer: A linear layer, or a convolution of one group; it is not changed.
        rank: r, at most min(N, K).
        error: Instead of a rank: the smallest one with ``norm(W - W_r) <= error * norm(W)``, in the sum of squares.

    Returns:
        ``nn.Sequential`` of ``down`` and ``up``, in the dtype and on the device of the layer.

    Raises:
        ValueError: Not exactly one of rank and error is given, or it is out of range.
        UnsupportedError: The layer is another, or a convolution with groups.
        FormatError: A weight is NaN or infinite.

    Example:
        >>> pair = low_rank(nn.Linear(100, 50), rank=10)
        >>> pair.down.weight.shape, pair.up.weight.shape
        (torch.Size([10, 100]), torch.Size([50, 10]))

    Reference:
        Denton et al., Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation,
        NeurIPS 2014, sec. 3. Eckart & Young, The approximation of one matrix by another of lower rank,
        Psychometrika 1936.
    """
    rows = _own_weight(layer).flatten(1)
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise UnsupportedError(f"expected a convolution of one group, got {layer}")
    check_rank_or_error(rank, error)
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    if rank is None:
        assert error is not None
        rank = _smallest_rank(singular, error)
    elif rank > len(singular):
        raise ValueError(f"expected a rank of at most {len(singular)} for a weight {list(rows.shape)}, got {rank}")
    roots = singular[:rank].sqrt()
    if isinstance(layer, nn.Conv2d):
        down: nn.Module = _window(layer, rank)
        up: nn.Module = _pointwise(layer, rank)
    else:
        empty = {"device": "meta"}
        down = nn.Linear(layer.in_features, rank, bias=False, **empty)
        up = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **empty)
    _set(down, roots.unsqueeze(1) * right[:rank], layer)
    _set(up, left[:, :rank] * roots, layer)
    return _pair(layer, down=down, up=up)


def check_rank_or_error(rank: int | None, error: float | None) -> None:
    """Raise ValueError unless there is either a rank of at least 1 or an error in [0, 1)."""
    if (rank is None) == (error is None):
        raise ValueError("expected either rank= or error=, got " + ("neither" if rank is None else "both"))
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"expected a rank of at least 1, got {rank!r}")
    if error is not None and (not is_real(error) or not 0 <= error < 1):
        raise ValueError(f"expected an error in [0, 1), got {error!r}")


def _smallest_rank(singular: Tensor, error: float) -> int:
    """The rank whose dropped singular values are small enough, at least 1."""
    squares = singular.square()
    dropped = squares.flip(0).cumsum(0).flip(0)  # entry r: what rank r drops
    return max(1, int((dropped > error**2 * squares.sum()).sum()))


def _own_weight(layer: nn.Module) -> Tensor:
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise UnsupportedError(f"expected an nn.Linear or nn.Conv2d, got {type(layer).__name__}")
    weight = layer.get_parameter("weight").detach()
    require_finite("the weight", weight)
    return weight.double()


def _window(conv: nn.Conv2d, out_channels: int, groups: int = 1) -> nn.Conv2d:
    """A convolution that goes over the image as conv does, without a bias or values."""
    return nn.Conv2d(
        conv.in_channels,
        out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        groups,
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",
    )


def _pointwise(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")


def _set(layer: nn.Module, value: Tensor, like: nn.Module) -> None:
    """Give a layer its weight, and the bias of the one it comes from if it has a place for it."""
    old = like.get_parameter("weight")
    shape = layer.get_parameter("weight").shape
    layer.weight = nn.Parameter(value.reshape(shape).to(old.dtype).contiguous(), old.requires_grad)
    if layer.bias is not None:
        bias = like.get_parameter("bias")
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)


def _pair(old: nn.Module, **layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers)).train(old.training)
