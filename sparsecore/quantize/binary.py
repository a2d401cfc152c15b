"""Training with weights of one bit: BinaryConnect, and binary weights with a scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.calibration import first_names
from sparsecore.errors import UnsupportedError, require_generator
from sparsecore.prune.masks import require_updates
from sparsecore.prune.weights import Selector
from sparsecore.quantize.fake import straight_through
from sparsecore.quantize.simulated import Simulation, simulate, simulated_layers, trainable_layers

_SCALES = ("row", "layer", None)


def prepare_binary(
    model: nn.Module,
    *,
    stochastic: bool = False,
    scale: Literal["row", "layer"] | None = "row",
    exclude: Selector | Iterable[Selector] = (),
    skip_ends: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make a model train with weights of one bit, in place.

    nn.Linear and nn.Conv2d (not their subclasses) are swapped for layers that hold the same parameters and compute
    with their signs, that of zero being +1: a model that was pruned has none of its zeros left, so use
    ``prepare_ternary()`` there. The gradient with respect to the binary weight goes to the real one as it is;
    ``clip_binary(model, optimizer)`` keeps that in [-1, 1]. ``fold_qat()`` ends in plain layers whose weights are
    +-scale.

    Args:
        model: any module that contains such layers.
        stochastic: in training, draw +scale with probability clip((w / scale + 1) / 2, 0, 1) instead of taking the
            sign; w / scale is w where there is no scale.
        scale: what the signs are multiplied by: ``"row"`` the mean magnitude of each output channel's real weights,
            ``"layer"`` that of all of them, None by nothing, as in BinaryConnect, for layers with a BatchNorm behind
            them.
        exclude: what to leave alone: names of modules, fnmatch patterns or module types.
        skip_ends: leave the first and the last layer alone too, in the order of the model.
        generator: to draw from; None for the global one of torch.

    Returns:
        The same model.

    Raises:
        ValueError: there is no such scale, or a name in ``exclude`` matches nothing.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: nothing is left to make binary.

    Example:
        >>> model = prepare_binary(nn.Sequential(nn.Linear(8, 4)), scale=None)
        >>> model[0].simulation.values(model[0].weight).abs().unique().tolist()
        [1.0]

    Reference:
        Courbariaux et al., BinaryConnect: Training Deep Neural Networks with binary weights during propagations,
        NeurIPS 2015, sec. 2.2-2.4. Scale: Rastegari et al., XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks, ECCV 2016, eq. 6.
    """
    if scale not in _SCALES:
        raise ValueError(f'expected scale "row", "layer" or None, got {scale!r}')
    require_generator(generator)
    layers = trainable_layers(model, exclude, skip_ends)
    return simulate(model, layers, lambda name, layer: BinaryWeights(scale, stochastic, generator))


class BinaryWeights(Simulation):
    """The signs of a weight times a scale."""

    def __init__(self, scale: str | None, stochastic: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.scale, self.stochastic, self.generator = scale, stochastic, generator

    def values(self, weight: Tensor) -> Tensor:
        real = weight.detach()
        scale = self._scale_of(real)
        if self.stochastic and self.training:
            draw = torch.rand(real.shape, generator=self.generator, device=real.device)
            is_positive = draw < (real.float() / scale + 1) / 2
        else:
            is_positive = real >= 0
        return straight_through(torch.where(is_positive, scale, -scale), weight)

    def _scale_of(self, real: Tensor) -> Tensor:
        if self.scale is None:
            return torch.ones_like(real[:1])
        dims = tuple(range(1 if self.scale == "row" else 0, real.dim()))
        return real.abs().mean(dims, keepdim=True)


def clip_binary(model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Clip the real weights of binary layers to [-1, 1] now and after every step of an optimizer.

    Outside of it a weight moves without any effect on its sign, and comes back late.

    Args:
        model: from ``prepare_binary()``.
        optimizer: any that updates at least one of them.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Raises:
        ValueError: the optimizer holds none of the weights.
        UnsupportedError: the model has no binary layers.

    Example:
        >>> model = prepare_binary(nn.Sequential(nn.Linear(8, 4)))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
        >>> handle = clip_binary(model, optimizer)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> model[0].weight.max().item()
        -1.0
    """
    weights = [
        layer.get_parameter("weight")
        for layer in first_names(simulated_layers(model))
        if isinstance(layer.simulation, BinaryWeights)
    ]
    if not weights:
        raise UnsupportedError(f"{type(model).__name__} has no binary layers; call prepare_binary() first")
    require_updates(optimizer, weights)

    @torch.no_grad()
    def clip(*_: object) -> None:
        for weight in weights:
            weight.clamp_(-1, 1)

    clip()
    return optimizer.register_step_post_hook(clip)
