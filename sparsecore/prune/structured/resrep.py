"""ResRep: 1x1 compactors behind convolutions learn which channels can go, and are merged away exactly."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.calls import ExampleInputs
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.oneshot import require_share
from sparsecore.prune.structured.compare import largest_difference
from sparsecore.prune.structured.copies import copy_to
from sparsecore.prune.structured.cost import count_costs
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.gradients import before_steps
from sparsecore.prune.structured.groups import ChannelGroup, prunable_channels
from sparsecore.prune.structured.layers import output_dim
from sparsecore.prune.structured.norms import norms_after, without_scales
from sparsecore.prune.structured.removal import edits_without
from sparsecore.prune.structured.shifts import carry_shifts
from sparsecore.prune.structured.verify import TOLERANCE, to_double
from sparsecore.prune.weights import Selector

_EPSILON = 1e-8

_Row = tuple[str, int]  # layer, row of its compactor

_CONVOLUTION_OF_RANK = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class Compactor(nn.Module):
    """A BatchNorm and a square matrix over its channels, which begins as the identity.

    Args:
        norm: The BatchNorm; it keeps its parameters.

    Attributes:
        weight: ``[C, C]``, Q: its rows are the channels that come out.
        kept: ``[C]`` bool, False where a row has lost the gradient of the loss.

    Example:
        >>> norm = nn.BatchNorm2d(3).eval()
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.equal(Compactor(norm).eval()(x), norm(x))
        True
    """

    kept: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        mean = norm.get_buffer("running_mean")
        self.weight = nn.Parameter(torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        self.register_buffer("kept", torch.ones_like(mean, dtype=torch.bool))
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then mix the channels; shapes stay."""
        x = self.norm(x)
        if x.dim() == 2:
            return F.linear(x, self.weight)
        return _CONVOLUTION_OF_RANK[x.dim()](x, self.weight.reshape(*self.weight.shape, *[1] * (x.dim() - 2)))

    def row_norms(self) -> Tensor:
        """Length of each row, ``[C]`` float64."""
        return self.weight.detach().double().norm(dim=1)


@dataclass(frozen=True)
class _Target:
    """A layer with its BatchNorm, and the channels of both."""

    layer: str
    norm: str
    group: ChannelGroup


class ResRep:
    """Compactors in a model, the schedule that masks their rows, and the merge at the end.

    Every convolution or linear layer whose channels nothing else shares, and whose output a BatchNorm reads, gets a
    compactor behind that BatchNorm. All other parameters train as usual. The gradient of a compactor becomes
    ``kept * gradient + strength * Q / (norm of the row + eps)``: all rows are pulled to zero, and those that are
    masked no longer defend themselves. The mask never touches the forward pass.

    From step ``begin`` on, every ``frequency`` steps ``rows`` more rows may be masked: the shortest of the whole model
    are, chosen anew each time, until the model without them would have few enough multiply-adds. :meth:`merge` then
    removes what has become zero.

    Args:
        model: The model to prune, in place.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments that it runs on.
        reduce_by: Share of the multiply-adds of all convolutions and linear layers to take away, in (0, 1).
        begin: Steps before the first rows are masked; the paper waits 5 epochs.
        frequency: Steps between masks.
        rows: Rows that each mask has more than the one before.
        strength: The paper's lambda.
        exclude: Layers without a compactor: names, fnmatch patterns or module types.

    Attributes:
        steps: How often :meth:`step` was called.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ValueError: An argument is out of range.
        UnsupportedError: No layer can have a compactor, they cannot save that much, or a layer is read by more
            than its BatchNorm; exclude it. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> resrep = ResRep(model, torch.randn(1, 3, 8, 8), 0.5, begin=0, frequency=5, rows=2)
        >>> optimizer = torch.optim.SGD(resrep.parameter_groups(weight_decay=1e-4), lr=0.01, momentum=0.9)
        >>> handle = resrep.attach(optimizer)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     resrep.step()
        >>> resrep.masked()
        {'0': 4}
        >>> edits = resrep.merge()  # rows that are zero go; these few steps leave none

    Reference:
        Ding et al., ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting, ICCV 2021.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        reduce_by: float,
        *,
        begin: int,
        frequency: int = 200,
        rows: int = 4,
        strength: float = 1e-4,
        exclude: Selector | Iterable[Selector] = (),
    ) -> None:
        require_share(reduce_by)
        if begin < 0 or frequency < 1 or rows < 1 or not strength > 0:
            raise ValueError(
                "expected begin of at least 0, frequency and rows of at least 1 and a strength above 0, "
                f"got {begin}, {frequency}, {rows} and {strength}"
            )
        self._targets = _find_targets(model, example_inputs, exclude)
        self._groups = {target.layer: target.group for target in self._targets}
        self._shapes = copy_to(model, "meta")  # the architecture without compactors, for what is left of it
        self._costs = count_costs(model, example_inputs)
        self._allowed = (1 - reduce_by) * self._costs.multiply_adds
        self._require_reachable()
        _require_exact(model, example_inputs, self._targets)
        self._model, self._example_inputs = model, example_inputs
        self._begin, self._frequency, self._rows, self._strength = begin, frequency, rows, strength
        self.steps = 0
        _insert(model, self._targets)

    @property
    def compactors(self) -> dict[str, Compactor]:
        """The compactors by the layer before them; none after :meth:`merge`."""
        found = {target.layer: self._model.get_submodule(target.norm) for target in self._targets}
        return {layer: module for layer, module in found.items() if isinstance(module, Compactor)}

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return groups for an optimizer: the model's own parameters, and the compactors.

        Args:
            **options: Of the model's own parameters, such as ``weight_decay``; the compactors have no weight decay
                and momentum 0.99.
        """
        weights = [compactor.weight for compactor in self.compactors.values()]
        known = {id(weight) for weight in weights}
        own = [parameter for parameter in self._model.parameters() if id(parameter) not in known]
        return [{"params": own, **options}, {"params": weights, "weight_decay": 0.0, "momentum": 0.99}]

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Change the gradients of the compactors before every step of the optimizer, which steps without a closure."""
        weights = [compactor.weight for compactor in self.compactors.values()]
        return before_steps(optimizer, weights, self._change_gradients)

    def step(self) -> None:
        """Count a step of training; call it after ``optimizer.step()``. Masks rows when it is time."""
        updates, rest = divmod(self.steps - self._begin, self._frequency)
        self.steps += 1
        if updates >= 0 and rest == 0:
            self._mask((updates + 1) * self._rows)

    def masked(self) -> dict[str, int]:
        """Return how many rows of each compactor are masked, by layer."""
        return {layer: int((~compactor.kept).sum()) for layer, compactor in self.compactors.items()}

    def state_dict(self) -> dict[str, int]:
        """Return the number of steps; compactors and masks are in the model's state."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where :meth:`state_dict` left off.

        Raises:
            FormatError: The state is another one's.
        """
        if not isinstance(state, Mapping) or state.keys() != {"steps"}:
            raise FormatError("expected what ResRep.state_dict() returned")
        self.steps = state["steps"]

    def merge(self, threshold: float = 1e-5) -> Edits:
        """Turn each layer, its BatchNorm and its compactor back into a layer and a BatchNorm, and cut what is zero.

        In evaluation mode the result computes what the model with compactors computes. The architecture is the
        original one but for its channels, so the edits can be replayed on a fresh model. The BatchNorm that is left
        only adds a constant, with statistics that suit further training: its variance is what it would be were the
        channels uncorrelated. What a zero channel becomes behind an activation such as sigmoid goes into the bias of
        the next layer.

        Args:
            threshold: Rows shorter than this go; the longest of each compactor stays.

        Returns:
            What was cut. Build new optimizers.

        Raises:
            FormatError: A compactor is NaN or infinite. The model is unchanged.
            UnsupportedError: It has been merged already.
        """
        if not self.compactors:
            raise UnsupportedError("the compactors have been merged already")
        going = {}
        for layer, compactor in self.compactors.items():
            require_finite(f"{layer}: the compactor", compactor.weight)
            lengths = compactor.row_norms()
            lengths[lengths.argmax()] = torch.inf
            going[layer] = (lengths < threshold).nonzero().flatten().tolist()
        return _merge_and_cut(self._model, self._example_inputs, self._targets, going)

    def _require_reachable(self) -> None:
        everything = [(layer, row) for layer, group in self._groups.items() for row in range(1, len(group.units))]
        most = 1 - self._multiply_adds(everything) / self._costs.multiply_adds
        if most < 1 - self._allowed / self._costs.multiply_adds:
            raise UnsupportedError(
                f"the layers that can have a compactor, all but one channel each, hold {most:.1%} of the "
                "multiply-adds; ask for less"
            )

    @torch.no_grad()
    def _change_gradients(self) -> None:
        for compactor in self.compactors.values():
            Q = compactor.weight
            if Q.grad is not None:
                Q.grad.mul_(compactor.kept[:, None])
                Q.grad.addcdiv_(Q, Q.norm(dim=1, keepdim=True) + _EPSILON, value=self._strength)

    def _mask(self, num_rows: int) -> None:
        """Mask the shortest rows of all compactors: as many as it takes, up to a number."""
        order = self._removable_rows()
        counts = range(min(num_rows, len(order)) + 1)
        enough = bisect_left(counts, True, key=lambda count: self._multiply_adds(order[:count]) <= self._allowed)
        masked = set(order[: min(enough, counts[-1])])
        for layer, compactor in self.compactors.items():
            kept = [(layer, row) not in masked for row in range(len(compactor.kept))]
            compactor.kept.copy_(torch.tensor(kept))

    def _removable_rows(self) -> list[_Row]:
        """All rows but the longest of each compactor, shortest first."""
        rows = []
        for layer, compactor in self.compactors.items():
            lengths = sorted((length, row) for row, length in enumerate(compactor.row_norms().tolist()))
            rows += [(length, layer, row) for length, row in lengths[:-1]]
        return [(layer, row) for _, layer, row in sorted(rows)]

    def _multiply_adds(self, rows: Iterable[_Row]) -> int:
        """What the model without compactors would do without some rows."""
        units = [self._groups[layer].units[row] for layer, row in rows]
        return self._costs.after(edits_without(self._shapes, units)).multiply_adds


def _find_targets(
    model: nn.Module, example_inputs: ExampleInputs, exclude: Selector | Iterable[Selector]
) -> list[_Target]:
    groups = prunable_channels(model, example_inputs, exclude).prunable
    norms = norms_after(model, example_inputs)
    targets = [
        _Target(group.name, norms[group.name], group)
        for group in groups
        if len(group.layers) == 1 and group.name in norms and _can_compact(model, group, norms[group.name])
    ]
    if not targets:
        raise UnsupportedError(
            f"no layer of {type(model).__name__} can have a compactor: expected one before a BatchNorm, whose "
            "channels are not added to those of other layers"
        )
    return targets


def _can_compact(model: nn.Module, group: ChannelGroup, norm: str) -> bool:
    """Whether channel i of the layer is channel i of a BatchNorm with scale and shift, and goes alone."""
    rows = [((index,), (index,)) for index in range(len(group.units))]
    module = model.get_submodule(norm)
    return (
        module.weight is not None
        and module.bias is not None
        and output_dim(model.get_submodule(group.name)) == 0
        and rows == [(unit.channels[group.name], unit.others.get(norm)) for unit in group.units]
    )


def _require_exact(model: nn.Module, example_inputs: ExampleInputs, targets: Sequence[_Target]) -> None:
    """Try the merge with compactors that are no identity, every other row zero."""
    tried = copy_to(model, None).double()
    _insert(tried, targets)
    generator = torch.Generator().manual_seed(0)
    for target in targets:
        weight = tried.get_submodule(target.norm).get_parameter("weight").data
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight += noise.to(weight.device) / len(weight)
        weight[1::2] = 0
    merged, inputs = copy.deepcopy(tried), to_double(example_inputs)
    going = {target.layer: range(1, len(target.group.units), 2) for target in targets}
    _merge_and_cut(merged, inputs, targets, going)
    difference = largest_difference(tried, merged, inputs)
    if not difference <= TOLERANCE:
        names = ", ".join(target.layer for target in targets)
        raise UnsupportedError(
            f"a compactor cannot be merged into one of {names} (the outputs would be {difference:.1e} off): something "
            "reads its output without the BatchNorm, or zero does not stay zero before zero padding; exclude it"
        )


def _merge_and_cut(
    model: nn.Module, example_inputs: ExampleInputs, targets: Sequence[_Target], going: Mapping[str, Sequence[int]]
) -> Edits:
    """Merge compactors and cut rows that are zero, in place."""
    _merge(model, targets)
    units = [target.group.units[row] for target in targets for row in going[target.layer]]
    silent = without_scales(model, [(target.norm, row) for target in targets for row in going[target.layer]])
    carry_shifts(model, silent, example_inputs, units, dry_run=False)
    edits = edits_without(model, units)
    edits.apply(model)
    return edits


def _insert(model: nn.Module, targets: Iterable[_Target]) -> None:
    for target in targets:
        model.set_submodule(target.norm, Compactor(model.get_submodule(target.norm)))


@torch.no_grad()
def _merge(model: nn.Module, targets: Iterable[_Target]) -> None:
    for target in targets:
        compactor = model.get_submodule(target.norm)
        assert isinstance(compactor, Compactor)
        norm = compactor.norm
        _merge_into(model.get_submodule(target.layer), norm, compactor.weight.double())
        model.set_submodule(target.norm, norm)


def _merge_into(layer: Any, norm: Any, Q: Tensor) -> None:
    """Q((Kx + b - mean) * g/sigma + beta) as K'x + b' - mean' + beta', each multiplied by the same matrix."""
    sigma = (norm.running_var.double() + norm.eps).sqrt()
    matrix = Q * (norm.weight.double() / sigma)
    variance = matrix.square() @ norm.running_var.double()
    layer.weight.copy_((matrix @ layer.weight.double().flatten(1)).reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(matrix @ layer.bias.double())
    norm.running_mean.copy_(matrix @ norm.running_mean.double())
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(Q @ norm.bias.double())
