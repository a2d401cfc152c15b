"""What a filter is worth, judged by its weights: pruning removes the lowest scores first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsecore.errors import FormatError
from sparsecore.lookup import import_by_name, is_import_name
from sparsecore.prune.structured.groups import ChannelGroup
from sparsecore.prune.structured.layers import filters

#: (name of the layer, filters [N, K]: a row for each output channel) -> scores [N].
FilterCriterion = Callable[[str, Tensor], Tensor]


def l1(name: str, rows: Tensor) -> Tensor:
    """Score every filter by the sum of its absolute weights.

    Args:
        name: Name of the layer, not used.
        rows: ``[N, K]``, a row for each filter.

    Returns:
        ``[N]``.

    Reference:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1.
    """
    return rows.abs().sum(1)


def l2(name: str, rows: Tensor) -> Tensor:
    """Score every filter or neuron by its Euclidean norm; arguments as of :func:`l1`.

    Reference:
        He et al., Reshaping Deep Neural Network for Fast Decoding by Node-Pruning, ICASSP 2014, section 3: the norm of
        a node's weights.
    """
    return rows.norm(dim=1)


FILTER_CRITERIA: dict[str, FilterCriterion] = {"l1": l1, "l2": l2}


def find_filter_criterion(criterion: str | FilterCriterion, others: Iterable[str] = ()) -> FilterCriterion:
    """Return a criterion by name, also of one's own by ``"module:function"``; a function is its own.

    Args:
        criterion: What to find.
        others: Names that mean something to the caller, for the error message.
    """
    if callable(criterion):
        return criterion
    if isinstance(criterion, str):
        if criterion in FILTER_CRITERIA:
            return FILTER_CRITERIA[criterion]
        if is_import_name(criterion):
            return find_filter_criterion(import_by_name(criterion), others)
    names = ", ".join(sorted({*FILTER_CRITERIA, *others}))
    raise ValueError(f'expected a function, its name "module:function", or one of {names}, got {criterion!r}')


@torch.no_grad()
def score_filters(
    model: nn.Module,
    group: ChannelGroup,
    criterion: FilterCriterion,
    removed: Mapping[tuple[str, int], Iterable[int]] | None = None,
) -> Tensor:
    """Score the units of a group by the weights of their filters.

    Args:
        model: The model.
        group: The group; its layers' scores are added.
        criterion: Scores the filters of one layer.
        removed: (tensor, dimension) -> indices to leave out, as if they were zero.

    Returns:
        float64 ``[units]`` on the CPU.

    Raises:
        FormatError: The scores are not finite, or have another shape.
    """
    scores = {}
    for name in group.layers:
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight").detach().clone()
        for dim in range(weight.dim()):
            gone = (removed or {}).get((f"{name}.weight" if name else "weight", dim), ())
            weight.index_fill_(dim, torch.tensor(sorted(gone), dtype=torch.int64, device=weight.device), 0)
        rows = filters(layer, weight)
        found = criterion(name, rows)
        if not isinstance(found, Tensor) or found.shape != rows.shape[:1] or not bool(found.isfinite().all()):
            raise FormatError(f"{name}: expected {len(rows)} finite scores from the criterion, one for each filter")
        scores[name] = found.double().cpu()
    return torch.stack([sum_over(scores, unit.channels) for unit in group.units])


def sum_over(scores: Mapping[str, Tensor], channels: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Add the scores of a unit's channels."""
    zero = torch.zeros((), dtype=torch.float64)
    return sum((scores[name][list(indices)].sum() for name, indices in channels.items() if name in scores), zero)
