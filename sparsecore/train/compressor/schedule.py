"""What happens at the start of an epoch, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sparsecore.train.strategies import Stage, Strategy


class Event(NamedTuple):
    """Something that a strategy does between epochs.

    Attributes:
        name: ``"begin"``, ``"finish"`` or ``"conclude"``.
        strategy: Its number.
    """

    name: str
    strategy: int


def events_before(epoch: int, strategies: Sequence[Strategy], epochs: int) -> list[Event]:
    """Return what happens before an epoch, in order; with ``epoch == epochs`` at the end.

    A teacher is copied before anything else changes. Then strategies end and others begin, each in the order of their
    stages; after the last epoch values become final, and at last the result is quantized.
    """
    numbered = sorted(enumerate(strategies), key=lambda pair: pair[1].stage)
    ending = [index for index, strategy in numbered if strategy.spans and strategy.end == epoch]
    beginning = [index for index, strategy in numbered if strategy.start == epoch]

    def of(name: str, indices: list[int], *stages: Stage) -> list[Event]:
        return [Event(name, index) for index in indices if strategies[index].stage in stages]

    changing = (Stage.LAYERS, Stage.CHANNELS, Stage.ZEROS, Stage.VALUES)
    everyone = [index for index, strategy in numbered if strategy.stage is Stage.VALUES]
    return [
        *of("finish", ending, Stage.TEACHER),
        *of("begin", beginning, Stage.TEACHER),
        *of("finish", ending, *changing),
        *of("begin", beginning, *changing),
        *(of("conclude", everyone, Stage.VALUES) if epoch == epochs else ()),
        *of("begin", beginning, Stage.RESULT),
    ]
