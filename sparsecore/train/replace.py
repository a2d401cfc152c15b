"""Replacing the layers of a model by cheaper pairs, in place, to be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from sparsecore.calibration import first_names
from sparsecore.errors import UnsupportedError
from sparsecore.lookup import close_matches
from sparsecore.prune.weights import Selector
from sparsecore.quantize.report import format_table
from sparsecore.quantize.simulated import replace_layer, trainable_layers
from sparsecore.train.factors import check_rank_or_error, low_rank, separable


@dataclass(frozen=True)
class Replacement:
    """What became of one layer.

    Attributes:
        layer: Its name in the model, the first if it has several.
        form: What it is now, or why it stays.
        before: Multiply-adds for each output position.
        after: The same of what it is now.
        error: ``norm(W - W') / norm(W)`` of its weight W and what the pair multiplies to.
        rank: Of the factors; None if it is no such pair.
    """

    layer: str
    form: str
    before: int
    after: int
    error: float
    rank: int | None = None


@dataclass(frozen=True)
class Replacements:
    """One row per layer, in the order of the model; prints as a table."""

    rows: tuple[Replacement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"rows": [...]}``, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}

    def __iter__(self) -> Iterator[Replacement]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [(row.layer, row.form, f"{row.before:,}", f"{row.after:,}", f"{row.error:.2%}") for row in self.rows]
        return format_table(("layer", "now", "multiply-adds", "now", "weight error"), cells, names=2)


def replace_by_separable(
    model: nn.Module, *, multiplier: int = 1, exclude: Selector | Iterable[Selector] = ()
) -> Replacements:
    """Replace the k x k convolutions of a model by depthwise and pointwise ones, in place.

    They start closest to the old weights (``separable()``), which is not close: train afterwards, with an optimizer
    created after this. Where the pair would not cost less (few output channels), and where there are groups, a layer
    stays as it is.

    Args:
        model: Any module that contains nn.Conv2d (not subclasses).
        multiplier: Depthwise filters per input channel; the cost is ``multiplier * (1 / N + 1 / k**2)`` of the old.
        exclude: What to leave alone: names of modules, fnmatch patterns or module types. The first convolution, with
            few input channels, is often better left.

    Returns:
        What became of every convolution that is larger than 1 x 1 and not excluded.

    Raises:
        ValueError: The multiplier is below 1, or a name in ``exclude`` matches nothing.
        UnsupportedError: No layer can be replaced, or one is the model itself, or shares its weight with another.
        FormatError: A weight is NaN or infinite. After any error the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        >>> [(row.before, row.after) for row in replace_by_separable(model)]
        [(9216, 1168), (36864, 4672)]

    Reference:
        Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
        arXiv 1704.04861, 2017, sec. 3.1.
    """
    if type(multiplier) is not int or multiplier < 1:
        raise ValueError(f"expected a multiplier of at least 1, got {multiplier!r}")

    def plan(layer: nn.Module) -> nn.Sequential | str:
        if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
            return "stays: it has groups"
        if multiplier * _separable_cost(layer) >= layer.weight.numel():
            return "stays: a pair would not cost less"
        return separable(layer, multiplier)

    layers = {
        name: layer
        for name, layer in trainable_layers(model, exclude, skip_ends=False).items()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    }
    return _replace(model, layers, plan, lambda pair: f"depthwise x {multiplier}, pointwise")


def replace_by_low_rank(
    model: nn.Module,
    *,
    rank: int | Mapping[str, int] | None = None,
    error: float | None = None,
    exclude: Selector | Iterable[Selector] = (),
) -> Replacements:
    """Replace linear layers and convolutions of a model by factors of low rank, in place.

    The weights multiply to the best approximation of the old one (``low_rank()``). Where the pair would not cost less,
    and where there are groups, hooks, or a weight that two layers share, a layer stays as it is. Train afterwards with
    an optimizer created after this.

    Args:
        model: Any module that contains nn.Linear or nn.Conv2d (not subclasses).
        rank: Of every layer; or of each by its name, and layers without one stay as they are.
        error: Instead of a rank: each layer's is the smallest with at most this relative error of its weight.
        exclude: What to leave alone: names of modules, fnmatch patterns or module types.

    Returns:
        What became of every layer that is not excluded.

    Raises:
        ValueError: Not exactly one of rank and error is given, it is out of range, or a name in ``exclude`` matches
            nothing.
        UnsupportedError: No layer can be replaced, or one is the model itself, or shares its weight with another.
        FormatError: A weight is NaN or infinite. After any error the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> print(replace_by_low_rank(model, rank=9, exclude="2"))  # doctest: +ELLIPSIS
        layer  now     multiply-adds    now  weight error
        -------------------------------------------------
        0      rank 9          5,000  1,350  ...
    """
    for one in rank.values() if isinstance(rank, Mapping) else (rank,):
        check_rank_or_error(one, error)
    layers = trainable_layers(model, exclude, skip_ends=False)
    names = first_names(layers)
    if isinstance(rank, Mapping) and (unknown := sorted(rank.keys() - names.values())):
        raise ValueError(f"rank: no layer to replace is called {unknown[0]!r}{close_matches(unknown[0], layers)}")

    def plan(layer: nn.Module) -> nn.Sequential | str:
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            return "stays: it has groups"
        own_rank = rank.get(names[layer]) if isinstance(rank, Mapping) else rank
        if own_rank is None and error is None:
            return "stays: it has no rank"
        weight = layer.get_parameter("weight")
        N, K = weight.flatten(1).shape
        if own_rank is not None and own_rank * (N + K) >= N * K:
            return "stays: factors would not cost less"
        pair = low_rank(layer, rank=own_rank, error=error)  # type: ignore[arg-type]
        return pair if _multiply_adds(pair) < N * K else "stays: factors would not cost less"

    replaced = _replace(model, layers, plan, lambda pair: f"rank {_rank_of(pair)}")
    pairs = ((row, model.get_submodule(row.layer)) for row in replaced)
    return Replacements(
        tuple(replace(row, rank=_rank_of(pair)) if isinstance(pair, nn.Sequential) else row for row, pair in pairs)
    )


def _separable_cost(conv: nn.Conv2d) -> int:
    """Multiply-adds for each output position with one depthwise filter per input channel."""
    N, C, *window = conv.weight.shape
    return C * (int(torch.Size(window).numel()) + N)


def _rank_of(pair: nn.Sequential) -> int:
    return len(pair[0].get_parameter("weight"))


def _multiply_adds(layer: nn.Module) -> int:
    """For each output position: every entry of a weight takes part once."""
    return sum(p.numel() for name, p in layer.named_parameters() if name.endswith("weight"))


def _replace(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    plan: Callable[[nn.Module], nn.Sequential | str],
    form: Callable[[nn.Sequential], str],
) -> Replacements:
    """Plan all layers, then swap those that have a pair; errors leave the model as it is."""
    pairs: dict[nn.Module, nn.Sequential] = {}
    rows = []
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for layer, name in first_names(layers).items():
        if any(owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
            planned: nn.Sequential | str = "stays: it shares its weight with another layer"
        elif layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            planned = "stays: it has hooks"
        else:
            planned = plan(layer)
        before = after = _multiply_adds(layer)
        error = 0.0
        if isinstance(planned, nn.Sequential):
            pairs[layer] = planned
            after, error = _multiply_adds(planned), _weight_error(layer, planned)
        rows.append(Replacement(name, planned if isinstance(planned, str) else form(planned), before, after, error))
    if not pairs:
        reasons = "; ".join(f"{row.layer} {row.form}" for row in rows[:3]) or "there are no such layers"
        raise UnsupportedError(f"nothing to replace in {type(model).__name__}: {reasons}")
    for name, layer in layers.items():
        if layer in pairs:
            replace_layer(model, name, pairs[layer])
    return Replacements(tuple(rows))


@torch.no_grad()
def _weight_error(layer: nn.Module, pair: nn.Sequential) -> float:
    """Relative error of what a pair multiplies to."""
    weight = layer.get_parameter("weight").double()
    first, second = (part.get_parameter("weight").double() for part in pair)
    if len(first) == second.shape[1] and first.shape[1:] == weight.shape[1:]:
        product = second.flatten(1) @ first.flatten(1)
    else:  # depthwise: entry [n, c] sums over the filters of channel c
        C = weight.shape[1]
        product = torch.einsum("ncm,cmk->nck", second.view(len(weight), C, -1), first.view(C, -1, weight[0, 0].numel()))
    norm = weight.norm()
    return float((product.reshape(weight.shape) - weight).norm() / norm) if norm else 0.0
