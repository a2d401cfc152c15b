"""Which tensors of a model are prunable weights, what they are called and how they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from sparsecore.calibration import evaluation_mode
from sparsecore.errors import FormatError, UnsupportedError, require_module
from sparsecore.prune.sharding import reshard, whole

# A module or weight by name or fnmatch pattern ("encoder.*"), or every module of a type.
# It stands for the module with all that is inside.
Selector = str | type[nn.Module]
Setting = TypeVar("Setting")

_remove_torch_pruning: Callable[[nn.Module, str], nn.Module] = torch_prune.remove


def _is_a(*types: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, types)


def _is_hugging_face_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, told by its name so that nothing is imported."""
    if not any(cls.__name__ == "Conv1D" for cls in type(module).__mro__):
        return False
    weight = _look_at(module, "weight")
    return isinstance(weight, Tensor) and weight.dim() == 2


def _look_at(module: nn.Module, attribute: str) -> Tensor | None:
    """Return a tensor of a module, None if it has none; to compute it changes nothing (spectral_norm iterates)."""
    if parametrize.is_parametrized(module, attribute):
        with evaluation_mode(module.get_submodule(f"parametrizations.{attribute}")):
            return cast(Tensor, getattr(module, attribute))
    return getattr(module, attribute, None)


_FLOATING_POINT = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PARALLEL = (DataParallel, DistributedDataParallel)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Layer, its weights, whether they are stored [K, N] instead of [N, K, ...].
_LAYERS: tuple[tuple[Callable[[nn.Module], bool], tuple[str, ...], bool], ...] = (
    (_is_a(nn.Linear, *CONVOLUTIONS), ("weight",), False),
    (
        _is_a(nn.MultiheadAttention),  # its out_proj is an nn.Linear of its own
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
        False,
    ),
    (_is_hugging_face_conv1d, ("weight",), True),
)


@dataclass(frozen=True)
class PrunableWeight:
    """A weight, counted once however many layers share it.

    Attributes:
        name: Its name in ``model.named_parameters()``; the first one if it has several.
        stored: The parameter, or the tensor that a parametrization computes in its place.
        torch_mask: What ``torch.nn.utils.prune`` multiplies it with, if it does.
        is_transposed: Stored ``[K, N]`` instead of ``[N, K, ...]``.
        groups: Groups of a convolution, each with its own share of the N rows and of the inputs.
        names: All its names.
        owners: Every module that contains it, by name, from the root inwards.
    """

    name: str
    stored: Tensor
    torch_mask: Tensor | None
    is_transposed: bool
    groups: int = 1
    names: list[str] = field(default_factory=list)
    owners: dict[str, nn.Module] = field(default_factory=dict)

    def matches(self, selector: Selector) -> bool:
        """Whether the selector means this weight or a module that contains it."""
        if isinstance(selector, str):
            return any(fnmatchcase(name, selector) for name in (*self.names, *self.owners))
        return any(isinstance(owner, selector) for owner in self.owners.values())

    def value(self) -> Tensor:
        """Return a copy of the weight as the layer uses it, with the parameter's ``grad``; whole if it is sharded."""
        value = whole(self.stored.detach()).clone()
        if self.torch_mask is not None:
            value *= self.torch_mask
        value.grad = None if self.stored.grad is None else whole(self.stored.grad)
        return value

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(N, K) of the weight as a matrix."""
        N, K = self.to_rows(self.stored).shape
        return N, K

    def to_rows(self, tensor: Tensor) -> Tensor:
        """Bring a tensor from the shape of the weight to ``[N, K]``."""
        return tensor.t() if self.is_transposed else tensor.flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Bring a tensor from ``[N, K]`` to the shape of the weight."""
        return rows.t() if self.is_transposed else rows.reshape(self.stored.shape)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and torch.compile, whose names are the plain ones.

    Raises:
        TypeError: It is no module.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(4, 2)))
        Linear(in_features=4, out_features=2, bias=True)
    """
    require_module(model)
    while True:
        inner = model.module if isinstance(model, _PARALLEL) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def as_selectors(exclude: Selector | Iterable[Selector]) -> tuple[Selector, ...]:
    """Return what to exclude so that it can be read more than once.

    Raises:
        TypeError: It is not names, patterns and module types.
    """
    selectors = (exclude,) if isinstance(exclude, str | type) or not isinstance(exclude, Iterable) else tuple(exclude)
    for selector in selectors:
        if not isinstance(selector, str | type):
            raise TypeError(f"expected names, patterns or module types in exclude, got {selector!r}")
    return selectors


def prunable_weights(model: nn.Module, exclude: Selector | Iterable[Selector] = ()) -> list[PrunableWeight]:
    """List the prunable weights in the order of the model; nothing is changed.

    These are the weights of ``nn.Linear``, ``nn.Conv1d/2d/3d``, ``nn.MultiheadAttention`` and
    Hugging Face's ``Conv1D``. A weight shared with an embedding counts as the embedding's.

    Args:
        model: Any module, also one pruned by ``torch.nn.utils.prune``; a wrapper stands for the model inside, see
            :func:`unwrapped`.
        exclude: Weights and modules to leave out, by name, fnmatch pattern or module type.

    Returns:
        At least one weight, each floating point with at least one entry.

    Raises:
        ValueError: A name in ``exclude`` matches nothing in the model.
        UnsupportedError: Nothing is left to prune, or a weight is computed or not initialised.
        FormatError: A weight is not floating point.
    """
    model = unwrapped(model)
    reshard(model)
    weights = find_weights(model, exclude)
    for weight in weights:
        _require_plain(weight)
    weights = [weight for weight in weights if weight.stored.numel() > 0]
    if not weights:
        raise UnsupportedError(
            f"nothing to prune in {type(model).__name__}: expected at least one Linear, Conv or "
            "attention weight that is not excluded"
        )
    return weights


def first_match(
    weights: Iterable[PrunableWeight], settings: Mapping[Selector, Setting], what: str
) -> list[tuple[PrunableWeight, Setting]]:
    """Give each weight the setting of the first key that matches it; weights without a match are left out.

    Args:
        weights: From :func:`prunable_weights`.
        settings: By name, fnmatch pattern or module type.
        what: The name of the argument, for the error.

    Raises:
        ValueError: A key matches none of the weights.
    """
    weights = list(weights)
    for selector in settings:
        if not any(weight.matches(selector) for weight in weights):
            raise ValueError(f"{what}: {selector!r} matches no weight that may be pruned")
    return [
        (weight, settings[matching[0]])
        for weight in weights
        if (matching := [selector for selector in settings if weight.matches(selector)])
    ]


def find_weights(model: nn.Module, exclude: Selector | Iterable[Selector] = ()) -> list[PrunableWeight]:
    """List the weights of layers that can be pruned; whether they can be zeroed as they are is not looked at.

    Args:
        model: Any module, also one without values on the meta device.
        exclude: As in :func:`prunable_weights`.

    Raises:
        ValueError: A name in ``exclude`` matches nothing in the model.
    """
    selectors = as_selectors(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    found = _discover(modules)
    known = {*modules, *dict(model.named_parameters(remove_duplicate=False))}
    known.update(*(weight.names for weight in found))  # without torch's "_orig"
    _require_known(selectors, known)
    return [weight for weight in found if not any(weight.matches(selector) for selector in selectors)]


def fold_torch_pruning(model: nn.Module) -> None:
    """Turn what ``torch.nn.utils.prune`` made of a model back into plain weights, in place.

    ``weight_orig`` and ``weight_mask`` become one parameter ``weight`` with zeros in it. It is the
    same ``nn.Parameter`` object as ``weight_orig``, so optimizers keep working.

    Args:
        model: Any module; without such pruning nothing happens.

    Example:
        >>> layer = torch_prune.l1_unstructured(nn.Linear(4, 2), "weight", amount=0.5)
        >>> fold_torch_pruning(layer)
        >>> sorted(layer.state_dict()), int((layer.weight == 0).sum())
        (['bias', 'weight'], 4)
    """
    for module in model.modules():
        for hook in tuple(module._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                _remove_torch_pruning(module, hook._tensor_name)


def _discover(modules: dict[str, nn.Module]) -> list[PrunableWeight]:
    """Collect the weights of all layers, one entry per tensor."""
    embeddings = {
        id(_look_at(module, "weight"))
        for module in modules.values()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    found: dict[int, PrunableWeight] = {}
    for path, module in modules.items():
        groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
        for attribute, is_transposed in _weight_attributes(module):
            stored, torch_mask = _stored(module, attribute)
            if stored is None or id(stored) in embeddings:
                continue
            name = f"{path}.{attribute}" if path else attribute
            weight = found.setdefault(id(stored), PrunableWeight(name, stored, torch_mask, is_transposed, groups))
            weight.names.append(name)
            weight.owners.update((owner, modules[owner]) for owner in _prefixes(path))
    return list(found.values())


def _weight_attributes(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """Yield the attributes of a module that may hold a weight; the first row that fits counts."""
    for is_layer, attributes, is_transposed in _LAYERS:
        if is_layer(module):
            yield from ((attribute, is_transposed) for attribute in attributes)
            return


def is_stored_transposed(layer: nn.Module) -> bool:
    """Whether a layer holds its weight as ``[K, N]``."""
    return any(is_transposed for _, is_transposed in _weight_attributes(layer))


def _stored(module: nn.Module, attribute: str) -> tuple[Tensor | None, Tensor | None]:
    """Return the tensor behind an attribute, and the mask torch.nn.utils.prune put on it."""
    original = module._parameters.get(f"{attribute}_orig")
    torch_mask = module._buffers.get(f"{attribute}_mask")
    if original is not None and torch_mask is not None:
        return original, torch_mask
    return _look_at(module, attribute), None


def _prefixes(path: str) -> Iterator[str]:
    """Yield "", "a", "a.b" for "a.b"."""
    parts = path.split(".")
    yield from (".".join(parts[:end]) for end in range(len(parts) + 1))


def _require_known(selectors: Iterable[Selector], names: set[str]) -> None:
    """A misspelt name would silently exclude nothing."""
    for selector in selectors:
        if isinstance(selector, str) and not any(fnmatchcase(name, selector) for name in names):
            raise ValueError(f"exclude: nothing in the model is called {selector!r}")


def _way_to_plain(weight: PrunableWeight) -> str:
    """The call that makes a computed weight a parameter: of torch's parametrizations, or of the hooks before them."""
    path, _, attribute = weight.name.rpartition(".")
    module = f"model.get_submodule({path!r})" if path else "model"
    for hook in weight.owners[path]._forward_pre_hooks.values():
        for kind in ("weight_norm", "spectral_norm"):
            if type(hook).__module__ == f"torch.nn.utils.{kind}":
                return f"torch.nn.utils.remove_{kind}({module}, {attribute!r})"
    return f"torch.nn.utils.parametrize.remove_parametrizations({module}, {attribute!r})"


def _require_plain(weight: PrunableWeight) -> None:
    """A weight can be zeroed in place: a real floating-point parameter."""
    if not isinstance(weight.stored, nn.Parameter):
        raise UnsupportedError(
            f"{weight.name} is computed from other parameters; exclude it or make it plain first: "
            f"{_way_to_plain(weight)}"
        )
    if is_lazy(weight.stored) or weight.stored.is_meta:
        raise UnsupportedError(f"{weight.name} has no values yet; initialise the model first")
    require_floating_point(weight.name, weight.stored)


def require_floating_point(name: str, weight: Tensor) -> None:
    """Raise FormatError for integers, and for types that torch does not calculate in, such as float8."""
    if weight.dtype not in _FLOATING_POINT:
        raise FormatError(
            f"{name}: expected floating point of 16 to 64 bits, got {weight.dtype}; convert it with .to(), or leave it "
            f"out with exclude={name!r}"
        )
