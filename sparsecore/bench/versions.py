"""Versions of one model, timed in turns, with the FMA peak measured between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.bench import probes
from sparsecore.bench.timing import Timing, interleave, speedup

CHANNELS_LAST = ", channels last"  # ends the name of the second of eager_versions()
PROBE = "FMA probe"
PROBE_SECONDS = 0.01


@dataclass(frozen=True)
class Version:
    """One way to run a model.

    Attributes:
        name: Short, unique among the versions of a model.
        what: One line that says what it is.
        library: Whose kernels compute: ``"PyTorch"`` or ``"sparsecore"``.
        model: In eval mode.
        memory_format: Of the 4-D input.
    """

    name: str
    what: str
    library: str
    model: nn.Module = field(repr=False)
    memory_format: torch.memory_format = torch.contiguous_format

    def describe(self) -> dict[str, Any]:
        """Name, description and library, for the report."""
        return {"name": self.name, "what": self.what, "library": self.library}


@dataclass(frozen=True)
class Run:
    """One interleaved run: a timing per version, and the FMA peak while it lasted."""

    batch: int
    timings: dict[str, Timing]
    fma_gflops: float

    def row(self, name: str, baseline: str) -> dict[str, Any]:
        """Statistics of one version, and its speed-up over another one of this run."""
        timing = self.timings[name]
        ratio = speedup(self.timings[baseline], timing)
        return {"batch": self.batch, **timing.to_dict(), "speedup": ratio}

    def faster(self, *names: str) -> str:
        """Name of the fastest of these versions."""
        return min(names, key=lambda name: self.timings[name].median_us)


def eager_versions(model: nn.Module, name: str, what: str) -> list[Version]:
    """Both ways PyTorch runs a model on images: contiguous and channels last."""
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        Version(name, what, "PyTorch", model),
        Version(
            f"{name}{CHANNELS_LAST}",
            "the same in PyTorch's other memory format",
            "PyTorch",
            channels_last,
            torch.channels_last,
        ),
    ]


def measure(
    versions: Sequence[Version],
    x: Tensor,
    *,
    min_time_s: float,
    min_rounds: int = 5,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Time versions of a model on the same input, taking turns with an FMA probe.

    Args:
        versions: What to compare.
        x: The input, ``[B, C, H, W]``; every version gets it in its own memory format.
        min_time_s: Seconds that the rounds take at least, all versions together.
        min_rounds: Rounds at least.
        progress: Called with the share done.

    Returns:
        The timings, all from one interleaved run.
    """
    peaks: list[float] = []
    threads = torch.get_num_threads()

    def probe() -> None:
        peaks.append(probes.fma_gflops(threads, PROBE_SECONDS))

    calls: dict[str, Callable[[], object]] = {
        version.name: partial(version.model, x.contiguous(memory_format=version.memory_format)) for version in versions
    }
    with torch.inference_mode():
        timings = interleave({**calls, PROBE: probe}, min_time_s=min_time_s, min_rounds=min_rounds, progress=progress)
    del timings[PROBE]
    return Run(batch=len(x), timings=timings, fma_gflops=median(peaks))


@torch.inference_mode()
def max_relative_difference(model: nn.Module, reference: nn.Module, x: Tensor) -> float:
    """Largest difference of two models' outputs over the largest output of the reference."""
    expected = reference(x)
    return float((model(x) - expected).abs().max() / expected.abs().max())


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones counted once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def replace_layers(model: nn.Module, makers: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """Return a copy with every layer of these exact types replaced by what its maker gives."""
    replaced = copy.deepcopy(model)
    for module in list(replaced.modules()):
        for name, child in list(module.named_children()):
            if make := makers.get(type(child)):
                setattr(module, name, make(child))
    return replaced
