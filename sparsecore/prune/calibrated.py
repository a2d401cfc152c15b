"""Criteria that look at the inputs of a weight: gathered on calibration batches, group of layers after group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsecore.calibration import check_batches, counted, progress_line, run_batches, watching
from sparsecore.errors import FormatError
from sparsecore.lookup import import_by_name, is_import_name
from sparsecore.prune.criteria import CRITERIA, Criterion, require_any_allowed, require_finite
from sparsecore.prune.inputs import Use, find_uses, input_rows
from sparsecore.prune.patterns import Pattern, require_fit
from sparsecore.prune.sparsegpt import SparseGPT
from sparsecore.prune.wanda import Wanda
from sparsecore.prune.weights import PrunableWeight


@runtime_checkable
class CalibratedCriterion(Protocol):
    """What :func:`prune` asks of a criterion that needs calibration batches."""

    def add_inputs(self, total: Tensor | None, x: Tensor) -> Tensor:
        """Add inputs to what is known of them.

        Args:
            total: What the last call returned, which may be overwritten; None at first.
            x: ``[samples, K]``, float32 or float64.
        """

    def input_squares(self, total: Tensor) -> Tensor:
        """Return the sum of squares of each input, ``[K]``."""

    def prune_rows(
        self, weight: Tensor, total: Tensor, sparsity: float, pattern: Pattern, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prune rows of a weight that see the same inputs.

        Args:
            weight: ``[N, K]``, float32 or float64, not to be changed.
            total: From :meth:`add_inputs`; may be overwritten.
            sparsity: Share to prune, in [0, 1).
            pattern: What goes together.
            allowed: ``[N, K]`` bool or None: False forbids to keep an entry.

        Returns:
            The new weight, zero where it is pruned and where it was zero before, and its bool mask ``[N, K]``.
        """


CALIBRATED: dict[str, Callable[[], CalibratedCriterion]] = {"wanda": Wanda, "sparsegpt": SparseGPT}


def find_criterion(criterion: str | Criterion | CalibratedCriterion) -> Criterion | CalibratedCriterion:
    """Return a criterion by name, also of one's own by ``"module:function"``; a function or an object is its own."""
    if isinstance(criterion, str):
        if criterion in CALIBRATED:
            return CALIBRATED[criterion]()
        if criterion in CRITERIA:
            return CRITERIA[criterion]
        if is_import_name(criterion):
            return find_criterion(import_by_name(criterion))
    elif isinstance(criterion, type):
        raise TypeError(f"expected a criterion, got the class {criterion.__name__}; pass {criterion.__name__}()")
    elif callable(criterion) or isinstance(criterion, CalibratedCriterion):
        return criterion
    known = sorted([*CRITERIA, *CALIBRATED])
    raise ValueError(
        f'expected a function, its name "module:function", or one of {known} as criterion, got {criterion!r}'
    )


def find_score(criterion: str | Criterion) -> Criterion:
    """Return a criterion that gives scores; one that needs calibration batches is refused."""
    found = find_criterion(criterion)
    if isinstance(found, CalibratedCriterion):
        raise ValueError(f"criterion {criterion!r} needs calibration batches, which only prune() takes")
    return found


def prune_calibrated(
    model: nn.Module,
    shares: list[tuple[PrunableWeight, float]],
    criterion: CalibratedCriterion,
    pattern: Pattern,
    allowed: Mapping[str, Tensor],
    batches: Iterable[Any] | None,
    *,
    sequential: bool,
    progress: bool,
) -> dict[str, Tensor]:
    """Prune weights in place on the inputs that they have in the model; on any error they are put back.

    Args:
        model: What the batches are run through, in evaluation mode.
        shares: Weights of the model and the sparsity of each.
        criterion: What goes, and what becomes of the rest.
        pattern: What goes together.
        allowed: Earlier masks by name.
        batches: Inputs of the model.
        sequential: One pass for each group of weights, so that it sees what comes out of the pruned ones before
            it, and one to find their order. False takes all from one pass.
        progress: Write a line to stderr while it takes long.

    Returns:
        A bool mask for each weight, of its shape.

    Raises:
        ValueError: The batches are missing, empty or a generator, or what enters a weight is NaN, infinite, all zero
            or not there.
        FormatError: A weight is NaN or infinite, does not fit the pattern, or cannot be adjusted.
        UnsupportedError: What enters a weight cannot be told.
    """
    if batches is None:
        raise ValueError("expected calibration batches for this criterion, got none; pass batches=[...]")
    uses = {weight.name: find_uses(weight) for weight, _ in shares}
    require_fit(pattern, [replace(weight, groups=uses[weight.name][0].num_parts) for weight, _ in shares])
    for weight, _ in shares:
        require_finite(f"{weight.name}: the weight", weight.value())
        require_any_allowed(weight.name, allowed.get(weight.name))
    batches = check_batches(batches, passes=2 if sequential else 1)
    sparsities = {weight.name: sparsity for weight, sparsity in shares}
    weights = {weight.name: weight for weight, _ in shares}
    masks: dict[str, Tensor] = {}

    with progress_line(progress) as show, _undone_on_error() as overwrite:
        groups = _groups_in_order(model, weights, uses, batches, show) if sequential else [[*weights]]
        for done, names in enumerate(groups):
            what = f"pruning group {done + 1} of {len(groups)}"
            group = {name: weights[name] for name in names}
            totals = _gather(model, group, uses, criterion, counted(batches, show, what))
            for name, weight in group.items():
                show(f"{what}: {name}")
                value, masks[name] = _solve(
                    weight, totals.pop(name), criterion, sparsities[name], pattern, allowed.get(name)
                )
                overwrite(weight.stored, value)
    return {weight.name: masks[weight.name] for weight, _ in shares}


def _gather(
    model: nn.Module,
    weights: Mapping[str, PrunableWeight],
    uses: Mapping[str, list[Use]],
    criterion: CalibratedCriterion,
    batches: Iterable[Any],
) -> dict[str, list[Tensor]]:
    """Run the batches and return what the criterion knows of each part of each weight's inputs."""
    totals: dict[str, dict[int, Tensor]] = {name: {} for name in weights}
    by_layer = _by_layer(weights, uses)

    def see(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        for name, use in by_layer[layer]:
            for part, x in input_rows(use, inputs):
                _require_features(x, weights[name].matrix_shape[1])
                rows = x.to(torch.promote_types(x.dtype, torch.float32))
                total = criterion.add_inputs(totals[name].get(part), rows)
                if not criterion.input_squares(total).sum().isfinite():
                    raise ValueError("an input is NaN or infinite on the calibration batches")
                totals[name][part] = total

    with watching(_layers(by_layer), see):
        for _ in run_batches(model, batches):
            pass
    _require_reached([name for name, parts in totals.items() if not parts])
    return {name: [total for _, total in sorted(parts.items())] for name, parts in totals.items()}


def _solve(
    weight: PrunableWeight,
    totals: list[Tensor],
    criterion: CalibratedCriterion,
    sparsity: float,
    pattern: Pattern,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask, of the weight's shape."""
    dtype = torch.promote_types(weight.stored.dtype, torch.float32)
    parts = weight.to_rows(weight.value()).to(dtype).chunk(len(totals))
    allowed_parts = [None] * len(parts) if allowed is None else weight.to_rows(allowed).chunk(len(parts))
    pruned: list[tuple[Tensor, Tensor]] = []
    try:
        for rows, total, may_stay in zip(parts, totals, allowed_parts, strict=True):
            if not criterion.input_squares(total).any():
                raise FormatError("every input is zero on the calibration batches")
            pruned.append(criterion.prune_rows(rows, total, sparsity, pattern, may_stay))
        value = weight.from_rows(torch.cat([rows for rows, _ in pruned])).to(weight.stored.dtype)
        require_finite(f"the adjusted weight in {value.dtype}", value)
    except FormatError as error:
        raise FormatError(f"{weight.name}: {error}; exclude={weight.name!r} leaves it out") from error
    return value, weight.from_rows(torch.cat([keep for _, keep in pruned])).contiguous()


@contextmanager
def _undone_on_error() -> Iterator[Callable[[Tensor, Tensor], None]]:
    """Yield a call that overwrites a tensor; all of them are put back if anything is raised."""
    originals: list[tuple[Tensor, Tensor]] = []

    def overwrite(stored: Tensor, value: Tensor) -> None:
        originals.append((stored, stored.detach().clone()))
        stored.copy_(value)

    try:
        yield overwrite
    except BaseException:
        for stored, value in originals:
            stored.copy_(value)
        raise


def _groups_in_order(
    model: nn.Module,
    weights: Mapping[str, PrunableWeight],
    uses: Mapping[str, list[Use]],
    batches: Iterable[Any],
    show: Callable[[str], None],
) -> list[list[str]]:
    """Run the batches once and return the weights' names, those of a block together, in the order of first calls."""
    by_layer = _by_layer(weights, uses)
    order: dict[str, None] = {}

    def see(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        order.update(dict.fromkeys(name for name, _ in by_layer[layer]))

    with watching(_layers(by_layer), see):
        for _ in run_batches(model, counted(batches, show, "finding the order of layers")):
            pass
    _require_reached([name for name in weights if name not in order])
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(_block(weights[name], weights.values()), []).append(name)
    return list(groups.values())


def _block(weight: PrunableWeight, weights: Iterable[PrunableWeight]) -> str:
    """Name the innermost member of a ModuleList or Sequential that holds this weight and others, or the weight."""
    for path in reversed([path for path in weight.owners if weight.name.startswith(f"{path}.")]):
        parent = weight.owners[path.rpartition(".")[0]]
        is_member = isinstance(parent, nn.ModuleList | nn.Sequential)
        if is_member and sum(path in other.owners for other in weights) > 1:
            return path
    return weight.name


def _by_layer(names: Iterable[str], uses: Mapping[str, list[Use]]) -> dict[nn.Module, list[tuple[str, Use]]]:
    """Return for each layer the weights that it uses."""
    by_layer: dict[nn.Module, list[tuple[str, Use]]] = {}
    for name in names:
        for use in uses[name]:
            by_layer.setdefault(use.layer, []).append((name, use))
    return by_layer


def _layers(by_layer: Mapping[nn.Module, list[tuple[str, Use]]]) -> dict[str, nn.Module]:
    return {users[0][1].name: layer for layer, users in by_layer.items()}


def _require_features(x: Tensor, K: int) -> None:
    if x.shape[-1] != K:
        raise ValueError(f"expected inputs of {K} features, got {x.shape[-1]}")


def _require_reached(missing: list[str]) -> None:
    if missing:
        raise ValueError(f"the calibration batches never reach {', '.join(missing)}; leave out with exclude={missing}")
