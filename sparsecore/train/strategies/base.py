"""What every strategy has: a stage, its epochs, and a lifecycle."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from sparsecore.methods import Method

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run
    from sparsecore.train.strategies.options import RecipeOption

#: Nested dicts of tensors and of what JSON has.
State = dict[str, Any]


class Stage(IntEnum):
    """What a strategy changes; a later stage builds on the earlier ones, whose changes must be over."""

    TEACHER = 0
    LAYERS = 1
    CHANNELS = 2
    ZEROS = 3
    VALUES = 4
    RESULT = 5


class Strategy:
    """One method at work in a run.

    The run calls :meth:`begin` before the epoch ``start``, :meth:`before_step` and :meth:`after_step` around every
    optimizer step from then on until :meth:`finish`, which it calls before the epoch ``end``, and :meth:`conclude`
    when all training is over. A strategy that works at once has only :meth:`begin` and :meth:`conclude`.

    To go on from a checkpoint the run calls :meth:`replay_begin` and :meth:`replay_finish` on a fresh model, which
    make layers and shapes what they were, and at last :meth:`resume` if the strategy had not ended.

    Args:
        method: The row of the table of methods.
        options: Its options and the strategy's own.
        start: First epoch.
        end: Epoch before which it ends.

    Attributes:
        stage: What it changes.
        spans: Whether it works through its epochs, or at once at the start.
        must_last: Whether it has to go on to the last epoch.
        left_out: Options of the method that the run gives, or that are no settings of a recipe.
        borrowed: Further options: name -> the function whose argument it is.
        own: Further options.
    """

    stage: ClassVar[Stage]
    spans: ClassVar[bool] = False
    must_last: ClassVar[bool] = False
    left_out: ClassVar[tuple[str, ...]] = ()
    borrowed: ClassVar[Mapping[str, str]] = {}
    own: ClassVar[tuple[RecipeOption, ...]] = ()

    def __init__(self, method: Method, options: Mapping[str, Any], start: int, end: int) -> None:
        further = {*self.borrowed, *(option.name for option in self.own)}
        self.method = method
        self.options = {name: value for name, value in options.items() if name not in further}
        self.further = {option.name: option.default for option in self.own}
        self.further |= {name: value for name, value in options.items() if name in further}
        self.start, self.end = start, end

    def begin(self, run: Run) -> None:
        """Start: change the model, or prepare to."""

    def replay_begin(self, run: Run) -> None:
        """Make the layers of a fresh model what :meth:`begin` made them, whatever their values."""

    def resume(self, run: Run, state: State) -> None:
        """Go on from a state, on the model and the optimizer as they were."""

    def before_step(self, run: Run) -> None:
        """Called before the forward pass of every step."""

    def after_step(self, run: Run) -> None:
        """Called after every step of optimizer and scheduler."""

    def end_epoch(self, run: Run) -> None:
        """Called after the last step of every epoch."""

    def finish(self, run: Run) -> None:
        """End."""

    def replay_finish(self, run: Run) -> None:
        """Make the layers of a fresh model what :meth:`finish` made them, before its recorded changes."""

    def conclude(self, run: Run) -> None:
        """Make the model what it is to be after all training."""

    def state_dict(self) -> State:
        """Return what :meth:`resume` needs besides the run's own state."""
        return {}
