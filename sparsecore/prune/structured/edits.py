"""What a cut took away, as a list that can be saved and replayed on a fresh model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.errors import BundleError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorEdit:
    """A parameter or buffer of which some indices along one dimension stay.

    Attributes:
        name: As in ``model.state_dict()``.
        dim: The dimension.
        size: Its size before.
        kept: Indices that stay, rising.
    """

    name: str
    dim: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class AttributeEdit:
    """A size that a module keeps as a plain int, such as ``out_channels``.

    Attributes:
        module: Name of the module, ``""`` for the model itself.
        attribute: Name of the attribute.
        before: Its value before.
        after: Its value after.
    """

    module: str
    attribute: str
    before: int
    after: int


@dataclass(frozen=True)
class Edits:
    """Everything that a cut changes in a model: parameters, buffers, and the sizes that modules remember.

    It says nothing about values: what stays keeps the values it has. Replayed on a fresh model of the original
    architecture it gives a model that the weights of the cut one fit.

    Attributes:
        architecture: Hash of the names and shapes of all tensors before, see :func:`architecture_of`.
        result: The same after.
        tensors: What stays of parameters and buffers; one can occur twice with different dimensions.
        attributes: Sizes that modules keep.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> edits = edit(model, {("0.weight", 0): (0, 2), ("0.bias", 0): (0, 2), ("2.weight", 1): (0, 2)},
        ...              {("0", "out_features"): 2, ("2", "in_features"): 2})
        >>> edits.apply(model)
        >>> model
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """

    architecture: str
    result: str
    tensors: tuple[TensorEdit, ...] = ()
    attributes: tuple[AttributeEdit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tensors or self.attributes)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Cut a model, in place.

        Every parameter that is cut becomes a new ``nn.Parameter`` without a gradient: build optimizers afterwards.

        Args:
            model: Of the architecture that the edits were made for.

        Raises:
            BundleError: It has another architecture, or an edit does not fit it. The model is unchanged then.
        """
        self.check(shapes_of(model), attributes_of(model))
        for edit in self.tensors:
            path, _, leaf = edit.name.rpartition(".")
            owner = model.get_submodule(path)
            before = getattr(owner, leaf)
            indices = torch.tensor(edit.kept, device=before.device)
            setattr(owner, leaf, _like(before, before.detach().index_select(edit.dim, indices)))
        for change in self.attributes:
            setattr(model.get_submodule(change.module), change.attribute, change.after)

    @torch.no_grad()
    def mask(self, model: nn.Module) -> None:
        """Zero in a model, in place, everything that :meth:`apply` would remove; shapes stay.

        Args:
            model: As for :meth:`apply`.

        Raises:
            BundleError: As for :meth:`apply`.
        """
        self.check(shapes_of(model), attributes_of(model))
        tensors = model.state_dict()
        for edit in self.tensors:
            tensor = tensors[edit.name]
            removed = torch.ones(edit.size, dtype=torch.bool, device=tensor.device)
            removed[list(edit.kept)] = False
            tensor.index_fill_(edit.dim, removed.nonzero().squeeze(1), 0)

    def then(self, later: Edits) -> Edits:
        """Return one list for this cut and a later one of the model that it left.

        Raises:
            ValueError: The later edits were made for another architecture than this cut leaves.
        """
        if later.architecture != self.result:
            raise ValueError(
                "expected edits of the model that these edits leave, got edits of another architecture; "
                "keep the edits in the order in which the model was cut"
            )
        tensors = {(edit.name, edit.dim): edit for edit in self.tensors}
        for edit in later.tensors:
            first = tensors.get((edit.name, edit.dim))
            kept = edit.kept if first is None else tuple(first.kept[index] for index in edit.kept)
            size = edit.size if first is None else first.size
            tensors[edit.name, edit.dim] = TensorEdit(edit.name, edit.dim, size, kept)
        attributes = {(change.module, change.attribute): change for change in self.attributes}
        for change in later.attributes:
            known = attributes.get((change.module, change.attribute), change)
            attributes[change.module, change.attribute] = AttributeEdit(
                change.module, change.attribute, known.before, change.after
            )
        return Edits(self.architecture, later.result, tuple(tensors.values()), tuple(attributes.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON; kept indices as runs ``[begin, end)``."""
        return {
            "architecture": self.architecture,
            "result": self.result,
            "tensors": [[edit.name, edit.dim, edit.size, _runs(edit.kept)] for edit in self.tensors],
            "attributes": [
                [change.module, change.attribute, change.before, change.after] for change in self.attributes
            ],
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Edits:
        """Read what :meth:`to_dict` returned.

        Raises:
            BundleError: It is something else.
        """
        try:
            tensors = tuple(
                TensorEdit(_text(name), _size(dim), _size(size), _indices(runs, size))
                for name, dim, size, runs in content["tensors"]
            )
            attributes = tuple(
                AttributeEdit(_text(module), _text(attribute), _size(before), _size(after))
                for module, attribute, before, after in content["attributes"]
            )
            return Edits(_text(content["architecture"]), _text(content["result"]), tensors, attributes)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"expected a list of edits as Edits.to_dict() makes it ({error})") from error

    def check(self, shapes: Shapes, attributes: Mapping[tuple[str, str], int]) -> None:
        """Check that the edits fit a model, by the shapes of its tensors and the plain ints in its modules."""
        if (found := hash_of(shapes)) != self.architecture:
            raise BundleError(
                f"expected a model of the architecture that was cut ({self.architecture[:12]}), got another one "
                f"({found[:12]}); the model must be as it was before the first cut"
            )
        for edit in self.tensors:
            shape = shapes.get(edit.name, ())
            if not 0 <= edit.dim < len(shape) or shape[edit.dim] != edit.size or not _rising(edit.kept, edit.size):
                raise BundleError(f"the edit of {edit.name!r} does not fit its shape {list(shape)}")
        for change in self.attributes:
            if attributes.get((change.module, change.attribute)) != change.before or change.after < 1:
                raise BundleError(f"the edit of {change.attribute!r} does not fit the module {change.module!r}")
        if hash_of(self.shapes_after(shapes)) != self.result:
            raise BundleError("the edits do not lead to the architecture that they promise")

    def shapes_after(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors after the cut, from those before."""
        after = dict(shapes)
        for edit in self.tensors:
            shape = after[edit.name]
            after[edit.name] = (*shape[: edit.dim], len(edit.kept), *shape[edit.dim + 1 :])
        return after


def edit(
    model: nn.Module, kept: Mapping[tuple[str, int], Sequence[int]], attributes: Mapping[tuple[str, str], int]
) -> Edits:
    """Make the edits that leave some indices of a model's tensors; the model is not changed.

    Args:
        model: The model to cut.
        kept: (tensor, dimension) -> indices that stay, rising and at least one.
        attributes: (module, attribute) -> its value after.

    Returns:
        The edits, checked against the model.

    Raises:
        BundleError: An edit does not fit the model.
    """
    shapes, before = shapes_of(model), attributes_of(model)
    tensors = tuple(
        TensorEdit(name, dim, shapes.get(name, ())[dim : dim + 1][0], tuple(indices))
        for (name, dim), indices in kept.items()
    )
    changes = tuple(
        AttributeEdit(module, attribute, before.get((module, attribute), 0), after)
        for (module, attribute), after in attributes.items()
    )
    architecture = hash_of(shapes)
    planned = Edits(architecture, architecture, tensors, changes)
    planned = Edits(architecture, hash_of(planned.shapes_after(shapes)), tensors, changes)
    planned.check(shapes, before)
    return planned


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer by its name in the state dict."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def attributes_of(model: nn.Module) -> dict[tuple[str, str], int]:
    """Return the plain ints that modules keep, by (module, attribute)."""
    return {
        (name, attribute): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if type(value) is int and not attribute.startswith("_")
    }


def architecture_of(model: nn.Module) -> str:
    """Return a hash of the names and shapes of a model's tensors, whatever their values and types."""
    return hash_of(shapes_of(model))


def hash_of(shapes: Shapes) -> str:
    """Return the SHA-256 of names and shapes, as hex digits."""
    lines = (json.dumps([name, list(shape)]) for name, shape in sorted(shapes.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _like(before: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value


def _rising(kept: Sequence[int], size: int) -> bool:
    inside = bool(kept) and kept[0] >= 0 and kept[-1] < size
    return inside and all(low < high for low, high in pairwise(kept))


def _runs(kept: Sequence[int]) -> list[list[int]]:
    """Return rising indices as runs ``[begin, end)``."""
    runs = (list(run) for _, run in groupby(enumerate(kept), lambda place: place[1] - place[0]))
    return [[run[0][1], run[-1][1] + 1] for run in runs]


def _indices(runs: Any, size: int) -> tuple[int, ...]:
    bounds = [_size(bound) for run in runs for bound in _pair(run)]
    if any(low > high for low, high in pairwise(bounds)) or (bounds and bounds[-1] > size):
        raise ValueError(f"the kept indices are not rising runs within {size}")
    return tuple(chain.from_iterable(range(*_pair(run)) for run in runs))


def _pair(run: Any) -> tuple[int, int]:
    begin, end = run
    return begin, end


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a size, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value
