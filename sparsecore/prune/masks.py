"""Masks: which entries of a model's weights stay, and the promise that the others stay zero."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.ranks import require_same_masks
from sparsecore.prune.sharding import reshard, zero_where
from sparsecore.prune.weights import Selector, fold_torch_pruning, prunable_weights, unwrapped


@dataclass(frozen=True)
class MaskStatistics:
    """How much of a weight a mask keeps."""

    shape: tuple[int, ...]
    numel: int
    num_kept: int

    @property
    def density(self) -> float:
        """Share of entries kept."""
        return self.num_kept / self.numel if self.numel else 1.0

    @property
    def sparsity(self) -> float:
        """Share of entries pruned."""
        return 1.0 - self.density


class Masks(Mapping[str, Tensor]):
    """Bool masks of a model's weights by parameter name, True keeps the entry.

    Creating or loading masks leaves the weights alone; :meth:`apply` zeros the pruned entries and
    :meth:`attach` does so after every step of an optimizer. The masks follow the model to another
    device, and hold on to it: to save them use :meth:`state_dict`, to use them with a copy of the
    model ``Masks(copy, masks)``.

    Args:
        model: The model that the names refer to; DistributedDataParallel and torch.compile's wrapper
            stand for the model inside.
        masks: For each parameter name a bool tensor of that parameter's shape.

    Raises:
        FormatError: The model has no such parameter, or a mask is not bool or of another shape.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> masks = Masks(layer, {"weight": torch.tensor([[True, False]])})
        >>> masks.apply()
        >>> layer.weight[0, 1].item(), masks.sparsity()
        (0.0, 0.5)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._model = unwrapped(model)
        self._masks = self._checked(masks)

    @classmethod
    def from_model(cls, model: nn.Module, exclude: Selector | Iterable[Selector] = ()) -> Masks:
        """Read the masks of a pruned model off its zeros.

        A model pruned by ``torch.nn.utils.prune`` is folded to plain weights first, in place.

        Args:
            model: A model with zeros in its weights.
            exclude: Weights and modules to leave out, by name, fnmatch pattern or module type.

        Returns:
            A mask for every prunable weight.

        Raises:
            ValueError: A name in ``exclude`` matches nothing in the model.
            UnsupportedError: The model has no prunable weight.

        Example:
            >>> layer = nn.Linear(4, 1)
            >>> _ = nn.init.constant_(layer.weight[:, :3], 0)
            >>> Masks.from_model(layer)["weight"]
            tensor([[False, False, False,  True]])
        """
        masks = {weight.name: weight.value() != 0 for weight in prunable_weights(model, exclude)}
        fold_torch_pruning(model)
        return cls(model, masks)

    @property
    def model(self) -> nn.Module:
        """The model whose weights are masked, without a wrapper."""
        return self._model

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(
            torch.equal(mask, other[name].to(mask.device)) for name, mask in self.items()
        )

    def __and__(self, other: Masks) -> Masks:
        """Keep what both keep. A weight without a mask keeps everything.

        Raises:
            FormatError: Nothing of a weight is kept by both.
        """
        if not isinstance(other, Masks):
            return NotImplemented
        both = self._merged(other, operator.and_)
        for name in self.keys() & other.keys():
            if self[name].any() and other[name].any() and not both[name].any():
                raise FormatError(f"{name}: the two masks have no entry in common, so the layer would be emptied")
        return both

    def __or__(self, other: Masks) -> Masks:
        """Keep what either keeps. A weight without a mask keeps everything."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self._merged(other, operator.or_)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        lines = [f"Masks({len(self)} weights, {self.sparsity():.1%} sparse)"]
        lines += [
            f"  {name:{width}}  {row.sparsity:6.1%} of {list(row.shape)}" for name, row in self.statistics().items()
        ]
        return "\n".join(lines)

    @torch.no_grad()
    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Zero the pruned entries of the weights now, in place.

        Args:
            optimizer: Also clear these entries in its state (momentum, Adam's moments, ...): every
                state tensor that has the shape of its weight.

        Raises:
            FormatError: A weight is gone or has another shape, since its layer was replaced; nothing is changed.
        """
        reshard(self._model)
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, mask in self._masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise FormatError(
                    f"{name}: the masked parameter of shape {list(mask.shape)} is no longer in the model; after layers "
                    "are replaced, remove() the handle of attach() and make new masks, such as Masks.from_model(model)"
                )
        for name, mask in self._masks.items():
            parameter = parameters[name]
            self._masks[name] = mask = mask.to(parameter.device)
            pruned = ~mask
            state = optimizer.state.get(parameter, {}) if optimizer else {}
            for tensor in (parameter, *state.values()):
                if isinstance(tensor, Tensor) and tensor.shape == mask.shape:
                    zero_where(tensor, pruned)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Keep zeros zero from now on: :meth:`apply` runs after every ``optimizer.step()``.

        Momentum, weight decay and adaptive steps would otherwise revive pruned weights.

        Args:
            optimizer: Any ``torch.optim.Optimizer`` that updates at least one of the weights.

        Returns:
            A handle; ``handle.remove()`` lets the weights free again.

        Raises:
            ValueError: The optimizer holds none of the masked weights.
            UnsupportedError: The optimizer is LBFGS.

        Example:
            >>> layer = nn.Linear(2, 1)
            >>> optimizer = torch.optim.Adam(layer.parameters())
            >>> masks = Masks(layer, {"weight": torch.tensor([[True, False]])})
            >>> handle = masks.attach(optimizer)
            >>> layer(torch.ones(1, 2)).sum().backward()
            >>> optimizer.step()
            >>> layer.weight[0, 1].item()
            0.0
        """
        reshard(self._model)
        require_updates(optimizer, map(self._model.get_parameter, self))
        return optimizer.register_step_post_hook(lambda stepped, args, kwargs: self.apply(stepped))

    def statistics(self) -> dict[str, MaskStatistics]:
        """Count the kept entries of each weight."""
        return {name: MaskStatistics(tuple(mask.shape), mask.numel(), int(mask.sum())) for name, mask in self.items()}

    def sparsity(self) -> float:
        """Share of all masked weights' entries that is pruned."""
        rows = self.statistics().values()
        numel, num_kept = sum(row.numel for row in rows), sum(row.num_kept for row in rows)
        return MaskStatistics((), numel, num_kept).sparsity

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks as a plain dict of tensors, ready for safetensors or ``torch.save``."""
        return dict(self._masks)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all masks; the weights change with the next :meth:`apply` or optimizer step.

        Args:
            state: Masks of exactly the same weights.

        Raises:
            FormatError: Other names, or a mask is not bool or of another shape; nothing is changed.
        """
        if state.keys() != self.keys():
            raise FormatError(
                "expected masks of the same weights, but these are only in one of the two: "
                f"{sorted(state.keys() ^ self.keys())}"
            )
        self._masks = self._checked(state)

    def hash(self) -> str:
        """Digest names, shapes and bits, the same on every machine: compare it between ranks.

        Returns:
            SHA-256 in 64 hex digits.
        """
        digest = hashlib.sha256()
        for name, mask in sorted(self.items()):
            digest.update(f"{name} {list(mask.shape)}\n".encode())
            digest.update(np.packbits(mask.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def require_same_on_all_ranks(self, group: ProcessGroup | None = None) -> None:
        """Check that all processes of ``torch.distributed`` hold the same masks; every rank has to call it.

        Args:
            group: The ranks to compare; None is all of them. In a single process nothing happens.

        Raises:
            FormatError: On every rank, if the masks differ; it says which ranks hold which.
        """
        require_same_masks(self.hash(), group)

    def _checked(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, contiguous and on the devices of their parameters, or raise FormatError."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, mask in masks.items():
            if name not in parameters:
                raise FormatError(f"the model has no parameter {name!r}")
            shape = parameters[name].shape
            if not isinstance(mask, Tensor):
                raise FormatError(f"{name}: expected a bool mask, got {type(mask).__name__}")
            if mask.dtype != torch.bool or mask.shape != shape:
                raise FormatError(
                    f"{name}: expected a bool mask of shape {list(shape)}, got {mask.dtype} of shape {list(mask.shape)}"
                )
        by_parameter: dict[int, str] = {}
        for name, mask in masks.items():
            first = by_parameter.setdefault(id(parameters[name]), name)
            if not torch.equal(mask, masks[first].to(mask.device)):
                raise FormatError(f"{first} and {name} are one parameter, and cannot have two different masks")
        return {
            name: mask.to(parameters[name].device, copy=True, memory_format=torch.contiguous_format)
            for name, mask in masks.items()
        }

    def _merged(self, other: Masks, merge: Callable[[Tensor, Tensor], Tensor]) -> Masks:
        everything = torch.ones((), dtype=torch.bool)  # broadcasts, on any device
        return Masks(
            self._model,
            {name: merge(self.get(name, everything), other.get(name, everything)) for name in {**self, **other}},
        )


def require_updates(optimizer: Optimizer, weights: Iterable[Tensor]) -> None:
    """Raise an error if masks cannot hold under the optimizer, or it updates none of the weights: it is another's."""
    if isinstance(optimizer, LBFGS):
        raise UnsupportedError(
            "LBFGS evaluates the model within a step, where pruned weights are not zero; use another optimizer, or "
            "torch.nn.utils.prune and fold_torch_pruning()"
        )
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    updated = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    if not any(id(weight) in updated for weight in weights):
        raise ValueError(
            "the optimizer holds none of the masked weights; create it from the parameters of the model that is pruned"
        )
