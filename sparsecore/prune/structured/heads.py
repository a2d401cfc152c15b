"""Attention heads: what each is worth to the loss, and removing those that are worth least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.arguments import require_loss
from sparsecore.calibration import check_batches
from sparsecore.calls import ExampleInputs
from sparsecore.errors import UnsupportedError
from sparsecore.lookup import close_matches
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.oneshot import require_share
from sparsecore.prune.structured.activations import Loss
from sparsecore.prune.structured.attention import FEATURE_COUNTS, HEAD_COUNTS, Attention, find_attention
from sparsecore.prune.structured.copies import evaluating
from sparsecore.prune.structured.edits import Edits, edit
from sparsecore.prune.structured.verify import find_difference


def head_importance(model: nn.Module, batches: Iterable[Any], loss: Loss) -> dict[str, Tensor]:
    """Judge attention heads by the change of the loss without them, to first order.

    For every sample the product of what a head gives and its gradient is added up over positions and features; the
    magnitudes are averaged over the samples, and normalised to length 1 within each layer.

    Args:
        model: A model with attention that :func:`find_attention` knows. It runs in evaluation mode; gradients of
            parameters are left as they are.
        batches: What ``loss`` takes.
        loss: ``(model, batch) -> loss``, a mean over samples, which come first in every layer's input.

    Returns:
        Attention layer -> float64 ``[heads]``.

    Raises:
        ValueError: There are no batches.
        UnsupportedError: The model has no such attention, or the loss does not depend on it.
        FormatError: A product is NaN or infinite.

    Example:
        >>> from sparsecore.prune.structured import split_attention
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True), 2)
        >>> _ = split_attention(model)
        >>> importance = head_importance(model, [torch.randn(8, 5, 16)], lambda model, x: model(x)[:, 0].sum(1).mean())
        >>> [(name, len(heads)) for name, heads in importance.items()]
        [('layers.0.self_attn', 4), ('layers.1.self_attn', 4)]

    Reference:
        Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019, section 4.1, eq. 2.
    """
    layers = _require_attention(model)
    totals: dict[str, Tensor] = {}
    count = 0
    flows: list[tuple[str, Tensor]] = []

    def watch(name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
        flows.append((name, x))
        return (x, *inputs[1:])

    handles = [
        model.get_submodule(layer.output).register_forward_pre_hook(
            lambda _, inputs, name=layer.name: watch(name, inputs)
        )
        for layer in layers.values()
    ]
    try:
        for batch in check_batches(batches, 1):
            flows.clear()
            with evaluating(model), torch.enable_grad():
                change = _changes(require_loss(loss(model, batch)), flows, layers)
            for name, per_sample in change.items():
                totals[name] = totals.get(name, 0) + per_sample.abs().sum(0).cpu()
            count += max(len(per_sample) for per_sample in change.values())
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("expected batches to judge heads by, got none")
    for name, total in totals.items():
        require_finite(f"{name}: the importance of heads", total)
    return {name: total / (total.norm() or 1) for name, total in totals.items()}


def _changes(loss: Tensor, flows: Sequence[tuple[str, Tensor]], layers: Mapping[str, Attention]) -> dict[str, Tensor]:
    """First-order change of each sample's loss without each head, ``[samples, heads]``, by layer."""
    if not flows or not loss.requires_grad:
        raise UnsupportedError("the loss does not depend on the attention layers; it must come from the model's output")
    gradients = torch.autograd.grad(loss, [x for _, x in flows], allow_unused=True, materialize_grads=True)
    changes: dict[str, Tensor] = {}
    for (name, x), gradient in zip(flows, gradients, strict=True):
        # The gradient of a mean is that of a sample's loss over the number of samples.
        products = (x.detach() * gradient).double() * len(x)
        heads = products.unflatten(-1, (layers[name].num_heads, layers[name].head_dim)).sum(-1)
        # A layer that is called several times adds up.
        changes[name] = changes.get(name, 0) + heads.flatten(1, -2).sum(1)
    return changes


def remove_heads(
    model: nn.Module, example_inputs: ExampleInputs, heads: Mapping[str, Sequence[int]], *, dry_run: bool = False
) -> Edits:
    """Remove attention heads, in place: their rows of query, key and value, their columns of the output layer.

    The removal is tried on a copy first: it has to compute what the model computes with them zero.

    Args:
        model: A model with attention that :func:`find_attention` knows, in any mode; call :func:`split_attention`
            first if it has ``nn.MultiheadAttention``.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments that it runs on.
        heads: Attention layer -> heads to go; at least one stays.
        dry_run: Check everything and return the edits, but leave the model as it is.

    Returns:
        The edits, to be replayed on a fresh model. Build new optimizers: parameters that were cut are new ones.

    Raises:
        ValueError: A layer or head does not exist, or no head of a layer would stay.
        UnsupportedError: The heads of a layer cannot go; the message says why. The model is unchanged.

    Example:
        >>> from sparsecore.prune.structured import split_attention
        >>> model = nn.TransformerEncoderLayer(16, 4, batch_first=True)
        >>> _ = split_attention(model)
        >>> edits = remove_heads(model, torch.randn(2, 5, 16), {"self_attn": [0, 2]})
        >>> model.self_attn.q_proj, model.self_attn.num_heads
        (Linear(in_features=16, out_features=8, bias=True), 2)
    """
    layers = _require_attention(model)
    kept: dict[tuple[str, int], list[int]] = {}
    attributes: dict[tuple[str, str], int] = {}
    for name, going in heads.items():
        if name not in layers:
            raise ValueError(f"no attention layer is called {name!r}{close_matches(name, layers)}")
        attention = layers[name]
        staying = _staying(attention, going)
        if len(staying) < attention.num_heads:
            kept.update(_tensors_of(model, attention, staying))
            attributes.update(_sizes_of(model, attention, len(staying)))
    edits = edit(model, kept, attributes)
    if edits and (difference := find_difference(model, example_inputs, edits)):
        raise UnsupportedError(f"cannot remove heads of {', '.join(heads)}: {difference}")
    if not dry_run:
        edits.apply(model)
    return edits


def prune_heads(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ratio: float,
    *,
    batches: Iterable[Any],
    loss: Loss,
    rounds: int = 1,
    exclude: str | Iterable[str] = (),
) -> Edits:
    """Remove the attention heads that matter least to the loss, over all layers, in place.

    Args:
        model: As in :func:`remove_heads`.
        example_inputs: As in :func:`remove_heads`.
        ratio: Share of the heads to go, in [0, 1); each layer keeps at least one.
        batches: As in :func:`head_importance`; a list, for they are run in every round.
        loss: As in :func:`head_importance`.
        rounds: How often heads are judged anew, with as many going each time.
        exclude: Attention layers whose heads stay, names or fnmatch patterns.

    Returns:
        The edits, to be replayed on a fresh model. Build new optimizers.

    Raises:
        ValueError: The ratio or ``rounds`` is out of range, or a name matches nothing.
        UnsupportedError: As in :func:`remove_heads`.

    Example:
        >>> from sparsecore.prune.structured import split_attention
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True), 2)
        >>> _ = split_attention(model)
        >>> x = torch.randn(8, 5, 16)
        >>> loss = lambda model, x: model(x)[:, 0].sum(1).mean()
        >>> edits = prune_heads(model, x, 0.5, batches=[x], loss=loss, rounds=2)
        >>> sum(attention.num_heads for attention in find_attention(model).values())
        4

    Reference:
        Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019, section 4.
    """
    require_share(ratio)
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"expected at least 1 round, got {rounds!r}")
    batches = check_batches(batches, 2)
    layers = _require_attention(model)
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"exclude: no attention layer is called {pattern!r}{close_matches(pattern, layers)}")
    names = [name for name in layers if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    total = sum(layers[name].num_heads for name in names)
    edits, gone = edit(model, {}, {}), 0
    for round_ in range(1, rounds + 1):
        target = round(ratio * total * round_ / rounds)
        importance = head_importance(model, batches, loss)
        going = _lowest({name: importance[name].tolist() for name in names}, target - gone)
        edits = edits.then(remove_heads(model, example_inputs, going))
        gone += sum(map(len, going.values()))
    return edits


def _lowest(importance: Mapping[str, Sequence[float]], count: int) -> dict[str, list[int]]:
    """Choose the heads that go; the best of each layer stays."""
    candidates = []
    for name, values in importance.items():
        ranked = sorted((value, head) for head, value in enumerate(values))
        candidates += [(value, name, head) for value, head in ranked[:-1]]
    going: dict[str, list[int]] = {}
    for _, name, head in sorted(candidates)[:count]:
        going.setdefault(name, []).append(head)
    return going


def _require_attention(model: nn.Module) -> dict[str, Attention]:
    layers = find_attention(model)
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        raise UnsupportedError("nn.MultiheadAttention cannot hold fewer heads; call split_attention(model) first")
    if not layers:
        raise UnsupportedError(
            f"{type(model).__name__} has no attention whose heads can go: expected linear layers for query, key, value "
            "and output, with as many heads for keys as for queries"
        )
    return layers


def _staying(attention: Attention, going: Sequence[int]) -> list[int]:
    count = attention.num_heads
    if bad := [head for head in going if type(head) is not int or not 0 <= head < count]:
        raise ValueError(f"expected heads of {attention.name} in 0..{count - 1}, got {bad[0]!r}")
    staying = [head for head in range(count) if head not in set(going)]
    if not staying:
        raise ValueError(f"expected at least one head of {attention.name} to stay, got all {count} to go")
    return staying


def _features(attention: Attention, heads: Sequence[int]) -> list[int]:
    size = attention.head_dim
    return [feature for head in heads for feature in range(head * size, (head + 1) * size)]


def _tensors_of(model: nn.Module, attention: Attention, staying: Sequence[int]) -> dict[tuple[str, int], list[int]]:
    features = _features(attention, staying)
    tensors = {(f"{layer}.weight", 0): features for layer in attention.inputs}
    biased = [layer for layer in attention.inputs if model.get_submodule(layer).bias is not None]
    tensors.update({(f"{layer}.bias", 0): features for layer in biased})
    return {**tensors, (f"{attention.output}.weight", 1): features}


def _sizes_of(model: nn.Module, attention: Attention, num_heads: int) -> dict[tuple[str, str], int]:
    features = num_heads * attention.head_dim
    sizes = {(layer, "out_features"): features for layer in attention.inputs}
    sizes[attention.output, "in_features"] = features
    module = model.get_submodule(attention.name)
    for names, size in ((HEAD_COUNTS, num_heads), (FEATURE_COUNTS, features)):
        sizes.update({(attention.name, name): size for name in names if type(getattr(module, name, None)) is int})
    return sizes
