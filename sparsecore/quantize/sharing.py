"""Weight sharing of Deep Compression: a few values per layer, which training moves together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecore.errors import FormatError, require_generator
from sparsecore.prune.criteria import require_finite
from sparsecore.prune.masks import require_updates
from sparsecore.prune.weights import PrunableWeight, Selector, first_match, fold_torch_pruning, prunable_weights
from sparsecore.quantize.kmeans import check_init, kmeans

MAX_BITS = 8
_CODES = 2**MAX_BITS + 1  # with that of zero


@torch.no_grad()
def share_weights(
    model: nn.Module,
    bits: int | Mapping[Selector, int] = 5,
    *,
    exclude: Selector | Iterable[Selector] = (),
    init: str = "linear",
    generator: torch.Generator | None = None,
) -> SharedWeights:
    """Replace the weights of each layer by at most 2^bits different values, in place.

    The values are centroids of the layer's weights that are not zero, found by k-means; zeros stay zero and do not
    count. Shared are the weights that ``prune()`` prunes. A model pruned by ``torch.nn.utils.prune`` is folded to
    plain weights. Everything is checked before anything is changed.

    Args:
        model: any module, best one that is pruned and trained.
        bits: of the index of a value, 1 to 8; or ``{"conv*": 8, nn.Linear: 5}``: the first key that matches counts,
            and layers without a match stay as they are.
        exclude: what to leave alone: names of modules or weights, fnmatch patterns or module types.
        init: where the centroids start: ``"linear"`` evenly over [min, max], ``"density"`` at even shares of the
            weights, or ``"random"``.
        generator: for ``"random"``; None for the global one of torch.

    Returns:
        Which weights share; ``shared.attach(optimizer)`` trains the centroids.

    Raises:
        ValueError: an argument is out of range, or a name matches nothing.
        FormatError: a weight is NaN or infinite, or not floating point.
        UnsupportedError: there are no such weights, or one is computed by a parametrization.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> shared = share_weights(model, bits=4)
        >>> len(model[0].weight.unique())
        16

    Reference:
        Han et al., Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding, ICLR 2016, sec. 3.
    """
    check_init(init)
    require_generator(generator)
    codes = {}
    values = {}
    for weight, weight_bits in _with_bits(prunable_weights(model, exclude), bits):
        value = weight.value()
        require_finite(f"{weight.name}: the weight", value)
        codes[weight.name], values[weight.name] = _cluster(value, 2**weight_bits, init, generator)
    fold_torch_pruning(model)
    for name, value in values.items():
        model.get_parameter(name).copy_(value)
    return SharedWeights(model, codes)


class SharedWeights(Mapping[str, Tensor]):
    """Which weights of a model share a value: codes by parameter name.

    A code is 0 for a weight that is zero, and counts from 1 for the others. The values themselves are in the model.

    Training moves the centroids: :meth:`attach` gives every weight the sum of its cluster's gradients before each
    step of the optimizer, which is the gradient of the centroid, and makes the members equal again after it. Any
    optimizer that treats weights one by one (SGD, Adam and their like) then does to a centroid what it would do to a
    parameter with that gradient. Clipping by norm belongs before the step and sees the plain gradients.

    Args:
        model: the model that the names refer to.
        codes: for each parameter name integers of that parameter's shape, 0 to 256.

    Raises:
        FormatError: the model has no such parameter, or codes are of another type, shape or range.

    Reference:
        Deep Compression, ICLR 2016, eq. 3.
    """

    def __init__(self, model: nn.Module, codes: Mapping[str, Tensor]) -> None:
        self._model = model
        self._codes = self._checked(codes)

    @property
    def model(self) -> nn.Module:
        """The model whose weights are shared."""
        return self._model

    def __getitem__(self, name: str) -> Tensor:
        return self._codes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        lines = [f"SharedWeights({len(self)} weights)"]
        lines += [f"  {name:{width}}  {len(values):3} values" for name, values in self.codebooks().items()]
        return "\n".join(lines)

    def codebooks(self) -> dict[str, Tensor]:
        """Return the values of each weight that are not zero, in rising order."""
        found = {name: self._model.get_parameter(name).detach().unique() for name in self}
        return {name: values[values != 0] for name, values in found.items()}

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Train centroids from now on: every ``optimizer.step()`` moves the members of a cluster together.

        State that the optimizer has from before (momentum, Adam's moments) is cleared where it differs within a
        cluster. With masks, attach those too: a weight that is zeroed leaves its cluster.

        Args:
            optimizer: any that updates at least one of the weights, each of them by its gradient alone.

        Returns:
            A handle; ``handle.remove()`` lets the weights free again.

        Raises:
            ValueError: the optimizer holds none of the shared weights.

        Example:
            >>> model = nn.Sequential(nn.Linear(64, 32))
            >>> shared = share_weights(model, bits=2)
            >>> optimizer = torch.optim.Adam(model.parameters())
            >>> handle = shared.attach(optimizer)
            >>> model(torch.randn(8, 64)).square().mean().backward()
            >>> optimizer.step()
            >>> len(model[0].weight.unique())
            4
        """
        require_updates(optimizer, map(self._model.get_parameter, self))
        self._clear_state(optimizer)
        before = optimizer.register_step_pre_hook(self._before_step)
        after = optimizer.register_step_post_hook(lambda *_: self.apply())
        return Attachment((before, after))

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Replace the gradient of every weight by the sum over its cluster, and of a zero by 0; call it once."""
        for name in self:
            grad = self._model.get_parameter(name).grad
            if grad is not None:
                index = self._current(name).flatten().long()
                sums = torch.zeros(_CODES, dtype=torch.float64, device=grad.device)
                sums.index_add_(0, index, grad.flatten().double())
                sums[0] = 0
                grad.copy_(sums[index].view(grad.shape))

    @torch.no_grad()
    def apply(self) -> None:
        """Set every weight to the value of its cluster's first member; weights that are zero now leave it."""
        for name in self:
            weight = self._model.get_parameter(name)
            weight.copy_(_as_first(weight, self._current(name)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the codes as a plain dict of int16 tensors, ready for safetensors or ``torch.save``."""
        return dict(self._codes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all codes; load the model's weights too.

        Args:
            state: codes of exactly the same weights.

        Raises:
            FormatError: other names, or codes of another type, shape or range; nothing is changed.
        """
        if state.keys() != self.keys():
            raise FormatError(
                "expected codes of the same weights, but these are only in one of the two: "
                f"{sorted(state.keys() ^ self.keys())}"
            )
        self._codes = self._checked(state)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args begin with the optimizer
        if closure is None:
            self._sum_finite_gradients(optimizer)
            return None

        def closure_with_sums() -> Any:
            loss = closure()
            self._sum_finite_gradients(optimizer)
            return loss

        return (optimizer, closure_with_sums), {}

    def _sum_finite_gradients(self, optimizer: Optimizer) -> None:
        if getattr(optimizer, "found_inf", None) is None:  # a GradScaler looks after infinite gradients
            for name in self:
                if (grad := self._model.get_parameter(name).grad) is not None:
                    require_finite(f"{name}: the gradient", grad)
        self.sum_gradients()

    def _clear_state(self, optimizer: Optimizer) -> None:
        for name in self:
            weight, codes = self._model.get_parameter(name), self._current(name)
            for state in optimizer.state.get(weight, {}).values():
                is_per_weight = isinstance(state, Tensor) and state.shape == codes.shape
                if is_per_weight and not torch.equal(state, _as_first(state, codes)):
                    state.zero_()

    def _current(self, name: str) -> Tensor:
        """Codes on the model's device; a weight that is zero now, for it was pruned, has left its cluster."""
        weight = self._model.get_parameter(name)
        self._codes[name] = self._codes[name].to(weight.device).masked_fill(weight == 0, 0)
        return self._codes[name]

    def _checked(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, code in codes.items():
            if name not in parameters:
                raise FormatError(f"the model has no parameter {name!r}")
            shape = parameters[name].shape
            is_integer = not (code.is_floating_point() or code.is_complex() or code.dtype == torch.bool)
            if not is_integer or code.shape != shape:
                raise FormatError(
                    f"{name}: expected integer codes of shape {list(shape)}, got {code.dtype} of shape "
                    f"{list(code.shape)}"
                )
            if bool((code < 0).any() | (code >= _CODES).any()):
                raise FormatError(f"{name}: expected codes from 0 to {_CODES - 1}")
        return {name: code.to(parameters[name].device, torch.int16).contiguous() for name, code in codes.items()}


@dataclass(frozen=True)
class Attachment:
    """What ties an object to an optimizer."""

    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Undo it."""
        for handle in self.handles:
            handle.remove()


def _with_bits(weights: list[PrunableWeight], bits: int | Mapping[Selector, int]) -> list[tuple[PrunableWeight, int]]:
    settings: Mapping[Selector, int] = bits if isinstance(bits, Mapping) else {"*": bits}
    if not settings:
        raise ValueError("expected bits for at least one layer, got an empty dict")
    for value in settings.values():
        if type(value) is not int or not 1 <= value <= MAX_BITS:
            raise ValueError(f"expected bits from 1 to {MAX_BITS}, got {value!r}")
    return first_match(weights, settings, "bits")


def _cluster(value: Tensor, k: int, init: str, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the codes of a weight, and the weight with its centroids."""
    codes = torch.zeros(value.shape, dtype=torch.int16, device=value.device)
    is_used = value != 0
    if not bool(is_used.any()):
        return codes, value
    centroids, members = kmeans(value[is_used], k, init, generator)
    codes[is_used] = (members + 1).to(torch.int16)
    shared = value.clone()
    shared[is_used] = centroids[members].to(value.dtype)
    return codes, shared


def _as_first(tensor: Tensor, codes: Tensor) -> Tensor:
    """Every entry as the first with its code, and 0 where that is 0."""
    index, flat = codes.flatten().long(), tensor.flatten()
    if index.numel() == 0:
        return tensor
    positions = torch.arange(len(index), device=index.device)
    first = torch.zeros(_CODES, dtype=torch.int64, device=index.device)
    first.scatter_reduce_(0, index, positions, "amin", include_self=False)
    return torch.where(codes == 0, 0, flat[first][index].view(tensor.shape))
