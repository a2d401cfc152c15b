"""The choice for every layer of a model: measured or predicted times, and an error budget."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from sparsecore._native import has_cuda_kernels
from sparsecore.bench import probes
from sparsecore.calls import ExampleInputs
from sparsecore.errors import SparsecoreError, UnsupportedError, require_module
from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.graph import Call, Observation
from sparsecore.nn import CompressedModule, put_layer
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.budget import Budget, Trade, check_max_error, keep_within, layer_errors
from sparsecore.tune.cache import TimeCache, Times
from sparsecore.tune.candidates import (
    HOLD_ZEROS,
    candidates,
    fixed_candidates,
    holds_zeros,
    is_exact,
    operation_of,
    weight_statistics,
)
from sparsecore.tune.choice import Explanation, LayerChoice, percent, unmeasured
from sparsecore.tune.cost import relative_time
from sparsecore.tune.gpu import CONVOLUTIONS_STAY, device_of, is_on_gpu, relative_gpu_time
from sparsecore.tune.makers import DENSE, Maker
from sparsecore.tune.measure import make_forms, measure_layer

# Another format must be this much faster than dense to be taken, and one of another numeric type than what the layer
# would run as without: less is noise on a shared machine.
MARGIN = 0.97
# Below this share of zeros no sparse float kernel beats dense (CPU.md's peers: 0.8-0.95x at 50%), so it is not timed.
WORTH_TIMING = 0.3


def choosable_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if candidates(module)}


_FIXED = "fixed by the policy"
Policy = Literal["measure", "model"] | Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """How to choose, checked.

    Attributes:
        is_measured: times are measured; else predicted.
        fixed: layer name to the format or kernel that it runs on, whatever the times.
        max_error: see convert().
        excluded: names of layers that stay as they are.
        cache: where times are looked up and kept; None measures all anew.
        is_recorded: layers will run recorded, without the cost of a call from Python.
    """

    is_measured: bool
    fixed: Mapping[str, str]
    max_error: float | None
    excluded: Set[str]
    cache: TimeCache | None
    is_recorded: bool = False


def check_settings(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    max_error: float | None,
    policy: Policy | None,
    exclude: Iterable[str],
    cache: bool | str | os.PathLike[str],
) -> Settings:
    """Check what convert() and compile() have in common.

    Raises:
        TypeError: the model is not a module.
        ValueError: see convert().
        UnsupportedError: a tensor of the model has no values yet.
    """
    require_module(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedError(f"{name} has no values yet; initialise the model first")
    names = dict(model.named_modules(remove_duplicate=False)).keys()
    fixed = dict(policy) if isinstance(policy, Mapping) else {}
    if unknown := fixed.keys() - names:
        raise ValueError(f"policy: nothing in the model is called {sorted(unknown)}")
    if fixed or policy is None:
        policy = "model" if example_inputs is None else "measure"
    if policy not in ("measure", "model"):
        raise ValueError(f'expected policy "measure", "model" or {{layer: format or kernel}}, got {policy!r}')
    if policy == "measure" and example_inputs is None:
        raise ValueError('policy "measure" needs example_inputs to know the shapes; give them, or take "model"')
    if max_error is not None:
        max_error = check_max_error(max_error)
        if example_inputs is None:
            raise ValueError("max_error needs example_inputs to measure the error on; give them, or leave it out")
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    if unknown := excluded - names:
        raise ValueError(f"exclude: nothing in the model is called {sorted(unknown)}")
    times = None
    if cache is not False:
        times = TimeCache() if cache is True else TimeCache(Path(cache))
    return Settings(policy == "measure", fixed, max_error, excluded, times)


@dataclass(frozen=True)
class AllowedError:
    """A budget, and what it takes to measure the error."""

    max_error: float
    reference: ReferenceOutputs


@dataclass
class _Decision:
    """What one layer can run as.

    Attributes:
        row: how the layer is described as it is.
        places: its names in the root.
        calls: in one pass of the model.
        times: of every form in one pass: microseconds, or the predicted share of the dense time.
        forms: the fastest exact form and, if there is a budget, the fastest of the others, which has an error.
        exact: format of the first; empty if the layer stays as it is.
        inexact: format of the second; empty if there is none.
        error: relative error of the layer's output in that one.
        chosen: one of both.
        note: what else to know of the times.
    """

    row: LayerChoice
    places: Sequence[str]
    calls: Sequence[Call]
    times: Times
    forms: dict[str, nn.Module]
    exact: str = ""
    inexact: str = ""
    error: float | None = None
    chosen: str = ""
    note: str = ""

    @property
    def is_faster_inexact(self) -> bool:
        return bool(self.inexact) and self.times[self.inexact] < MARGIN * self.times[self.exact]

    @property
    def is_given_up(self) -> bool:
        return self.is_faster_inexact and self.chosen == self.exact


class Chooser:
    """Chooses for one model: what was seen of it, where times come from, and what error is allowed."""

    def __init__(
        self,
        root: nn.Sequential,
        seen: Observation | None,
        settings: Settings,
        error: AllowedError | None,
    ) -> None:
        self.root = root
        self.seen = seen
        self.settings = settings
        self.is_measured = settings.is_measured
        self.cache = settings.cache
        self.error = error
        self.owners = Counter(id(p) for m in root.modules() for p in m.parameters(recurse=False))
        self.peak_gflops = probes.fma_gflops(torch.get_num_threads(), 0.05) if self.is_measured else 0.0

    def run(self, progress: Callable[[float], None]) -> Explanation:
        places: dict[nn.Module, list[str]] = {}
        for name, module in self.root.named_modules(remove_duplicate=False):
            if candidates(module):
                places.setdefault(module, []).append(name)
        found = {user_name(name) for names in places.values() for name in names}
        if missing := self.settings.fixed.keys() - found:
            raise ValueError(f"policy: {sorted(missing)} have no other form; expected some of {sorted(found)}")
        steps = len(places) + (self.error is not None)
        decisions: dict[nn.Module, _Decision] = {}
        for layer, names in places.items():
            decisions[layer] = self._decide(layer, names)
            progress(len(decisions) / steps)
        if self.cache is not None:
            self.cache.save()
        budget = self._fit(decisions, self.error) if self.error is not None else None
        rows = []
        for layer, decision in decisions.items():
            if decision.chosen:
                for place in decision.places:
                    put_layer(self.root, place, decision.forms[decision.chosen])
            rows.append(self._row(layer, decision))
        if self.error is not None:
            progress(1.0)
        return Explanation(tuple(rows), budget)

    def _decide(self, layer: nn.Module, places: Sequence[str]) -> _Decision:
        """Time or predict all forms of a layer, and keep those that may be chosen."""
        calls = self.seen.calls.get(layer, []) if self.seen is not None else []
        name, shape = user_name(places[0]), _shape_text(layer, calls)

        def stays(reason: str) -> _Decision:
            return _Decision(unmeasured(name, layer, reason, shape), places, calls, {}, {})

        if reason := self._why_not(name, layer, calls):
            return stays(reason)
        makers, note = self._makers(name, layer)
        if len(makers) < 2:
            return stays(note)
        try:
            forms = make_forms(layer, makers, calls)
        except SparsecoreError as error:
            return stays(str(error))
        if self.is_measured:
            times, is_noisy = measure_layer(layer, calls, forms, self.cache, is_recorded=self.settings.is_recorded)
            note = "; ".join(filter(None, (note, "noisy, measured while the machine was busy" * is_noisy)))
        else:
            times = _predict(layer, calls, forms)
        if name in self.settings.fixed:
            wanted = next(iter(forms.keys() - {DENSE}), "")
            if not wanted:
                raise ValueError(
                    f"policy: {name} cannot run as {self.settings.fixed[name]!r} with its weight and input; "
                    "fix another format or leave it out"
                )
            row = unmeasured(name, layer, "", shape)
            return _Decision(row, places, calls, times, forms, wanted, chosen=wanted, note=_FIXED)
        own = [form for form in forms if self.error is None or is_exact(layer, form)]
        others = [form for form in forms if form not in own]
        exact, inexact = self._fastest(times, own), self._fastest(times, others) if others else ""
        kept = {form: forms[form] for form in (exact, inexact) if form}
        row = unmeasured(name, layer, "", shape)
        return _Decision(row, places, calls, times, kept, exact, inexact, chosen=exact, note=note)

    def _makers(self, name: str, layer: nn.Module) -> tuple[Mapping[str, Maker], str]:
        """The candidates worth timing, and why others are not."""
        if name in self.settings.fixed:
            return fixed_candidates(name, layer, self.settings.fixed[name]), _FIXED
        makers = candidates(layer, with_int8=self.error is not None)
        if isinstance(layer, CompressedModule) or weight_statistics(layer).sparsity >= WORTH_TIMING:
            return makers, ""
        few = {name: make for name, make in makers.items() if holds_zeros(layer, name)}
        return few, f"fewer than {WORTH_TIMING:.0%} zeros"

    def _fastest(self, times: Times, forms: Sequence[str]) -> str:
        margin = MARGIN if self.is_measured else 1.0
        return min(forms, key=lambda form: times[form] * (1.0 if form == DENSE else 1 / margin))

    def _fit(self, decisions: Mapping[nn.Module, _Decision], allowed: AllowedError) -> Budget:
        """Choose what is faster with an error, as far as the budget goes."""
        forms = {layer: d.forms[d.inexact] for layer, d in decisions.items() if d.inexact}
        for layer, error in layer_errors(self.root[0], allowed.reference.batches, forms).items():
            decisions[layer].error = error
        trades = [self._trade(layer, d) for layer, d in decisions.items() if d.is_faster_inexact]
        exact = {layer: d.forms[d.exact] for layer, d in decisions.items() if d.exact}

        def error_with(forms: Mapping[nn.Module, nn.Module]) -> float:
            changed = {layer: form for layer, form in {**exact, **forms}.items() if form is not layer}
            return allowed.reference.error(changed)

        kept, error = keep_within(trades, error_with, allowed.max_error)
        for trade in kept:
            decisions[trade.layer].chosen = decisions[trade.layer].inexact
        return Budget(allowed.max_error, error, sum(d.is_given_up for d in decisions.values()))

    def _trade(self, layer: nn.Module, decision: _Decision) -> Trade:
        saved = decision.times[decision.exact] - decision.times[decision.inexact]
        if not self.is_measured:  # predicted times are shares of the dense time, which goes with its operations
            saved *= max(sum(flops_of(layer, call.shape, True) for call in decision.calls), 1)
        assert decision.error is not None
        return Trade(layer, decision.forms[decision.exact], decision.forms[decision.inexact], saved, decision.error)

    def _row(self, layer: nn.Module, decision: _Decision) -> LayerChoice:
        chosen = decision.chosen
        if not chosen:
            return decision.row
        error = 0.0 if is_exact(layer, chosen) else decision.error
        row = unmeasured(
            decision.row.name, layer, self._reason(layer, decision), decision.row.shape, decision.forms[chosen]
        )
        row = replace(row, error=error)
        if not self.is_measured:
            return row
        flops = sum(flops_of(layer, call.shape, chosen in HOLD_ZEROS) for call in decision.calls)
        return replace(
            row,
            time_us=decision.times[chosen],
            dense_us=decision.times[DENSE],
            predicted_us=decision.times[DENSE] * _predict(layer, decision.calls, [chosen])[chosen],
            roofline=None if is_on_gpu(layer) else flops / (decision.times[chosen] * 1e3) / self.peak_gflops,
        )

    def _reason(self, layer: nn.Module, decision: _Decision) -> str:
        """Why the chosen format, and the time and error of the others."""

        def cost(form: str) -> str:
            time = decision.times[form]
            text = f"{form} {time:.0f} us" if self.is_measured else f"{form} {time:.2f}"
            error = None if is_exact(layer, form) else decision.error
            return text if error is None else f"{text} (error {percent(error)})"

        others = ", ".join(cost(form) for form in decision.times if form != decision.chosen)
        if self.is_measured:
            why = "fastest"
        else:
            why = f"cost model: {decision.times[decision.chosen]:.2f} of the dense time, not measured"
        if decision.is_given_up:
            why += f" without {decision.inexact}, which would exceed max_error"
        return "; ".join(filter(None, (why, others, decision.note)))

    def _why_not(self, name: str, layer: nn.Module, calls: Sequence[Call]) -> str:
        """Why a layer stays as it is without a choice; empty if it need not."""
        weight = None if isinstance(layer, CompressedModule) else layer.weight
        if name in self.settings.excluded:
            return "excluded"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "has hooks"
        if any(self.owners[id(p)] > 1 for p in layer.parameters(recurse=False)):
            return "shares its weight with another layer"
        if isinstance(weight, torch.Tensor) and weight.dtype not in FLOAT_DTYPES:
            return f"{str(weight.dtype).removeprefix('torch.')}: kernels take float32, bfloat16 and float16"
        if reason := _why_not_on(device_of(layer), layer):
            return reason
        if self.seen is not None and not calls:
            return "did not run on the example"
        if any(call.dtype not in FLOAT_DTYPES for call in calls):
            return "its input is not float32, bfloat16 or float16"
        return ""


def _why_not_on(device: torch.device, layer: nn.Module) -> str:
    """Why a layer on a device stays as it is; empty if there are kernels for it."""
    if device.type == "cpu":
        return ""
    if not is_on_gpu(layer):
        return f"on {device}: there are kernels for CPUs and CUDA"
    if operation_of(layer) != "linear":
        return CONVOLUTIONS_STAY
    return "" if has_cuda_kernels() else f"on {device}: this build has no CUDA kernels"


def _predict(layer: nn.Module, calls: Sequence[Call], forms: Iterable[str]) -> Times:
    weight = weight_statistics(layer)
    columns = min((columns_of(layer, call.shape) for call in calls), default=0)
    if is_on_gpu(layer):
        return {form: relative_gpu_time(form, 1.0 - weight.sparsity, columns) for form in forms}
    return {form: relative_time(form, weight, columns) for form in forms}


def user_name(name: str) -> str:
    """Name in the user's model: without the container's '0.'; a model that is one layer has no name."""
    return name.partition(".")[2] or "(model)"


def columns_of(layer: nn.Module, shape: Sequence[int]) -> int:
    """Columns of activations: rows of x for a linear layer, output pixels for a convolution."""
    if operation_of(layer) == "linear":
        return torch.Size(shape[:-1]).numel()
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pixels = 1
    for axis, size in enumerate(shape[-2:]):
        kernel, stride, padding, dilation = (setting[axis] if isinstance(setting, tuple) else 0 for setting in settings)
        if layer.padding == "same":
            pixels *= size
        else:
            pixels *= (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return pixels * (shape[0] if len(shape) == 4 else 1)


def flops_of(layer: nn.Module, shape: Sequence[int], is_dense: bool) -> int:
    """Operations on what is stored: a multiply-add counts as two."""
    weight = weight_statistics(layer)
    stored = weight.N * weight.K if is_dense else weight.nnz
    return 2 * stored * columns_of(layer, shape)


def _shape_text(layer: nn.Module, calls: Sequence[Call]) -> str:
    weight = weight_statistics(layer)
    inputs = ", ".join("x".join(map(str, shape)) for shape in dict.fromkeys(c.shape for c in calls))
    return f"{weight.N}x{weight.K}" + (f" on {inputs}" if inputs else "")
