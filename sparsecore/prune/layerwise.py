"""One block of a model at a time, for models that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sparsecore.calls import Call
from sparsecore.prune.calibrated import CALIBRATED
from sparsecore.prune.masks import Masks
from sparsecore.prune.oneshot import Sparsity, prune
from sparsecore.prune.sparsegpt import SparseGPT
from sparsecore.prune.weights import Selector, prunable_weights


def prune_block(
    block: nn.Module,
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    sparsity: Sparsity | None = None,
    *,
    criterion: str = "wanda",
    pattern: str = "unstructured",
    exclude: Selector | Iterable[Selector] = (),
    damping: float = 0.01,
    block_size: int = 128,
    layers: Selector | Iterable[Selector] | None = None,
    masks: Masks | None = None,
    progress: bool = False,
) -> Masks:
    """Prune a block of layers in place on the inputs that it gets in its model.

    The block runs once on every call; what enters each of its layers then, in the dense block, decides. The outputs
    of the pruned block are the inputs of the next: run it again to get them. On any error the block is as it was.

    Args:
        block: Any module; it runs in evaluation mode.
        calls: For each calibration batch the positional and the keyword arguments that the block is called with.
        sparsity: As in :func:`prune`.
        criterion: ``"wanda"``, ``"sparsegpt"``, or ``"magnitude"``, which needs no calls.
        pattern: As in :func:`prune`.
        exclude: As in :func:`prune`.
        damping: Of :class:`SparseGPT`.
        block_size: Of :class:`SparseGPT`.
        layers: The weights to prune, named as in ``exclude``; None for all.
        masks: As in :func:`prune`.
        progress: Write a line to stderr while it takes long.

    Returns:
        A mask for every pruned weight.

    Raises:
        ValueError: As :func:`prune`; also a name in ``layers`` that matches no prunable weight.
        FormatError: As :func:`prune`.
        UnsupportedError: As :func:`prune`.

    Example:
        >>> import torch
        >>> block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> calls = [((torch.randn(4, 8),), {}) for _ in range(3)]
        >>> prune_block(block, calls, 0.5, criterion="sparsegpt").sparsity()
        0.5
    """
    if layers is not None:
        exclude = _without(block, layers, exclude)
    return prune(
        block,
        sparsity,
        criterion=SparseGPT(damping, block_size) if criterion == "sparsegpt" else criterion,
        pattern=pattern,
        exclude=exclude,
        masks=masks,
        batches=(Call(*call) for call in calls) if criterion in CALIBRATED else None,
        sequential=False,
        progress=progress,
    )


def _without(
    block: nn.Module, layers: Selector | Iterable[Selector], exclude: Selector | Iterable[Selector]
) -> list[Selector]:
    """Return ``exclude`` with all weights that ``layers`` does not mean."""
    wanted, unwanted = ([each] if isinstance(each, str | type) else list(each) for each in (layers, exclude))
    weights = prunable_weights(block, exclude)
    for selector in wanted:
        if not any(weight.matches(selector) for weight in weights):
            raise ValueError(f"layers: {selector!r} matches no weight that may be pruned")
    return unwanted + [weight.name for weight in weights if not any(map(weight.matches, wanted))]
