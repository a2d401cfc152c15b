"""Where a decoder's blocks are, and how its forward pass calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from sparsecore.errors import SparsecoreError, UnsupportedError
from sparsecore.prune.pretrained.activations import Activations
from sparsecore.prune.pretrained.skeleton import Skeleton

# A call of a block: its positional and its keyword arguments.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """The arguments of a block beside the hidden states, which come first or as ``hidden_states=``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool

    def on(self, hidden: Tensor) -> Arguments:
        """The call with these hidden states."""
        if self.by_keyword:
            return self.args, {**self.kwargs, _HIDDEN: hidden}
        return (hidden, *self.args), self.kwargs


_HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Chain:
    """Blocks that are called one after another, each with what the one before returned.

    Attributes:
        calls: How each is called.
        first_input: What enters the first block on the sample that was traced, ``[1, length, features]``.
        returns_tuple: Blocks return a tuple that begins with the hidden states.
    """

    calls: list[Call]
    first_input: Tensor
    returns_tuple: bool


@dataclass(frozen=True)
class BlockCalls(Sequence[Arguments]):
    """The calls of a block on all samples.

    Attributes:
        call: What they have in common.
        activations: What they have not.
        share: Called with the share of the samples that is read when one more is, in every pass.
    """

    call: Call
    activations: Activations
    share: Callable[[float], None]

    def __len__(self) -> int:
        return len(self.activations)

    @overload
    def __getitem__(self, index: int) -> Arguments: ...

    @overload
    def __getitem__(self, index: slice) -> list[Arguments]: ...

    def __getitem__(self, index: int | slice) -> Arguments | list[Arguments]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        hidden = self.activations[index]
        self.share(index / len(self))
        return self.call.on(hidden)


def run_block(block: nn.Module, calls: Sequence[Arguments]) -> Iterator[Tensor]:
    """Yield the hidden states that a block returns on every call."""
    for args, kwargs in calls:
        with torch.no_grad():
            output = block(*args, **kwargs)
        yield output[0] if isinstance(output, tuple) else output


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the blocks of a decoder and their name: the largest ``nn.ModuleList`` that is in no other one.

    Raises:
        UnsupportedError: There are none, or two of them share a parameter.
    """
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in outermost):
            outermost[name] = module
    if not outermost:
        raise UnsupportedError(f"{type(model).__name__} has no nn.ModuleList of blocks; use sparsecore.prune()")
    name, blocks = max(outermost.items(), key=lambda item: sum(weight.numel() for weight in item[1].parameters()))
    if sum(len(list(block.parameters())) for block in blocks) != len(list(blocks.parameters())):
        raise _unsupported(model, f"blocks of {name} share parameters")
    return name, blocks


def trace_chain(skeleton: Skeleton, sample: Tensor) -> Chain:
    """Find out how a decoder calls its blocks, by running it on a sample with nothing in their place.

    Args:
        skeleton: The modules in front of the first block get their values.
        sample: Token ids, int64 ``[length]``.

    Raises:
        UnsupportedError: They are not called one after another, each with what the one before returned.
    """
    name, blocks = find_blocks(skeleton.model)
    _fill_before_calls(skeleton, name)
    reasons: list[str] = []
    for returns_tuple in (False, True):
        try:
            return _record(skeleton.model, blocks, sample, returns_tuple)
        except SparsecoreError:
            raise
        except Exception as error:  # of anybody's code
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise _unsupported(skeleton.model, f"expected {name} to be called one after another, but {reasons[0]}")


def first_inputs(skeleton: Skeleton, chain: Chain, samples: Tensor) -> Iterator[Tensor]:
    """Yield what enters the first block on every sample; :func:`trace_chain` was called before.

    Raises:
        UnsupportedError: Other arguments of the blocks depend on the tokens.
    """
    _, blocks = find_blocks(skeleton.model)
    for sample in samples:
        found = _record(skeleton.model, blocks, sample, chain.returns_tuple)
        if not _is_same(found.calls, chain.calls):
            raise _unsupported(skeleton.model, "its blocks have arguments that depend on the tokens")
        yield found.first_input


def _unsupported(model: nn.Module, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} cannot be pruned block by block: {reason}; load it and use sparsecore.prune()"
    )


def _record(model: nn.Module, blocks: nn.ModuleList, sample: Tensor, returns_tuple: bool) -> Chain:
    """Run a model on a sample until its last block."""
    recorder = _Recorder(len(blocks), returns_tuple)
    with _forward_replaced(blocks, recorder.forward), torch.no_grad(), suppress(_EndOfTraceError):
        model(input_ids=sample[None])
    if len(recorder.hidden) < len(blocks):
        raise ValueError(f"only {len(recorder.hidden)} of {len(blocks)} blocks are called")
    return Chain(recorder.calls, recorder.hidden[0], returns_tuple)


class _EndOfTraceError(Exception):
    """All that was to be recorded is recorded."""


class _Recorder:
    """Stands in the place of blocks, notes what they get, and returns the hidden states as they are."""

    def __init__(self, num_blocks: int, returns_tuple: bool) -> None:
        self.calls: list[Call] = []
        self.hidden: list[Tensor] = []
        self._num_blocks = num_blocks
        self._returns_tuple = returns_tuple

    def forward(self, index: int, *args: Any, **kwargs: Any) -> Any:
        hidden, call = _split(args, kwargs)
        if index != len(self.calls):
            raise ValueError(f"block {index} is called as number {len(self.calls)}")
        if self.hidden and hidden is not self.hidden[-1]:
            raise ValueError(f"what enters block {index} is not what block {index - 1} returned")
        self.hidden.append(hidden)
        self.calls.append(call)
        if len(self.calls) == self._num_blocks:
            raise _EndOfTraceError
        return (hidden,) if self._returns_tuple else hidden


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    by_keyword = _HIDDEN in kwargs
    hidden = kwargs[_HIDDEN] if by_keyword else args[0] if args else None
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        raise ValueError(f"a block is called with {type(hidden).__name__} instead of hidden states")
    rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
    return hidden, Call(args if by_keyword else args[1:], rest, by_keyword)


@contextmanager
def _forward_replaced(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    for index, block in enumerate(blocks):
        vars(block)["forward"] = partial(forward, index)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _fill_before_calls(skeleton: Skeleton, blocks: str) -> None:
    """What is outside the blocks gets its values when it is called; the head, behind them, never is."""

    def fill(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        skeleton.fill(module, name)
        handles.pop(name).remove()

    handles = {
        name: module.register_forward_pre_hook(partial(fill, name))
        for name, module in skeleton.model.named_modules()
        if not f"{name}.".startswith(f"{blocks}.") and (module._parameters or module._buffers)
    }


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values are equal, tensors inside compared by their entries."""
    if isinstance(a, Call) and isinstance(b, Call):
        return _is_same((a.args, a.kwargs, a.by_keyword), (b.args, b.kwargs, b.by_keyword))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return bool(a == b)
