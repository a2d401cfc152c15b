"""Losses with a teacher."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsecore.lookup import import_by_name
from sparsecore.train.strategies.base import Stage, State, Strategy
from sparsecore.train.strategies.options import RecipeOption

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run

_TEACHER = RecipeOption(
    "teacher",
    str,
    "start",
    'Who teaches: `"start"`, a copy of the model as it is when this begins, or `"module:function"`, which returns a '
    "trained model.",
)


class _Teaching(Strategy):
    """A loss of student and teacher in place of the recipe's own."""

    stage = Stage.TEACHER
    spans = True
    own = (_TEACHER,)
    teacher: nn.Module

    def begin(self, run: Run) -> None:
        self.replay_begin(run)
        self._take_over(run)

    def replay_begin(self, run: Run) -> None:
        self.teacher = self._build(run).to(run.device).requires_grad_(self._trains_teacher).train(self._trains_teacher)

    def finish(self, run: Run) -> None:
        run.teach(None)

    def resume(self, run: Run, state: State) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self._take_over(run)

    def state_dict(self) -> State:
        return {"teacher": self.teacher.state_dict()}

    @property
    def _trains_teacher(self) -> bool:
        return False

    def _take_over(self, run: Run) -> None:
        self._loss = self.method.bind(**self.options)(student=run.model, teacher=self.teacher)
        run.teach(self.loss)

    def loss(self, output: Any, labels: Tensor, inputs: Any) -> Tensor:
        """The loss that trains the student."""
        found: Tensor = self._loss(output, labels, inputs)
        return found

    def _build(self, run: Run) -> nn.Module:
        name = self.further["teacher"]
        if name == "start":
            return copy.deepcopy(run.model)
        teacher = import_by_name(name)()
        if not isinstance(teacher, nn.Module):
            raise ValueError(f"expected {name} to return a torch.nn.Module, got {type(teacher).__name__}")
        return teacher


class DistillationTraining(_Teaching):
    """``Distillation``."""

    left_out = ("features",)


class ApprenticeTraining(_Teaching):
    """``Apprentice``; in scheme A the teacher learns too."""

    @property
    def _trains_teacher(self) -> bool:
        return bool(self.options.get("scheme", "B") == "A")

    def _take_over(self, run: Run) -> None:
        super()._take_over(run)
        if self._trains_teacher:
            run.train_too(self.teacher)

    def finish(self, run: Run) -> None:
        super().finish(run)
        if self._trains_teacher:
            run.train_too(None)
