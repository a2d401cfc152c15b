"""Which layers of a model get zeros, and what keeps activations in range after that."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecore.bench.models.load import ModelSource, settle
from sparsecore.bench.whole_models.problem import first_tensor
from sparsecore.prune import prune
from sparsecore.prune.patterns import UNSTRUCTURED, Pattern, parse_pattern, require_fit
from sparsecore.prune.weights import prunable_weights


@dataclass(frozen=True)
class PrunedModel:
    """A model with zeros.

    Attributes:
        model: In eval mode.
        sparsity: Share of zeros in the weights that were pruned; of all convolutions and linear layers where none was.
        what: One line that says what was pruned.
    """

    model: nn.Module
    sparsity: float
    what: str


def prune_model(
    source: ModelSource,
    model: nn.Module,
    x: Tensor,
    sparsity: float | None,
    seed: int = 0,
    pattern: str = "unstructured",
) -> PrunedModel:
    """Prune by magnitude, each layer to the same share of zeros.

    Convolutions and linear layers are pruned, except the first convolution, depthwise ones, the classifier and what the
    pattern does not fit. Random weights are scaled back to their norm and BatchNorm gets new statistics, as training
    would see to.

    Args:
        source: Where the model is from.
        model: In eval mode; it stays as it is.
        x: Its input.
        sparsity: Share of zeros in [0, 1); None takes the pattern's own or, if it has none, leaves the zeros that are
            there.
        seed: Of BatchNorm.
        pattern: As in :func:`sparsecore.prune`.

    Returns:
        A pruned copy.

    Raises:
        UnsupportedError: There is nothing to prune.
        FormatError: The pattern fits no layer.
        ValueError: The pattern has a sparsity of its own, and another one is asked for.
    """
    pruned = copy.deepcopy(model)
    chosen = parse_pattern(pattern)
    if sparsity == 0 or (sparsity is None and chosen.sparsity is None):
        what = "weights as they are" if sparsity is None else "nothing pruned"
        return PrunedModel(pruned, zeros_of(pruned), what)
    dense = dense_layers(pruned, x)
    misfits = _misfits(pruned, dense, chosen)
    masks = prune(pruned, sparsity, pattern=pattern, exclude=[*dense, *misfits])
    if source.is_random:
        with torch.no_grad():
            for name in masks:
                weight = pruned.get_parameter(name)
                weight.mul_(model.get_parameter(name).norm() / weight.norm())
        settle(source, pruned, x.shape, seed)
    weights = [pruned.get_parameter(name) for name in masks]
    return PrunedModel(pruned, masks.sparsity(), _describe(weights, dense, chosen, misfits))


def require_pattern(model: nn.Module, x: Tensor, pattern: str) -> None:
    """Raise FormatError if :func:`prune_model` would find no layer that a pattern fits."""
    _misfits(model, dense_layers(model, x), parse_pattern(pattern))


def _misfits(model: nn.Module, dense: Mapping[str, str], pattern: Pattern) -> list[str]:
    """Weights that the pattern does not fit; an error if it fits none."""
    weights = prunable_weights(model, [*dense])
    misfits = [weight for weight in weights if pattern.misfit(weight)]
    if len(misfits) == len(weights):
        require_fit(pattern, misfits)
    return [weight.name for weight in misfits]


def dense_layers(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Layers that stay dense, by name, and what they are."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    found: dict[str, str] = {}
    is_first = True
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            if is_first:
                found[name] = "first convolution"
            elif layer.groups == layer.in_channels > 1:
                found[name] = "depthwise convolution"
            is_first = False
    last_name, last = next(reversed(layers.items()), ("", None))
    if len(layers) > 1 and last is not None and _is_classifier(last, model, x):
        found[last_name] = "classifier"
    return found


def zeros_of(model: nn.Module) -> float:
    """Share of zeros in the weights of all convolutions and linear layers."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    entries = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / entries if entries else 0.0


@torch.inference_mode()
def _is_classifier(last: nn.Conv2d | nn.Linear, model: nn.Module, x: Tensor) -> bool:
    """The last layer is one if its outputs are the model's, one row per sample."""
    outputs = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    y = first_tensor(model(x[:1]))
    return y.dim() == 2 and y.shape[1] == outputs


def _describe(weights: Sequence[Tensor], dense: Mapping[str, str], pattern: Pattern, misfits: Sequence[str]) -> str:
    left = [f"the {kind}" if count == 1 else _count(kind, count) for kind, count in Counter(dense.values()).items()]
    filters = [weight for weight in weights if weight.dim() == 4]
    is_1x1 = filters and all(weight.shape[2:] == (1, 1) for weight in filters)
    text = f"{_count('1x1 layer' if is_1x1 else 'layer', len(weights))} pruned by magnitude"
    if pattern != UNSTRUCTURED:
        text += f" in the pattern {pattern}"
    if pattern.sparsity is None and len(weights) > 1:
        text += ", each to the same share of zeros"
    if left:
        text += f"; dense: {', '.join(left)}"
    return f"{text}; {pattern} does not fit {', '.join(misfits)}" if misfits else text


def _count(kind: str, count: int) -> str:
    return f"{count} {kind}" if count == 1 else f"{count} {kind}s"
