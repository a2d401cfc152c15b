"""sc.convert: every layer in the format that runs fastest here, dense included, so that nothing gets slower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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
from sparsecore.tune.cache import TimeCache
from sparsecore.tune.candidates import DENSE, candidates, operation_of, weight_statistics
from sparsecore.tune.choice import ATTRIBUTE, LayerChoice, unmeasured
from sparsecore.tune.cost import relative_time
from sparsecore.tune.measure import make_forms, measure_layer

# Another format must be this much faster than dense to be taken: less is noise on a shared machine.
MARGIN = 0.97
# Below this share of zeros no sparse float kernel beats dense (CPU.md's peers: 0.8-0.95x at 50%), so it is not timed.
WORTH_TIMING = 0.3


def convert(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    policy: Literal["measure", "model"] | None = None,
    exclude: Iterable[str] = (),
    cache: bool = True,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """Return a copy of a model whose layers run in the format that is fastest on this machine.

    Works layer by layer on any module: linear layers and 2-D convolutions with zeros become sparse where that is
    faster, BatchNorm is folded where one run shows that it can be. Dense is always a candidate. int8 layers, from
    ``quantize()``, choose among dense int8, int8 without zeros, and float32.

    Args:
        model: any module; it stays as it is. Zeros made by torch.nn.utils.prune are read too.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of the model, of the shapes
            that matter. None folds nothing and decides by the cost model.
        policy: ``"measure"`` times every layer, interleaved, on the shapes it has in the example; ``"model"``
            predicts from non-zeros and shapes without timing. None measures if there is an example.
        exclude: names of layers to leave dense.
        cache: look measured times up on disk and keep them (SPARSECORE_CACHE_DIR).
        progress: called with the share done, from 0 to 1.

    Returns:
        The converted copy in eval mode, for inference; ``explain()`` shows the choices.

    Raises:
        ValueError: the policy is unknown, needs an example that is not given, or exclude names no layer.

    Example:
        >>> linear = nn.Linear(256, 256)
        >>> _ = linear.weight.data.mul_(torch.rand(256, 256) > 0.95)
        >>> convert(nn.Sequential(linear))[0]  # doctest: +ELLIPSIS
        SparseLinear(in_features=256, out_features=256, ...)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    policy = policy or ("model" if example_inputs is None else "measure")
    if policy not in ("measure", "model"):
        raise ValueError(f'expected policy "measure" or "model", got {policy!r}')
    if policy == "measure" and example_inputs is None:
        raise ValueError('policy "measure" needs example_inputs to know the shapes; give them, or take "model"')
    # In a container, so that a model that is one layer can be replaced like any other.
    root = nn.Sequential(copy_model(model)).eval()
    fold_torch_pruning(root)
    excluded = _check_excluded(root[0], exclude)
    seen = None
    if example_inputs is not None:
        watched = foldable_layers(root[0]) | _layers(root[0])
        seen = observe(root[0], example_inputs, watched)
        fold_batchnorm_(root, seen)
    choices = _Converter(root, seen, policy, excluded, TimeCache() if cache else None).run(progress)
    setattr(root[0], ATTRIBUTE, tuple(choices))
    return root[0]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if candidates(module)}


def _check_excluded(model: nn.Module, exclude: Iterable[str]) -> set[str]:
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    unknown = excluded - dict(model.named_modules(remove_duplicate=False)).keys()
    if unknown:
        raise ValueError(f"exclude: nothing in the model is called {sorted(unknown)}")
    return excluded


class _Converter:
    """One conversion: what was seen of the model, and where times come from."""

    def __init__(
        self,
        root: nn.Module,
        seen: Observation | None,
        policy: str,
        excluded: set[str],
        cache: TimeCache | None,
    ) -> None:
        self.root = root
        self.seen = seen
        self.is_measured = policy == "measure"
        self.excluded = excluded
        self.cache = cache
        self.owners = Counter(id(p) for m in root.modules() for p in m.parameters(recurse=False))

    def run(self, progress: Callable[[float], None] | None) -> list[LayerChoice]:
        names: dict[nn.Module, list[str]] = {}
        for name, module in self.root.named_modules(remove_duplicate=False):
            if candidates(module):
                names.setdefault(module, []).append(name)
        peak_gflops = probes.fma_gflops(torch.get_num_threads(), 0.05) if self.is_measured else 0.0
        choices = []
        for done, (layer, places) in enumerate(names.items()):
            form, choice = self._choose(_user_name(places[0]), layer, peak_gflops)
            for place in places:
                put_layer(self.root, place, form)
            choices.append(choice)
            if progress is not None:
                progress((done + 1) / len(names))
        if self.cache is not None:
            self.cache.save()
        return choices

    def _choose(self, name: str, layer: nn.Module, peak_gflops: float) -> tuple[nn.Module, LayerChoice]:
        calls = self.seen.calls.get(layer, []) if self.seen is not None else []
        if reason := self._why_not(name, layer, calls):
            return layer, unmeasured(name, layer, reason, _shape_text(layer, calls))
        try:
            forms = make_forms(layer, calls)
        except SparsecoreError as error:
            return layer, unmeasured(name, layer, str(error), _shape_text(layer, calls))
        if not self.is_measured:
            return self._predict(name, layer, forms, calls)
        times, is_noisy = measure_layer(layer, calls, forms, self.cache)
        chosen = min(times, key=lambda form: times[form] * (1.0 if form == DENSE else 1 / MARGIN))
        others = [f"{other} {us:.0f} us" for other, us in times.items() if other != chosen]
        noise = "; noisy, measured while the machine was busy" if is_noisy else ""
        reason = f"fastest; {', '.join(others)}{noise}"
        row = unmeasured(name, layer, reason, _shape_text(layer, calls), forms[chosen])
        flops = sum(_flops(layer, call.shape, chosen == DENSE) for call in calls)
        return forms[chosen], replace(
            row,
            time_us=times[chosen],
            dense_us=times[DENSE],
            roofline=flops / (times[chosen] * 1e3) / peak_gflops,
        )

    def _predict(
        self, name: str, layer: nn.Module, forms: dict[str, nn.Module], calls: Sequence[Call]
    ) -> tuple[nn.Module, LayerChoice]:
        weight = weight_statistics(layer)
        columns = min((_columns(layer, call.shape) for call in calls), default=0)
        predicted = {form: relative_time(form, weight, columns) for form in forms}
        chosen = min(predicted, key=lambda form: predicted[form])
        reason = f"cost model: {predicted[chosen]:.2f} of the dense time, not measured"
        shape = _shape_text(layer, calls)
        return forms[chosen], unmeasured(name, layer, reason, shape, forms[chosen])

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
        if weight is not None and weight_statistics(layer).sparsity < WORTH_TIMING:
            return f"fewer than {WORTH_TIMING:.0%} zeros"
        return ""


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
