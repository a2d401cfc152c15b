"""Layer drop: train with layers skipped at random, so that every so manieth can go afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsecore.errors import BundleError, UnsupportedError, require_module
from sparsecore.lookup import close_matches
from sparsecore.prune.oneshot import require_share


class _Dropping:
    """Mixed into a container: in training a ``for`` loop over it leaves layers out at random.

    Attributes:
        probability: Of each layer to be left out.
        generator: Where the choice comes from, on the CPU; None is torch's own.
    """

    training: bool
    probability = 0.0
    generator: torch.Generator | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        layers: Iterator[nn.Module] = super().__iter__()  # type: ignore[misc]
        if not self.training:
            return layers
        everything = list(layers)
        draws = torch.rand(len(everything), generator=self.generator).tolist()
        return (layer for layer, draw in zip(everything, draws, strict=True) if draw >= self.probability)

    def __getitem__(self, index: int | slice) -> Any:
        """A layer; or some of them, which are left out as here."""
        found = super().__getitem__(index)  # type: ignore[misc]
        if isinstance(found, _Dropping) and isinstance(index, slice):
            found.training, found.probability, found.generator = self.training, self.probability, self.generator
        return found


class DroppingModuleList(_Dropping, nn.ModuleList):
    """An ``nn.ModuleList`` under :func:`drop_layers`."""


class DroppingSequential(_Dropping, nn.Sequential):
    """An ``nn.Sequential`` under :func:`drop_layers`."""


_Plain = nn.ModuleList | nn.Sequential
_Container = DroppingModuleList | DroppingSequential


@dataclass(frozen=True)
class RemovedLayers:
    """Layers that were removed from a container, to be saved and replayed on a fresh model.

    Attributes:
        container: Name of the ``nn.ModuleList`` or ``nn.Sequential``.
        count: How many layers it had.
        removed: Indices of those that went, rising.
    """

    container: str
    count: int
    removed: tuple[int, ...]

    def apply(self, model: nn.Module) -> None:
        """Remove the layers of a model, in place; those that stay are numbered anew.

        The container becomes a plain one. ``num_layers`` of the module around it and ``layer_idx`` within its layers,
        by which caches of keys and values are found, follow; a configuration object does not.

        Raises:
            ValueError: The model has no such container.
            BundleError: It has another number of layers. The model is unchanged.
        """
        container = find_container(model, self.container)
        if len(container) != self.count:
            raise BundleError(
                f"expected {self.count} layers in {self.container}, got {len(container)}; "
                "the model must be as it was before layers were removed"
            )
        removed = set(self.removed)
        layers = [layer for index, layer in enumerate(container._modules.values()) if index not in removed]
        kept = [index for index in range(self.count) if index not in removed]
        plain = nn.ModuleList(layers) if isinstance(container, nn.ModuleList) else nn.Sequential(*layers)
        plain.training = container.training
        model.set_submodule(self.container, plain)
        for new, (old, layer) in enumerate(zip(kept, layers, strict=True)):
            for module in layer.modules():
                _change(module, "layer_idx", old, new)
        _change(model.get_submodule(self.container.rpartition(".")[0]), "num_layers", self.count, len(layers))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {"container": self.container, "count": self.count, "removed": list(self.removed)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> RemovedLayers:
        """Read what :meth:`to_dict` returned.

        Raises:
            BundleError: It is something else.
        """
        try:
            container, count, removed = (content[key] for key in ("container", "count", "removed"))
            if type(container) is not str or type(count) is not int:
                raise ValueError("no name or no number")
            return RemovedLayers(container, count, _checked(removed, count))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"expected removed layers as RemovedLayers.to_dict() makes them ({error})") from error


def drop_layers(
    model: nn.Module, container: str, probability: float, *, generator: torch.Generator | None = None
) -> _Container:
    """Let each layer of a container be skipped with a probability in every training step, in place.

    The model has to run its layers by a ``for`` loop over the container, each from and to the same shape. Names of
    parameters stay, and evaluation runs all layers. Under DistributedDataParallel give every process a generator with
    the same seed.

    Args:
        model: Any module with a stack of layers.
        container: Name of the ``nn.ModuleList`` or ``nn.Sequential`` that holds them.
        probability: The paper's p, in [0, 1).
        generator: On the CPU; None is torch's own.

    Returns:
        The new container; its ``probability`` can be changed.

    Raises:
        ValueError: The probability is out of range, or the model has no such container.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))))
        >>> stack = drop_layers(model, "1", 0.5, generator=torch.Generator().manual_seed(0))
        >>> [len(list(stack)) for _ in range(5)]
        [1, 2, 1, 1, 2]
        >>> len(list(stack.eval()))
        4

    Reference:
        Fan et al., Reducing Transformer Depth on Demand with Structured Dropout, ICLR 2020.
    """
    require_share(probability)
    plain = find_container(model, container)
    layers = plain._modules
    dropping: _Container
    if isinstance(plain, nn.ModuleList):
        dropping = DroppingModuleList(layers.values())
    else:
        dropping = DroppingSequential()
        for name, layer in layers.items():
            dropping.add_module(name, layer)
    dropping.training, dropping.probability, dropping.generator = plain.training, probability, generator
    model.set_submodule(container, dropping)
    return dropping


def prune_layers(model: nn.Module, container: str, probability: float) -> RemovedLayers:
    """Remove every ``floor(1 / p)``-th layer, counted from 1, in place: half of them for p = 0.5.

    Args:
        model: A model trained under :func:`drop_layers`.
        container: Name of the ``nn.ModuleList`` or ``nn.Sequential`` that holds the layers.
        probability: The paper's p, in (0, 0.5].

    Returns:
        What was removed. Build new optimizers.

    Raises:
        ValueError: The probability is out of range, or the model has no such container.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
        >>> prune_layers(model, "1", 0.5).removed
        (1, 3)

    Reference:
        Fan et al., ICLR 2020, section 3.2, "every other".
    """
    if not 0 < probability <= 0.5:
        raise ValueError(f"expected a probability in (0, 0.5], got {probability}; above, no layer would stay")
    step = math.floor(1 / probability)
    count = len(find_container(model, container))
    return remove_layers(model, container, range(step - 1, count, step))


def remove_layers(model: nn.Module, container: str, layers: Sequence[int]) -> RemovedLayers:
    """Remove layers from a container, in place.

    Args:
        model: Any module with a stack of layers.
        container: Name of the ``nn.ModuleList`` or ``nn.Sequential`` that holds them.
        layers: Indices of those to go; at least one stays.

    Returns:
        What was removed, see :meth:`RemovedLayers.apply`.

    Raises:
        ValueError: The model has no such container, the container no such layer, or none would stay.
    """
    count = len(find_container(model, container))
    removed = RemovedLayers(container, count, _checked(layers, count))
    removed.apply(model)
    return removed


def find_container(model: nn.Module, name: str) -> _Plain:
    """Return a container of layers by name.

    Raises:
        ValueError: Nothing has that name, or it is no ``nn.ModuleList`` or ``nn.Sequential``.
        UnsupportedError: It is the model itself, or a subclass with code of its own.
    """
    require_module(model)
    modules = dict(model.named_modules())
    if name not in modules:
        containers = [key for key, module in modules.items() if key and isinstance(module, _Plain)]
        raise ValueError(f"no module is called {name!r}{close_matches(name, containers)}")
    found = modules[name]
    if not isinstance(found, _Plain):
        raise ValueError(f"expected {name} to be an nn.ModuleList or nn.Sequential, got {type(found).__name__}")
    if not name or type(found) not in (nn.ModuleList, nn.Sequential, DroppingModuleList, DroppingSequential):
        raise UnsupportedError(
            f"cannot replace {name or 'the model itself'}, a {type(found).__name__}; put the layers in an "
            "nn.ModuleList or nn.Sequential inside the model"
        )
    return found


def _checked(layers: Sequence[int], count: int) -> tuple[int, ...]:
    if bad := [index for index in layers if type(index) is not int or not 0 <= index < count]:
        raise ValueError(f"expected layers in 0..{count - 1}, got {bad[0]!r}")
    removed = tuple(sorted(set(layers)))
    if len(removed) == count:
        raise ValueError(f"expected at least one layer to stay, got all {count} to go")
    return removed


def _change(module: nn.Module, attribute: str, before: int, after: int) -> None:
    if getattr(module, attribute, None) == before:
        setattr(module, attribute, after)
