"""Pruning in one step: score, choose, zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecore.prune.calibrated import CalibratedCriterion, find_criterion, prune_calibrated
from sparsecore.prune.criteria import Criterion, magnitude, rank
from sparsecore.prune.erdos_renyi import erdos_renyi_kept
from sparsecore.prune.masks import Masks
from sparsecore.prune.patterns import Pattern, parse_pattern, require_fit
from sparsecore.prune.weights import (
    PrunableWeight,
    Selector,
    first_match,
    fold_torch_pruning,
    prunable_weights,
    unwrapped,
)

Sparsity = float | Mapping[Selector, float]
SCOPES = ("layer", "global", "erdos-renyi")


@torch.no_grad()
def prune(
    model: nn.Module,
    sparsity: Sparsity | None = None,
    *,
    criterion: str | Criterion | CalibratedCriterion = "magnitude",
    scope: str = "layer",
    pattern: str = "unstructured",
    exclude: Selector | Iterable[Selector] = (),
    masks: Masks | None = None,
    batches: Iterable[Any] | None = None,
    sequential: bool = True,
    progress: bool = True,
) -> Masks:
    """Zero the least important weights of a model, in place.

    Pruned are the weights of ``nn.Linear``, ``nn.Conv1d/2d/3d``, ``nn.MultiheadAttention`` and
    Hugging Face's ``Conv1D``; never embeddings (nor a layer that shares its weight with one),
    norms, biases or transposed convolutions. A shared weight is pruned once. A model pruned by
    ``torch.nn.utils.prune`` is folded to plain weights. Everything is checked before anything is
    changed; Wanda and SparseGPT, which change one group of layers after another, keep a copy of what
    they replace and put it back on an error.

    Exactly ``round(sparsity * numel)`` entries go (Python's rounding, halves to even): those that
    are zero already first, then the lowest scores; of equal scores the entry that comes first in
    the model is kept, each weight seen as ``[N, K]``. Every weight keeps at least one entry. Wanda
    counts each row by itself, and SparseGPT each group of a convolution and each of an attention's
    query, key and value.

    Blocks go in the same order, as many as bring the number of pruned entries closest to
    ``sparsity * numel`` (of two equally close counts of blocks the even one). The score of a block
    is the mean of its entries' scores, an entry that is zero already counting 0: where all blocks
    have one size, the order is that of the sums. Every weight keeps at least one block.

    Args:
        model: Any module. DistributedDataParallel and torch.compile's wrapper stand for the model
            inside, whose names count. Weights sharded by ``fully_shard`` (FSDP2) are gathered one
            at a time; every rank has to take part, and all come to the same masks as long as they
            hold the same weights and scores: ``masks.require_same_on_all_ranks()`` checks it.
        sparsity: Share of entries to prune, in [0, 1). Or a share for each layer,
            ``{"conv1": 0.5, "blocks.*": 0.9, nn.Linear: 0.8}``: keys as in ``exclude``, the first
            that matches counts, and layers without a match stay as they are. A keep:group pattern
            has its own, ``1 - keep / group``; leave it None.
        criterion: ``"magnitude"``; ``"taylor"``, which takes the gradients that are there, or a
            :class:`Taylor` that summed them over batches; ``"wanda"`` or ``"sparsegpt"``, which
            need calibration batches (:class:`Wanda`, :class:`SparseGPT`); or a function
            ``(name, weight) -> scores`` (or its name, ``"my_module:my_function"``) that gets a copy
            of the weight with its ``grad``, under ``torch.no_grad()``, and returns finite scores of
            its shape, low ones to go; where the sparsity is 0 it is not asked. If ranks see different scores,
            :func:`~sparsecore.prune.averaged_over_ranks` makes them one.
        scope: ``"layer"`` reaches the sparsity in every weight, ``"global"`` over all of them
            together. ``"erdos-renyi"`` too, but each weight's share comes from its shape, not from
            its scores: small layers stay denser than large ones, with exactly
            ``round(sparsity * numel)`` entries gone over all
            (:func:`~sparsecore.prune.erdos_renyi.erdos_renyi_kept`). No difference for a
            keep:group pattern.
        pattern: What goes together, the weight seen as ``[N, K]`` (a convolution's is flattened
            behind the output channels). ``"unstructured"``: every entry by itself. ``"4x1"`` and
            the like: blocks of 4 neighbouring outputs and 1 input are kept or removed as a whole;
            the last blocks are smaller where N or K is not a multiple. ``"keep:group"`` such as
            ``"2:4"``: the best ``keep`` of every ``group`` neighbours along K, counted from column 0;
            K must be a multiple of ``group``. Along a convolution's K the column of the filter moves
            fastest, then its row, then the input channel (of the group), as the weight lies in memory:
            groups of a 3x3 filter cross channels, those of a 1x1 filter are neighbouring channels.
        exclude: What to leave alone: names of modules or weights, fnmatch patterns
            (``"blocks.0.*"``) or module types. A module stands for all that is inside.
        masks: Earlier masks of this model. What they prune stays pruned, also inside a block that
            is kept, and the result holds them too.
        batches: For Wanda and SparseGPT: a list of tensors, tuples of positional or dicts of keyword
            arguments of the model, without labels; it runs in evaluation mode. Every position of
            an input counts, padding too. Several processes need the same batches to come to the same
            masks.
        sequential: For Wanda and SparseGPT: whether a layer sees what comes out of the pruned layers
            before it, as in the papers, at the cost of one pass over the batches for each group of
            layers and one to find their order. The layers of a member of an ``nn.ModuleList`` or
            ``nn.Sequential`` (the innermost that has several) are a group, any other layer is one by
            itself. False takes the inputs of all layers from one pass of the dense model;
            SparseGPT then holds ``K * K`` numbers for every layer at once.
        progress: Write a line to stderr while running batches takes long.

    Returns:
        A mask for every pruned weight; ``masks.attach(optimizer)`` keeps the zeros in training.

    Raises:
        ValueError: An argument is out of range, or a name in ``exclude`` or ``sparsity`` matches
            nothing; the batches are missing, empty or a generator, never reach a layer, or bring it
            inputs that are NaN, infinite or of another size.
        FormatError: A weight, its gradient or a score is NaN or infinite, scores have a wrong shape,
            the earlier masks leave no entry of a weight, or the pattern does not fit one: K is not a
            multiple of the group, a block is larger than the weight or would cross the groups of a
            convolution. A gradient is missing; every input of a layer is zero; its Hessian is not
            positive definite.
        UnsupportedError: Nothing is prunable, a weight is computed by a parametrization, or what
            enters a weight cannot be told, for a module of another kind holds it too or
            it is sharded.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> masks = prune(model, 0.9, exclude="2")
        >>> print(masks)
        Masks(1 weights, 90.0% sparse)
          0.weight   90.0% of [32, 64]
        >>> int((model[0].weight == 0).sum())
        1843

        A criterion of one's own, movement away from zero after a backward pass:

        >>> model = nn.Linear(64, 32)
        >>> model(torch.randn(8, 64)).square().mean().backward()
        >>> masks = prune(model, 0.5, criterion=lambda name, weight: -weight * weight.grad)

        By the gradients of a loss:

        >>> model = nn.Linear(64, 32)
        >>> model(torch.randn(8, 64)).square().mean().backward()
        >>> masks = prune(model, 0.5, criterion="taylor")

        With a few batches and no training:

        >>> model = nn.Linear(64, 32)
        >>> calibration = [torch.randn(8, 64) for _ in range(4)]
        >>> masks = prune(model, 0.6, criterion="sparsegpt", batches=calibration)

        Blocks of four outputs:

        >>> prune(nn.Linear(64, 32), 0.75, pattern="4x1").sparsity()
        0.75

        Small layers denser than large ones:

        >>> model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))
        >>> print(prune(model, 0.9, scope="erdos-renyi"))
        Masks(2 weights, 90.0% sparse)
          0.weight   91.9% of [32, 64]
          1.weight   77.5% of [10, 32]

        Two of every four neighbouring inputs:

        >>> prune(nn.Linear(64, 32), pattern="2:4").sparsity()
        0.5

    Reference:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks,
        NeurIPS 2015. Blocks by their mean: TensorFlow Model Optimization, prune_low_magnitude()
        with its default ``block_pooling_type="AVG"``.
    """
    found, chosen = find_criterion(criterion), parse_pattern(pattern)
    if scope not in SCOPES:
        raise ValueError(f"expected one of {SCOPES} as scope, got {scope!r}")
    if not isinstance(masks, Masks | None):
        raise TypeError(f"expected Masks or None as masks, got {type(masks).__name__}; use Masks(model, ...)")
    if masks is not None and masks.model is not unwrapped(model):
        raise ValueError("the masks belong to another model; bind them with Masks(model, masks)")

    weights = prunable_weights(model, exclude)
    contests = find_contests(weights, sparsity, chosen, scope)
    keeps: dict[str, Tensor] = dict(masks or {})
    if isinstance(found, CalibratedCriterion):
        if scope == "global":
            raise ValueError(f'criterion {criterion!r} compares entries within a layer; leave scope at "layer"')
        shares = [(weight, share) for together, share in contests for weight in together]
        keeps |= prune_calibrated(
            model, shares, found, chosen, keeps, batches, sequential=sequential, progress=progress
        )
    elif batches is not None:
        raise ValueError(f"criterion {criterion!r} takes no calibration batches; leave out batches")
    else:
        keeps |= _prune_by_score(contests, found, chosen, keeps)

    fold_torch_pruning(model)
    pruned = Masks(model, keeps)
    pruned.apply()
    return pruned


def _prune_by_score(
    contests: list[tuple[list[PrunableWeight], float]],
    score: Criterion,
    pattern: Pattern,
    earlier: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return a mask for each weight; the weights are not changed."""
    keeps: dict[str, Tensor] = {}
    for together, share in contests:
        # Where nothing goes, any order will do: a schedule may begin before there are gradients to score by.
        criterion = score if share else magnitude
        ranks = [weight.to_rows(rank(weight, criterion, earlier.get(weight.name))) for weight in together]
        for weight, keep in zip(together, pattern.select(ranks, share), strict=True):
            keeps[weight.name] = weight.from_rows(keep)
    return keeps


def find_contests(
    weights: list[PrunableWeight], sparsity: Sparsity | None, pattern: Pattern, scope: str = "layer"
) -> list[tuple[list[PrunableWeight], float]]:
    """Split the weights into those that compete with each other, each with its sparsity, and check that all fit."""
    contests = _contests(weights, _sparsity_of(pattern, sparsity), scope)
    require_fit(pattern, [weight for together, _ in contests for weight in together])
    return contests


def _contests(
    weights: list[PrunableWeight], sparsity: Sparsity | None, scope: str
) -> list[tuple[list[PrunableWeight], float]]:
    """Split the weights into those that compete with each other, each with its sparsity."""
    if sparsity is None:
        raise ValueError("expected a sparsity in [0, 1), got None; 0.9 prunes 90%")
    if isinstance(sparsity, Mapping):
        if not sparsity:
            raise ValueError("expected a sparsity for at least one layer, got an empty dict")
        if scope != "layer":
            raise ValueError(f'scope "{scope}" takes one sparsity for all layers, got one for each')
        return [([weight], share) for weight, share in _shares(weights, sparsity)]
    require_share(sparsity)
    if scope == "global":
        return [(weights, sparsity)]
    if scope == "erdos-renyi":
        numel = sum(weight.stored.numel() for weight in weights)
        kept = erdos_renyi_kept([weight.stored.shape for weight in weights], numel - round(sparsity * numel))
        return [([weight], 1 - count / weight.stored.numel()) for weight, count in zip(weights, kept, strict=True)]
    return [([weight], sparsity) for weight in weights]


def _shares(weights: list[PrunableWeight], sparsity: Mapping[Selector, float]) -> list[tuple[PrunableWeight, float]]:
    """Give each weight the sparsity of the first key that matches it."""
    for share in sparsity.values():
        require_share(share)
    return first_match(weights, sparsity, "sparsity")


def require_share(sparsity: float) -> None:
    if not isinstance(sparsity, float | int | np.floating):
        raise TypeError(f"expected a number in [0, 1), got {type(sparsity).__name__} {sparsity!r}; 0.9 prunes 90%")
    if not 0 <= sparsity < 1:
        raise ValueError(f"expected a sparsity in [0, 1), got {sparsity!r}; 0.9 prunes 90%")


def _sparsity_of(pattern: Pattern, sparsity: Sparsity | None) -> Sparsity | None:
    """Return what is asked for, or the only sparsity that the pattern has."""
    own = pattern.sparsity
    if own is None:
        return sparsity
    if sparsity is not None and not (isinstance(sparsity, float | int) and math.isclose(sparsity, own)):
        raise ValueError(f"pattern {pattern} prunes {own:.1%} by itself; leave out sparsity")
    return own
