"""How a layer computes in quantization-aware training: in integers, with scales from ranges or with learned ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.prune.criteria import require_finite
from sparsecore.quantize.affine import affine_parameters, affine_range, symmetric_max
from sparsecore.quantize.fake import (
    fake_affine,
    fake_dynamic,
    fake_static,
    fake_symmetric,
    fake_weight,
    straight_through,
)
from sparsecore.quantize.simulated import Geometry, Simulation

RANGE_MOMENTUM = 0.9  # share of the old range in each step of its moving average


class IntegerArithmetic(Simulation):
    """A layer in integers times their scales, as the int8 kernels compute it.

    Args:
        name: of the layer, for errors.
        bits: of the weights.
        activation_bits: of the activations.
        is_static: whether activations have one range.

    Attributes:
        x_range: ``[2]`` float, the ends of the static range; infinite as long as nothing was seen.
        is_range_frozen: whether training leaves the range as it is; see ``freeze_ranges()``.
    """

    x_range: Tensor | None
    is_range_frozen = False

    def __init__(self, name: str, bits: int, activation_bits: int, is_static: bool) -> None:
        super().__init__()
        self.name, self.bits, self.activation_bits = name, bits, activation_bits
        self.register_buffer("x_range", torch.tensor([math.inf, -math.inf]) if is_static else None)

    def weight_integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight's integers and their scale ``[N, 1, ...]``, float32."""
        return fake_weight(weight.float(), self.bits)

    def static_settings(self) -> dict[str, Any]:
        """Return the scale and the zero point of static activations, as int8 layers take them.

        Raises:
            ValueError: the layer has not run in training yet.
        """
        if self.x_range is None:
            return {}
        return dict(zip(("x_scale", "x_zero_point"), affine_range(*self.seen_range()), strict=True))

    def values(self, weight: Tensor) -> Tensor:
        integers, scale = self.weight_integers(weight)
        return (integers * scale).to(weight.dtype)

    def forward(self, x: Tensor, layer: Geometry) -> Tensor:
        # Sums of integers and what follows are exact in float64; in training float32 is near enough, and faster.
        wide = torch.float32 if self.training else torch.float64
        with torch.autocast(x.device.type, enabled=False):
            x_integers, x_scale = self._activations(x.float(), layer.row_dims)
            integers, scale = self.weight_integers(layer.weight)
            acc = layer.product(x_integers.to(wide), integers.to(wide), None).float()
            per_channel = [-1, *[1] * (len(layer.row_dims) - 1)]
            y = acc.to(wide) * (x_scale * scale.view(per_channel)).to(wide)
            if layer.bias is not None:
                y = y + layer.bias.to(wide).view(per_channel)
            return y.float().to(x.dtype)

    def _activations(self, x: Tensor, row_dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self.x_range is None:
            return fake_dynamic(x, row_dims, self.activation_bits)
        if self.training and not self.is_range_frozen:
            self._widen_range(self.x_range, x.detach())
        elif not torch.compiler.is_compiling():
            self.seen_range()
        return fake_static(x, self.x_range[0], self.x_range[1], self.activation_bits)

    @torch.no_grad()
    def _widen_range(self, x_range: Tensor, x: Tensor) -> None:
        if x.numel() == 0:
            return
        seen = torch.stack(x.aminmax()).to(x_range.dtype)
        average = RANGE_MOMENTUM * x_range + (1 - RANGE_MOMENTUM) * seen
        average = torch.where(x_range.isfinite().all(), average, seen)
        x_range.copy_(torch.where(seen.isfinite().all(), average, x_range))  # NaN shows in the loss

    def seen_range(self) -> tuple[float, float]:
        """Return the static range.

        Raises:
            ValueError: the layer has not run in training yet.
        """
        assert self.x_range is not None
        low, high = self.x_range.tolist()
        if not low <= high:
            raise ValueError(
                f"{self.name} has no range of activations, for no batch reached it in training mode; train the model "
                f"or pass batches to prepare_qat(), or leave the layer out with exclude={self.name!r}"
            )
        return low, high


class LearnedSteps(IntegerArithmetic):
    """A layer in integers whose scales, the steps between neighbouring values, are parameters.

    Weights start from steps of twice their mean magnitude over the root of the largest integer. Gradients of a step
    are divided by the root of the number of values that share it times the largest integer, so that steps learn about
    as fast as weights do.

    Args:
        name: of the layer, for errors.
        bits: of the weights.
        activation_bits: of the activations.
        weight: ``[N, ...]``, from which its steps start.
        x_range: from which the step of the activations starts; None for dynamic ones.

    Attributes:
        weight_step: ``[N, 1, ...]`` float32.
        x_step: scalar float32, or None.
        x_zero_point: scalar, an integer that stays; or None.

    Reference:
        Esser et al., Learned Step Size Quantization, ICLR 2020, sec. 2.1 and 2.2.
    """

    x_step: nn.Parameter | None
    x_zero_point: Tensor | None

    def __init__(
        self, name: str, bits: int, activation_bits: int, weight: Tensor, x_range: tuple[float, float] | None
    ) -> None:
        super().__init__(name, bits, activation_bits, is_static=False)
        mean = weight.detach().float().flatten(1).abs().mean(1)
        start = torch.where(mean > 0, 2 * mean / math.sqrt(symmetric_max(bits)), torch.ones_like(mean))
        self.weight_step = nn.Parameter(start.view(-1, *[1] * (weight.dim() - 1)))
        x_step: nn.Parameter | None = None
        x_zero_point: Tensor | None = None
        if x_range is not None:
            scale, x_zero_point = affine_parameters(torch.tensor(x_range[0]), torch.tensor(x_range[1]), activation_bits)
            x_step = nn.Parameter(scale)
        self.register_parameter("x_step", x_step)
        self.register_buffer("x_zero_point", x_zero_point)

    def weight_integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        step = _step(self.weight_step, weight[:1].numel(), symmetric_max(self.bits))
        return fake_symmetric(weight.float(), step, self.bits), step

    def static_settings(self) -> dict[str, Any]:
        if self.x_step is None or self.x_zero_point is None:
            return {}
        require_finite(f"{self.name}: the step of the activations", self.x_step)
        return {"x_scale": _positive(self.x_step).item(), "x_zero_point": int(self.x_zero_point)}

    def _activations(self, x: Tensor, row_dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self.x_step is None or self.x_zero_point is None:
            return super()._activations(x, row_dims)
        count = math.prod(x.shape[1:])
        step = _step(self.x_step, count, symmetric_max(self.activation_bits))
        return fake_affine(x, step, self.x_zero_point, self.activation_bits), step


def _step(step: Tensor, count: int, largest: int) -> Tensor:
    """Return a step with its gradient divided by the root of ``count * largest``."""
    step = _positive(step)
    return straight_through(step, step / math.sqrt(max(count, 1) * largest))


def _positive(step: Tensor) -> Tensor:
    """An optimizer may take a step across zero."""
    return step.abs().clamp_min(torch.finfo(step.dtype).tiny)
