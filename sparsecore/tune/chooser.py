"""The choice for every layer of a model: measured or predicted times, and an error budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from sparsecore.bench import probes
from sparsecore.errors import SparsecoreError, UnsupportedError
from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.graph import Call, Observation
from sparsecore.nn import CompressedModule, put_layer
from sparsecore.ops.cuda import check_cuda
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.budget import Budget, Option, excessive, keep_within, layer_errors
from sparsecore.tune.cache import Times
from sparsecore.tune.candidates import (
    HOLD_ZEROS,
    candidates,
    fixed_candidates,
    holds_zeros,
    numeric_type,
    operation_of,
    weight_statistics,
)
from sparsecore.tune.choice import Explanation, LayerChoice, percent, unmeasured
from sparsecore.tune.cost import relative_time
from sparsecore.tune.gpu import CONVOLUTIONS_STAY, device_of, is_on_gpu, relative_gpu_time
from sparsecore.tune.makers import DENSE, Maker, Shape
from sparsecore.tune.measure import bytes_of_others, make_forms, measure_layer
from sparsecore.tune.settings import Settings

# Another format must be this much faster than dense to be taken, and one of another numeric type than what the layer
# would run as without: less is noise on a shared machine.
MARGIN = 0.97
# Below this share of zeros no sparse float kernel beats dense (CPU.md's peers: 0.8-0.95x at 50%), so it is not timed.
WORTH_TIMING = 0.3


def choosable_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if candidates(module)}


_FIXED = "fixed by the policy"


@dataclass(frozen=True)
class AllowedError:
    """A budget, and what it takes to measure the error."""

    max_error: float
    reference: ReferenceOutputs


@dataclass
class _Decision:
    """What one layer can run as; filled step by step.

    Attributes:
        row: how the layer is described as it is.
        places: its names in the root.
        calls: in one pass of the model.
        makers: the candidates; none if the layer stays as it is.
        note: what else to know.
        errors: relative error of the layer's output by numeric type, 0 in its own; those that were not measured are
            not in it.
        excessive: numeric types that exceed the budget with this layer alone.
        times: of every form in one pass: microseconds, or the predicted share of the dense time.
        options: what may be chosen, by format.
        chosen: one of them; empty if the layer stays as it is.
    """

    row: LayerChoice
    places: Sequence[str]
    calls: Sequence[Call]
    makers: Mapping[str, Maker] = field(default_factory=dict)
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    excessive: Set[str] = frozenset()
    times: Times = field(default_factory=dict)
    options: dict[str, Option] = field(default_factory=dict)
    chosen: str = ""

    @property
    def own_type(self) -> str:
        return numeric_type(self.row.format)

    @property
    def given_up(self) -> list[str]:
        """Formats that are faster than the chosen one, and less exact."""
        limit = self.options[self.chosen].time
        return [name for name, option in self.options.items() if option.time < limit]

    @property
    def is_held_back(self) -> bool:
        """Whether the budget keeps the layer from another type."""
        is_own = numeric_type(self.chosen or self.row.format) == self.own_type
        return bool(self.chosen and self.given_up) or (is_own and bool(self.excessive))

    def error_of(self, format_name: str) -> float | None:
        """What a format adds to the output; None if that was not measured."""
        return self.errors.get(numeric_type(format_name))


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
        self.other_bytes = bytes_of_others(root)
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
        decisions = {layer: self._open(layer, names) for layer, names in places.items()}
        if self.error is not None:
            self._measure_errors(decisions, self.error)
        for done, (layer, decision) in enumerate(decisions.items(), start=1):
            self._decide(layer, decision)
            progress(done / steps)
        if self.cache is not None:
            self.cache.save()
        budget = None
        if self.error is not None:
            budget = self._fit(decisions, self.error, lambda share: progress((len(places) + share) / steps))
        rows = []
        for layer, decision in decisions.items():
            if decision.chosen:
                for place in decision.places:
                    put_layer(self.root, place, decision.options[decision.chosen].form)
            rows.append(self._row(layer, decision))
        if self.error is not None:
            progress(1.0)
        return Explanation(tuple(rows), budget)

    def _open(self, layer: nn.Module, places: Sequence[str]) -> _Decision:
        """Find what a layer could run as."""
        calls = self.seen.calls.get(layer, []) if self.seen is not None else []
        name, shape = user_name(places[0]), _shape_text(layer, calls)
        if reason := self._why_not(name, layer, calls):
            self._check_free(name, reason)
            return _Decision(unmeasured(name, layer, reason, shape), places, calls)
        makers, note = self._makers(name, layer)
        row = unmeasured(name, layer, note, shape)
        decision = _Decision(row, places, calls, makers if len(makers) > 1 else {}, note)
        decision.errors[decision.own_type] = 0.0
        return decision

    def _measure_errors(self, decisions: Mapping[nn.Module, _Decision], allowed: AllowedError) -> None:
        """Measure what other numeric types add to the outputs of layers, and rule out those that cannot fit."""
        forms = {}
        for layer, decision in decisions.items():
            if user_name(decision.places[0]) not in self.settings.fixed:
                forms[layer] = _one_of_each_type(layer, decision)
        for layer, errors in layer_errors(self.root[0], allowed.reference.batches, forms).items():
            decisions[layer].errors |= errors
            if self.is_measured:  # timing is what this saves
                alone = partial(_error_alone, allowed.reference, layer, forms[layer])
                decisions[layer].excessive = excessive(errors, alone, allowed.max_error)

    def _decide(self, layer: nn.Module, decision: _Decision) -> None:
        """Time or predict the forms of a layer, and keep those that may be chosen."""
        name, beyond = decision.row.name, decision.excessive
        makers = {f: make for f, make in decision.makers.items() if f == DENSE or numeric_type(f) not in beyond}
        decision.makers = {}  # and the forms they hold
        if len(makers) < 2:
            return
        try:
            forms = make_forms(layer, makers, decision.calls)
        except SparsecoreError as error:
            self._check_free(name, str(error))
            decision.row = replace(decision.row, reason=str(error))
            return
        if name in self.settings.fixed and len(forms) < 2:
            self._check_free(name, _why_not_made(layer, makers, decision.calls))
        if self.is_measured:
            times, is_noisy = self._measure(layer, decision, forms)
            decision.note = _joined(decision.note, "noisy, measured while the machine was busy" * is_noisy)
        else:
            times = _predict(layer, decision.calls, forms)
        decision.times = times
        if name in self.settings.fixed:
            wanted = next(iter(forms.keys() - {DENSE}))
            decision.options = {wanted: Option(wanted, forms[wanted], times[wanted], 0.0)}
        else:
            decision.options = self._options(layer, decision, forms)
        decision.chosen = min(decision.options, key=lambda name: decision.options[name].error)

    def _measure(self, layer: nn.Module, decision: _Decision, forms: dict[str, nn.Module]) -> tuple[Times, bool]:
        recorded, others = self.settings.is_recorded, self.other_bytes
        try:
            return measure_layer(layer, decision.calls, forms, self.cache, is_recorded=recorded, other_bytes=others)
        except RuntimeError as error:  # a kernel of another operation
            self._check_free(decision.row.name, str(error).partition("\n")[0])
            raise

    def _check_free(self, name: str, reason: str) -> None:
        """Raise ValueError if a layer that cannot have another form was given one."""
        if self.settings.fixed.get(name, DENSE) != DENSE:
            raise ValueError(f"policy: {name} cannot run as {self.settings.fixed[name]!r}: {reason}")

    def _options(self, layer: nn.Module, decision: _Decision, forms: Mapping[str, nn.Module]) -> dict[str, Option]:
        """The fastest format of each numeric type, but for those that a more exact one is as fast as."""
        formats: dict[str, list[str]] = {}
        for name in forms:
            # Without a budget an int8 layer may compute in float: nobody asks for the difference.
            kind = numeric_type(name) if self.error is not None else decision.own_type
            if kind not in decision.excessive:
                formats.setdefault(kind, []).append(name)
        unit = 1.0
        if not self.is_measured:  # predicted times are shares of the dense time, which goes with its operations
            unit = max(sum(flops_of(layer, call.shape, True) for call in decision.calls), 1)
        options = {}
        for kind, names in formats.items():
            name = self._fastest(decision.times, names)
            options[name] = Option(name, forms[name], unit * decision.times[name], decision.errors[kind])
        return {
            name: option
            for name, option in options.items()
            if not any(o.error < option.error and MARGIN * o.time <= option.time for o in options.values())
        }

    def _makers(self, name: str, layer: nn.Module) -> tuple[Mapping[str, Maker], str]:
        """The candidates worth timing, and why others are not."""
        if name in self.settings.fixed:
            return fixed_candidates(name, layer, self.settings.fixed[name]), _FIXED
        makers = candidates(layer, with_integers=self.error is not None)
        if isinstance(layer, CompressedModule) or weight_statistics(layer).sparsity >= WORTH_TIMING:
            return makers, ""
        few = {name: make for name, make in makers.items() if holds_zeros(layer, name)}
        return few, f"fewer than {WORTH_TIMING:.0%} zeros"

    def _fastest(self, times: Times, forms: Sequence[str]) -> str:
        margin = MARGIN if self.is_measured else 1.0
        return min(forms, key=lambda form: times[form] * (1.0 if form == DENSE else 1 / margin))

    def _fit(
        self, decisions: Mapping[nn.Module, _Decision], allowed: AllowedError, progress: Callable[[float], None]
    ) -> Budget:
        """Choose what is faster with an error, as far as the budget goes."""

        def error_with(forms: Mapping[nn.Module, nn.Module]) -> float:
            return allowed.reference.error({layer: form for layer, form in forms.items() if form is not layer})

        options = {layer: tuple(d.options.values()) for layer, d in decisions.items() if d.options}
        chosen, error = keep_within(options, error_with, allowed.max_error, progress)
        for layer, option in chosen.items():
            decisions[layer].chosen = option.name
        return Budget(allowed.max_error, error, sum(d.is_held_back for d in decisions.values()))

    def _row(self, layer: nn.Module, decision: _Decision) -> LayerChoice:
        chosen = decision.chosen
        if not chosen:
            return replace(decision.row, reason=_joined(decision.row.reason, *_ruled_out(decision)))
        form, shape = decision.options[chosen].form, decision.row.shape
        row = unmeasured(decision.row.name, layer, self._reason(decision), shape, form)
        row = replace(row, error=decision.error_of(chosen))
        if not self.is_measured:
            return row
        flops = sum(flops_of(layer, call.shape, chosen in HOLD_ZEROS) for call in decision.calls)
        return replace(
            row,
            time_us=decision.times[chosen],
            alone_us=decision.times[chosen],
            dense_us=decision.times[DENSE],
            predicted_us=decision.times[DENSE] * _predict(layer, decision.calls, [chosen])[chosen],
            roofline=None if is_on_gpu(layer) else flops / (decision.times[chosen] * 1e3) / self.peak_gflops,
        )

    def _reason(self, decision: _Decision) -> str:
        """Why the chosen format, and the time and error of the others."""

        def cost(form: str) -> str:
            time, error = decision.times[form], decision.error_of(form)
            text = f"{form} {time:.0f} us" if self.is_measured else f"{form} {time:.2f}"
            return f"{text} (error {percent(error)})" if error else text

        others = ", ".join(cost(form) for form in decision.times if form != decision.chosen)
        if self.is_measured:
            why = "fastest"
        else:
            why = f"cost model: {decision.times[decision.chosen]:.2f} of the dense time, not measured"
        if given_up := decision.given_up:
            why += f" without {' and '.join(given_up)}, which would exceed max_error"
        return _joined(why, others, *_ruled_out(decision), decision.note)

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


def _one_of_each_type(layer: nn.Module, decision: _Decision) -> dict[str, nn.Module]:
    """A form of the layer in every numeric type but its own; its maker gives it back from then on."""
    forms: dict[str, nn.Module] = {}
    makers = dict(decision.makers)
    for name, make in decision.makers.items():
        kind = numeric_type(name)
        if kind == decision.own_type or kind in forms:
            continue
        with suppress(SparsecoreError):  # _decide() says what is wrong
            for form in make_forms(layer, {name: make}, decision.calls).values():
                forms[kind] = form
                makers[name] = partial(_given, form)
    decision.makers = makers
    return forms


def _error_alone(reference: ReferenceOutputs, layer: nn.Module, forms: Mapping[str, nn.Module], kind: str) -> float:
    return reference.error({layer: forms[kind]})


def _given(form: nn.Module, layer: nn.Module, shape: Shape | None) -> nn.Module:
    return form


def _ruled_out(decision: _Decision) -> list[str]:
    """Numeric types that nothing was timed in, and why."""
    kinds = sorted(decision.excessive)
    return [f"{kind} ruled out (own error {percent(decision.errors[kind])}, alone exceeds max_error)" for kind in kinds]


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _why_not_on(device: torch.device, layer: nn.Module) -> str:
    """Why a layer on a device stays as it is; empty if there are kernels for it."""
    if device.type == "cpu":
        return ""
    if not is_on_gpu(layer):
        return f"on {device}: there are kernels for CPUs and CUDA"
    if operation_of(layer) != "linear":
        return CONVOLUTIONS_STAY
    try:
        check_cuda(device, type(layer).__name__)
    except UnsupportedError as error:
        return str(error)
    return ""


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


def _why_not_made(layer: nn.Module, makers: Mapping[str, Maker], calls: Sequence[Call]) -> str:
    """What keeps a layer from all forms but the dense one."""
    for name, make in makers.items():
        try:
            if name != DENSE:
                make(layer, calls[0].shape if calls else None)
        except SparsecoreError as error:
            return str(error)
    return "its weight and input do not fit"
