"""Training with weights of three values: ternary weight networks (TWN) and trained ternary quantization (TTQ)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sparsecore.prune.weights import Selector
from sparsecore.quantize.fake import straight_through
from sparsecore.quantize.simulated import Simulation, require_unshared, simulate, trainable_layers


def prepare_ternary(
    model: nn.Module,
    *,
    method: str = "twn",
    threshold: float | None = None,
    exclude: Selector | Iterable[Selector] = (),
    skip_ends: bool = False,
) -> nn.Module:
    """Make a model train with weights of three values per layer, one of them zero, in place.

    nn.Linear and nn.Conv2d (not their subclasses) are swapped for layers that hold the same parameters. Small weights
    count as zero, so entries that are masked stay exactly zero. ``fold_qat()`` ends in plain layers with the three
    values.

    Args:
        model: any module that contains such layers.
        method: ``"twn"``: -a, 0, +a with a the mean magnitude of the weights above the threshold; or ``"ttq"``: -a, 0,
            +b with a and b trained, new parameters that the optimizer has to be given (create it afterwards).
        threshold: below it a weight counts as zero: for ``"twn"`` a multiple of the mean magnitude, 0.7 if None; for
            ``"ttq"`` a share of the largest, 0.05 if None.
        exclude: what to leave alone: names of modules, fnmatch patterns or module types.
        skip_ends: leave the first and the last layer alone too, in the order of the model.

    Returns:
        The same model.

    Raises:
        ValueError: an argument is out of range.
        FormatError: a weight is NaN or infinite.
        UnsupportedError: nothing is left to make ternary, or with ``"ttq"`` two layers share a weight, which cannot
            have the trained values of both.

    Example:
        >>> model = prepare_ternary(nn.Sequential(nn.Linear(64, 4)))
        >>> len(model[0].simulation.values(model[0].weight).unique())
        3

    Reference:
        Li & Liu, Ternary Weight Networks, arXiv 1605.04711, 2016, eq. 5-6. Zhu et al., Trained Ternary Quantization,
        ICLR 2017, eq. 6-9.
    """
    if method not in METHODS:
        raise ValueError(f"expected a method of {sorted(METHODS)}, got {method!r}")
    kind, usual, limit = METHODS[method]
    threshold = usual if threshold is None else threshold
    if not 0 <= threshold < limit:
        raise ValueError(f"expected a threshold of at least 0 and below {limit} for {method}, got {threshold!r}")
    layers = trainable_layers(model, exclude, skip_ends)
    if method == "ttq":
        require_unshared(layers, "trained values", 'method="twn"')
    return simulate(model, layers, lambda name, layer: kind(threshold, layer.get_parameter("weight").detach()))


class TernaryWeights(Simulation):
    """-a, 0 and +a, a the mean magnitude of what is above the threshold; straight-through gradient."""

    def __init__(self, threshold: float, weight: Tensor) -> None:
        super().__init__()
        self.threshold = threshold

    def values(self, weight: Tensor) -> Tensor:
        real = weight.detach()
        magnitude = real.abs()
        is_kept = magnitude > self.threshold * magnitude.mean()
        return straight_through(real.sign() * is_kept * _mean_where(magnitude, is_kept), weight)


class TrainedTernaryWeights(Simulation):
    """-a, 0 and +b, both trained: their gradients are sums over their members, the weight's is scaled by them.

    Attributes:
        negative: a, scalar.
        positive: b, scalar.
    """

    def __init__(self, threshold: float, weight: Tensor) -> None:
        super().__init__()
        self.threshold = threshold
        is_positive, is_negative = self._signs(weight)
        self.positive = nn.Parameter(_mean_where(weight, is_positive))
        self.negative = nn.Parameter(-_mean_where(weight, is_negative))

    def values(self, weight: Tensor) -> Tensor:
        is_positive, is_negative = self._signs(weight.detach())
        scales = torch.where(is_positive, self.positive, torch.where(is_negative, self.negative, 1.0)).to(weight.dtype)
        values = torch.where(is_positive, self.positive, torch.where(is_negative, -self.negative, 0.0))
        return values.to(weight.dtype) + scales.detach() * (weight - weight.detach())

    def _signs(self, real: Tensor) -> tuple[Tensor, Tensor]:
        threshold = self.threshold * real.abs().max()
        return real > threshold, real < -threshold


def _mean_where(tensor: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries under a mask, 0 without any."""
    return (tensor * mask).sum() / mask.sum().clamp_min(1)


#: Simulation, threshold, and where thresholds end.
METHODS: dict[str, tuple[Callable[[float, Tensor], Simulation], float, float]] = {
    "twn": (TernaryWeights, 0.7, float("inf")),
    "ttq": (TrainedTernaryWeights, 0.05, 1.0),
}
