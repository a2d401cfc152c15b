"""How a model is quantized: the settings, and the int8 layers that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from sparsecore.calibration import first_names
from sparsecore.quantize.affine import affine_range
from sparsecore.quantize.bias import correct_bias
from sparsecore.quantize.calibrate import observe, observe_channels
from sparsecore.quantize.channels import channel_scale, weight_channel_absmax
from sparsecore.quantize.groups import GROUP_SIZE, check_group_size
from sparsecore.quantize.layers import quantize_layer
from sparsecore.quantize.observers import Observer, observer_factory


@dataclass(frozen=True)
class Scheme:
    """The settings of quantize() and sensitivity(), checked.

    Raises:
        ValueError: a setting is out of range.
    """

    activations: str = "dynamic"
    observer: str | Observer | Callable[[], Observer] = "minmax"
    per_channel: bool = False
    alpha: float = 0.5
    bias_correction: bool = False
    bits: int = 8
    group_size: int = GROUP_SIZE

    def __post_init__(self) -> None:
        if self.activations not in ("dynamic", "static"):
            raise ValueError(f'expected activations "dynamic" or "static", got {self.activations!r}')
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected an alpha between 0 and 1, got {self.alpha}")
        observer_factory(self.observer)
        if self.bits not in (4, 8):
            raise ValueError(f"expected bits of 8 or 4, got {self.bits!r}; prepare_qat() trains weights of other bits")
        check_group_size(self.group_size)

    @property
    def uses_batches(self) -> bool:
        """Whether there is anything to learn from calibration batches."""
        return self.activations == "static" or self.per_channel or self.bias_correction

    @property
    def passes(self) -> int:
        """How often the batches are run."""
        calibration = int(self.activations == "static") + int(self.per_channel)
        return max(calibration, 1) + int(self.bias_correction)

    def describe(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults, and activations, ready for JSON."""
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in changed.items() if value != getattr(type(self), name)}
        if "observer" in changed:
            changed["observer"] = getattr(self.observer, "__name__", str(self.observer))
        return {"activations": self.activations} | changed

    def quantize(
        self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any] | None, progress: bool
    ) -> dict[nn.Module, nn.Module]:
        """Return the int8 form of each layer; the model stays as it is.

        Raises:
            ValueError: no batches, a NaN or infinite activation, or a layer that never ran.
            FormatError: a weight is NaN or infinite.
            UnsupportedError: a layer that the int8 kernels cannot run.
        """
        settings = {} if batches is None else self._calibrate(model, layers, batches, progress)
        quantize = quantize_layer if self.bits == 8 else partial(quantize_layer, group_size=self.group_size)
        quantized = {
            layer: quantize(name, layer, settings.get(layer, {})) for layer, name in first_names(layers).items()
        }
        if batches is not None and self.bias_correction:
            correct_bias(model, layers, quantized, batches, progress=progress)
        return quantized

    def _calibrate(
        self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], progress: bool
    ) -> dict[nn.Module, dict[str, Any]]:
        settings: dict[nn.Module, dict[str, Any]] = {layer: {} for layer in layers.values()}
        scales: dict[nn.Module, Tensor] = {}
        if self.per_channel:
            for layer, absmax in observe_channels(model, layers, batches, progress=progress).items():
                scales[layer] = channel_scale(absmax.cpu(), weight_channel_absmax(layer).cpu(), self.alpha)
                settings[layer]["x_channel_scale"] = scales[layer]
        if self.activations == "static":
            ranges = observe(model, layers, batches, observer=self.observer, channel_scales=scales, progress=progress)
            for layer, seen in ranges.items():
                settings[layer] |= dict(zip(("x_scale", "x_zero_point"), affine_range(*seen), strict=True))
        elif not self.per_channel:
            observe(model, layers, batches, progress=progress)  # that all layers run, on finite activations
        return settings
