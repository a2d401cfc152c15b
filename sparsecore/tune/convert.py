"""sc.convert: every layer in the format that runs fastest here, dense included, so that nothing gets slower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from sparsecore.bench import probes
from sparsecore.errors import SparsecoreError
from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.graph import Call, Observation, copy_model, observe
from sparsecore.graph.fold import fold_batchnorm_, foldable_layers
from sparsecore.graph.observe import ExampleInputs
from sparsecore.nn import CompressedModule, put_layer
from sparsecore.prune import fold_torch_pruning
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.budget import Budget, Trade, check_max_error, keep_within, layer_errors
from sparsecore.tune.cache import TimeCache, Times
from sparsecore.tune.candidates import DENSE, Maker, candidates, is_exact, operation_of, weight_statistics
from sparsecore.tune.choice import ATTRIBUTE, Explanation, LayerChoice, percent, unmeasured
from sparsecore.tune.cost import relative_time
from sparsecore.tune.measure import make_forms, measure_layer

# Another format must be this much faster than dense to be taken, and one of another numeric type than what the layer
# would run as without: less is noise on a shared machine.
MARGIN = 0.97
# Below this share of zeros no sparse float kernel beats dense (CPU.md's peers: 0.8-0.95x at 50%), so it is not timed.
WORTH_TIMING = 0.3
# Formats that hold zeros like any weight; int8, where it is allowed, is worth timing without any.
_HOLD_ZEROS = (DENSE, "int8")


def convert(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    max_error: float | None = None,
    policy: Literal["measure", "model"] | None = None,
    exclude: Iterable[str] = (),
    cache: bool = True,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """Return a copy of a model whose layers run in the format that is fastest on this machine.

    Works layer by layer on any module: linear layers and 2-D convolutions with zeros become sparse where that is
    faster, BatchNorm is folded where one run shows that it can be. Dense is always a candidate. int8 layers, from
    ``quantize()``, choose among dense int8, int8 without zeros, and float32. Float layers become int8 only within a
    max_error, with activations that are scaled as they come.

    Args:
        model: any module; it stays as it is. Zeros made by torch.nn.utils.prune are read too.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of the model, of the shapes
            that matter. None folds nothing and decides by the cost model.
        max_error: largest relative error of the model's output on the example, such as 0.01:
            ``||y_fast - y|| / ||y||``, of the worst if there are several outputs. Layers that int8 makes faster become
            int8; while the measured error exceeds the budget, those go back that add most error for the time they
            save. The result is float if none fits. None, the default, keeps every float layer float.
        policy: ``"measure"`` times every layer, interleaved, on the shapes it has in the example; ``"model"``
            predicts from non-zeros and shapes without timing. None measures if there is an example.
        exclude: names of layers to leave dense.
        cache: look measured times up on disk and keep them (SPARSECORE_CACHE_DIR).
        progress: called with the share done, from 0 to 1.

    Returns:
        The converted copy in eval mode, for inference; ``explain()`` shows the choices.

    Raises:
        ValueError: the policy is unknown, it or max_error needs an example that is not given, max_error is not a
            finite number above 0, the model's output is NaN, or exclude names no layer.

    Example:
        >>> linear = nn.Linear(256, 256)
        >>> _ = linear.weight.data.mul_(torch.rand(256, 256) > 0.95)
        >>> convert(nn.Sequential(linear))[0]  # doctest: +ELLIPSIS
        PanelLinear(in_features=256, out_features=256, ...)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    policy = policy or ("model" if example_inputs is None else "measure")
    if policy not in ("measure", "model"):
        raise ValueError(f'expected policy "measure" or "model", got {policy!r}')
    if policy == "measure" and example_inputs is None:
        raise ValueError('policy "measure" needs example_inputs to know the shapes; give them, or take "model"')
    if max_error is not None:
        max_error = check_max_error(max_error)
        if example_inputs is None:
            raise ValueError("max_error needs example_inputs to measure the error on; give them, or leave it out")
    # In a container, so that a model that is one layer can be replaced like any other.
    root = nn.Sequential(copy_model(model)).eval()
    fold_torch_pruning(root)
    excluded = _check_excluded(root[0], exclude)
    seen, error = None, None
    if example_inputs is not None:
        watched = foldable_layers(root[0]) | _layers(root[0])
        seen = observe(root[0], example_inputs, watched)
        if max_error is not None:
            error = _AllowedError(max_error, ReferenceOutputs(root[0], _layers(root[0]), [example_inputs]))
        fold_batchnorm_(root, seen)
    converter = _Converter(root, seen, policy, excluded, TimeCache() if cache else None, error)
    explanation = converter.run(progress or (lambda share: None))
    setattr(root[0], ATTRIBUTE, explanation)
    return root[0]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if candidates(module)}


def _check_excluded(model: nn.Module, exclude: Iterable[str]) -> set[str]:
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    unknown = excluded - dict(model.named_modules(remove_duplicate=False)).keys()
    if unknown:
        raise ValueError(f"exclude: nothing in the model is called {sorted(unknown)}")
    return excluded


@dataclass(frozen=True)
class _AllowedError:
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


class _Converter:
    """One conversion: what was seen of the model, where times come from, and what error is allowed."""

    def __init__(
        self,
        root: nn.Sequential,
        seen: Observation | None,
        policy: str,
        excluded: set[str],
        cache: TimeCache | None,
        error: _AllowedError | None,
    ) -> None:
        self.root = root
        self.seen = seen
        self.is_measured = policy == "measure"
        self.excluded = excluded
        self.cache = cache
        self.error = error
        self.owners = Counter(id(p) for m in root.modules() for p in m.parameters(recurse=False))
        self.peak_gflops = probes.fma_gflops(torch.get_num_threads(), 0.05) if self.is_measured else 0.0

    def run(self, progress: Callable[[float], None]) -> Explanation:
        places: dict[nn.Module, list[str]] = {}
        for name, module in self.root.named_modules(remove_duplicate=False):
            if candidates(module):
                places.setdefault(module, []).append(name)
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
        name, shape = _user_name(places[0]), _shape_text(layer, calls)

        def stays(reason: str) -> _Decision:
            return _Decision(unmeasured(name, layer, reason, shape), places, calls, {}, {})

        if reason := self._why_not(name, layer, calls):
            return stays(reason)
        makers, note = self._makers(layer)
        if len(makers) < 2:
            return stays(note)
        try:
            forms = make_forms(layer, makers, calls)
        except SparsecoreError as error:
            return stays(str(error))
        if self.is_measured:
            times, is_noisy = measure_layer(layer, calls, forms, self.cache)
            note = "; ".join(filter(None, (note, "noisy, measured while the machine was busy" * is_noisy)))
        else:
            times = _predict(layer, calls, forms)
        own = [form for form in forms if self.error is None or is_exact(layer, form)]
        others = [form for form in forms if form not in own]
        exact, inexact = self._fastest(times, own), self._fastest(times, others) if others else ""
        kept = {form: forms[form] for form in (exact, inexact) if form}
        row = unmeasured(name, layer, "", shape)
        return _Decision(row, places, calls, times, kept, exact, inexact, chosen=exact, note=note)

    def _makers(self, layer: nn.Module) -> tuple[Mapping[str, Maker], str]:
        """The candidates worth timing, and why others are not."""
        makers = candidates(layer, with_int8=self.error is not None)
        if isinstance(layer, CompressedModule) or weight_statistics(layer).sparsity >= WORTH_TIMING:
            return makers, ""
        few = {name: make for name, make in makers.items() if name in _HOLD_ZEROS}
        return few, f"fewer than {WORTH_TIMING:.0%} zeros"

    def _fastest(self, times: Times, forms: Sequence[str]) -> str:
        margin = MARGIN if self.is_measured else 1.0
        return min(forms, key=lambda form: times[form] * (1.0 if form == DENSE else 1 / margin))

    def _fit(self, decisions: Mapping[nn.Module, _Decision], allowed: _AllowedError) -> Budget:
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
            saved *= max(sum(_flops(layer, call.shape, True) for call in decision.calls), 1)
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
        flops = sum(_flops(layer, call.shape, chosen in _HOLD_ZEROS) for call in decision.calls)
        return replace(
            row,
            time_us=decision.times[chosen],
            dense_us=decision.times[DENSE],
            roofline=flops / (decision.times[chosen] * 1e3) / self.peak_gflops,
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
        if name in self.excluded:
            return "excluded"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "has hooks"
        if any(self.owners[id(p)] > 1 for p in layer.parameters(recurse=False)):
            return "shares its weight with another layer"
        if isinstance(weight, torch.Tensor) and weight.dtype not in FLOAT_DTYPES:
            return f"{str(weight.dtype).removeprefix('torch.')}: kernels take float32, bfloat16 and float16"
        if isinstance(weight, torch.Tensor) and weight.device.type != "cpu":
            return f"on {weight.device}: there are kernels for the CPU only"
        if self.seen is not None and not calls:
            return "did not run on the example"
        if any(call.dtype not in FLOAT_DTYPES for call in calls):
            return "its input is not float32, bfloat16 or float16"
        return ""


def _predict(layer: nn.Module, calls: Sequence[Call], forms: Iterable[str]) -> Times:
    weight = weight_statistics(layer)
    columns = min((_columns(layer, call.shape) for call in calls), default=0)
    return {form: relative_time(form, weight, columns) for form in forms}


def _user_name(name: str) -> str:
    """Name in the user's model: without the container's '0.'; a model that is one layer has no name."""
    return name.partition(".")[2] or "(model)"


def _columns(layer: nn.Module, shape: Sequence[int]) -> int:
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


def _flops(layer: nn.Module, shape: Sequence[int], is_dense: bool) -> int:
    """Operations on what is stored: a multiply-add counts as two."""
    weight = weight_statistics(layer)
    stored = weight.N * weight.K if is_dense else weight.nnz
    return 2 * stored * _columns(layer, shape)


def _shape_text(layer: nn.Module, calls: Sequence[Call]) -> str:
    weight = weight_statistics(layer)
    inputs = ", ".join("x".join(map(str, shape)) for shape in dict.fromkeys(c.shape for c in calls))
    return f"{weight.N}x{weight.K}" + (f" on {inputs}" if inputs else "")
