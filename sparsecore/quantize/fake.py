"""Fake quantization: the integers that int8 layers compute with, in floating point and with gradients.

Integers come less their zero point, so that zero is 0, and stay apart from their scale: products of them are sums of
integers, which floating point holds exactly while they are small enough.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, sec. 3. Straight-through gradients: Bengio et al., Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation, arXiv 1308.3432, 2013.
"""

from __future__ import annotations

from torch import Tensor

from sparsecore.quantize.affine import (
    affine_limits,
    affine_parameters,
    quantize_symmetric,
    row_absmax,
    symmetric_max,
    symmetric_scale,
)


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """Return ``value`` exactly, with the gradient of ``x``."""
    return value.detach() + (x - x.detach())  # x - x is 0


def fake_weight(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize a weight symmetrically per output channel, as ``Int8Weight.from_dense()`` does.

    The gradient reaches every entry: the range is that of the weight, so nothing lies outside.

    Args:
        weight: ``[N, ...]`` float32.
        bits: of the integers.

    Returns:
        Integers in the shape of the weight and their scale ``[N, 1, ...]``, both float32;
        ``weight`` is about ``integers * scale``.

    Example:
        >>> import torch
        >>> [part.tolist() for part in fake_weight(torch.tensor([[127.0, 0.4, -0.6]]))]
        [[[127.0, 0.0, -1.0]], [[1.0]]]
    """
    scale = symmetric_scale(row_absmax(weight.detach().flatten(1)), bits).view(-1, *[1] * (weight.dim() - 1))
    return straight_through(quantize_symmetric(weight.detach(), scale, bits).to(scale.dtype), weight / scale), scale


def fake_symmetric(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Quantize a weight with scales of its own; the gradient is zero outside of their range, and reaches them.

    Args:
        weight: ``[N, ...]`` float32.
        scale: positive, broadcastable to it.
        bits: of the integers.

    Returns:
        Integers in the shape of the weight, float32.
    """
    largest = symmetric_max(bits)
    inside = (weight / scale).clamp(-largest, largest)
    return straight_through(inside.round(), inside)


def fake_static(x: Tensor, low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize activations with one range, as int8 layers with an ``x_scale`` do.

    The gradient is that of the identity inside the range, and zero outside.

    Args:
        x: any shape, float32.
        low: scalar, one end of the range.
        high: scalar, the other end.
        bits: of the integers.

    Returns:
        Integers less the zero point in the shape of x, and their scale, a scalar; both float32.
    """
    scale, zero_point = affine_parameters(low, high, bits)
    return fake_affine(x, scale, zero_point, bits), scale


def fake_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """Quantize activations with a scale and a zero point; the gradient of the scale is there too.

    Args:
        x: any shape, float32.
        scale: scalar.
        zero_point: scalar, an integer.
        bits: of the integers.

    Returns:
        Integers less the zero point in the shape of x, float32.
    """
    least, largest = affine_limits(bits)
    inside = (x * scale.reciprocal()).clamp(least - zero_point, largest - zero_point)
    return straight_through(inside.round(), inside)


def fake_dynamic(x: Tensor, dims: tuple[int, ...], bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize activations by the largest magnitude of each row, as int8 layers without an ``x_scale`` do.

    The gradient reaches every entry.

    Args:
        x: any shape, float32.
        dims: the dimensions of a row.
        bits: of the integers.

    Returns:
        Integers in the shape of x, and their scale with size 1 in ``dims``; both float32.
    """
    absmax = x.detach().abs().amax(dims, keepdim=True) if x.numel() else x.detach().sum(dims, keepdim=True)
    scale = symmetric_scale(absmax, bits)
    steps = x * scale.reciprocal()
    return straight_through(steps.round(), steps), scale
