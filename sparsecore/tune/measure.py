"""Times the candidates of one layer on the shapes it really runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sparsecore.bench.gpu_clock import CudaClock, DeviceClock
from sparsecore.bench.timing import Timing, interleave
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.graph import Call
from sparsecore.graph.program import record_layer
from sparsecore.tune.cache import TimeCache, Times
from sparsecore.tune.candidates import INTEGER_FORMATS, operation_of, weight_statistics
from sparsecore.tune.gpu import device_of, is_on_gpu
from sparsecore.tune.makers import DENSE, Maker

# 0.15 s per shape puts the medians of a 100 us layer within about 1% on a quiet machine, and ResNet-50's
# 20 different layers at a few seconds in all.
MIN_TIME_S = 0.15
# Of a GPU's own time; filling its cache between the calls takes several times as long.
MIN_GPU_TIME_S = 0.02
# Of what other layers read in a pass, as much as leaves nothing of a layer in any cache.
MOST_OTHER_BYTES = 32 << 20
# Quartiles further apart than this share of the median come from something else on the machine.
MAX_SPREAD = 0.5


def layer_key(layer: nn.Module, call: Call) -> str:
    """What decides the time of a layer on a machine: class, geometry, input and non-zeros."""
    weight = weight_statistics(layer)
    geometry = [
        f"{name}={getattr(layer, name)}"
        for name in (
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "activation",
            "kernel",
        )
        if hasattr(layer, name)
    ]
    parts = [
        type(layer).__name__,
        operation_of(layer),
        f"{weight.N}x{weight.K}",
        f"nnz={weight.nnz}",
        f"x={call.shape} {str(call.dtype).removeprefix('torch.')}",
        f"bias={getattr(layer, 'bias', None) is not None}",
        *(["residual"] if call.has_residual else []),
        *geometry,
        *([f"on {torch.cuda.get_device_name(device_of(layer))}"] if device_of(layer).type == "cuda" else []),
    ]
    return " ".join(parts)


def measure_layer(
    layer: nn.Module,
    calls: Sequence[Call],
    forms: dict[str, nn.Module],
    cache: TimeCache | None,
    *,
    is_recorded: bool = False,
    other_bytes: int = MOST_OTHER_BYTES,
) -> tuple[Times, bool]:
    """Time every form of a layer on random inputs of the observed shapes.

    Args:
        layer: the layer as it is in the model.
        calls: its calls in one pass of the model.
        forms: format name to module, in eval mode.
        cache: where times are looked up and put, unless they are noisy; None always measures.
        is_recorded: time operations of ours as a program replays them, without their call from Python.
        other_bytes: what the rest of the model reads before the layer runs again.

    Returns:
        Format name to microseconds of all calls together, and whether a time is too noisy to be kept.
    """
    total = dict.fromkeys(forms, 0.0)
    is_noisy = False
    for call, count in Counter(calls).items():
        key = layer_key(layer, call) + " recorded" * is_recorded
        if not is_on_gpu(layer):
            key += f" after={other_bytes >> 20}MB"
        times = cache.get(key) if cache is not None else None
        if times is None or not _covers(times, forms):
            times, spread = _measure(forms, call, is_recorded, other_bytes)
            is_noisy |= spread > MAX_SPREAD
            if cache is not None and spread <= MAX_SPREAD:
                cache.put(key, times)
        for name in forms:
            total[name] += count * times[name]
    return total, is_noisy


def _covers(times: Times, forms: Mapping[str, nn.Module]) -> bool:
    """Whether cached times are of these forms; those of integers may be there from a conversion with a budget."""
    return forms.keys() <= times.keys() and times.keys() - forms.keys() <= INTEGER_FORMATS


def bytes_of_others(model: nn.Module) -> int:
    """What a pass of a model reads beside any one layer, about: a power of two up to MOST_OTHER_BYTES."""
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return min(1 << max(held - 1, 0).bit_length(), MOST_OTHER_BYTES)


def _measure(forms: dict[str, nn.Module], call: Call, is_recorded: bool, other_bytes: int) -> tuple[Times, float]:
    """Time per form, and the largest spread among them."""
    dense = next(iter(forms.values()))
    inputs = [torch.randn(call.shape, generator=torch.Generator().manual_seed(0)).to(device_of(dense), call.dtype)]
    with torch.inference_mode():
        if call.has_residual:
            inputs.append(torch.zeros_like(dense(*inputs)))
        prepare = record_layer if is_recorded else _call
        runs = {name: prepare(form, inputs) for name, form in forms.items()}
        if is_on_gpu(dense):
            timings = _interleave_on_gpu(runs, device_clock(dense))
        else:
            timings = interleave(runs, min_time_s=MIN_TIME_S, before=_Neighbours(inputs, other_bytes))
    # The lower quartile: what else runs on the machine only ever adds time.
    times = {name: timing.q25_us for name, timing in timings.items()}
    return times, max(timing.spread for timing in timings.values())


def device_clock(layer: nn.Module) -> DeviceClock:
    """The clock of the GPU that a layer is on."""
    return CudaClock(device_of(layer))


def _interleave_on_gpu(runs: Mapping[str, Callable[[], object]], clock: DeviceClock) -> dict[str, Timing]:
    timed = {name: clock.timed(run) for name, run in runs.items()}
    return interleave(timed, min_time_s=MIN_GPU_TIME_S, clock_ns=clock)


class _Neighbours:
    """Does to the caches what the other layers of a model do before a layer runs: its input was just made, its weight
    and its code have left the second-level cache.

    A classifier of 4 MB timed in a loop took 89 us in PyTorch and 120 us as a bitmap, in a pass of MobileNetV1 440 and
    165 (Zen 4).
    """

    def __init__(self, inputs: Sequence[Tensor], other_bytes: int) -> None:
        self.others = torch.zeros(other_bytes // 4)
        self.inputs = inputs
        self.values = [x.clone() for x in inputs]

    def __call__(self) -> None:
        self.others.sum()
        for x, value in zip(self.inputs, self.values, strict=True):
            x.copy_(value)


def _call(layer: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], object]:
    return partial(layer, *inputs)


def make_forms(layer: nn.Module, makers: Mapping[str, Maker], calls: Sequence[Call]) -> dict[str, nn.Module]:
    """Every form of a layer, in eval mode; one that the layer does not fit is left out."""
    shape = calls[0].shape if calls else None
    forms = {}
    for name, make in makers.items():
        try:
            form = make(layer, shape).eval()
            if name == DENSE and form is not layer and calls and calls[0].dtype.is_floating_point:
                form = form.to(calls[0].dtype)  # what an int8 layer holds comes out in float32
            forms[name] = form
        except UnsupportedError:
            if name == DENSE:
                raise
        except FormatError:  # a weight with NaN fits all but integers
            if name not in INTEGER_FORMATS:
                raise
    return forms
