"""Distillation: a student learns from the labels and from what a trained teacher makes of the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from sparsecore.arguments import is_real
from sparsecore.train.features import FeatureLoss, LayerOutputs
from sparsecore.train.teacher import Teacher
from sparsecore.train.terms import (
    Term,
    check_same_shape,
    check_separate,
    check_temperature,
    cross_entropy,
    logits_of,
    soft_loss,
    weighted_sum,
)

Schedule = Callable[[int], float]


class Distillation:
    """The loss ``alpha * T^2 * KL(teacher, student) + (1 - alpha) * CE``, batch means, plus losses between layers.

    The training loop stays one's own: it calls the student, and this with what came out.

    Args:
        student: The model that is trained.
        teacher: A trained model, which stays exactly as it is.
        temperature: T.
        alpha: Share of the teacher's part, in [0, 1]; or a function from the step to it, such as
            ``linear_schedule()``.
        features: Losses between layers, such as ``L2Features`` and ``FSPFeatures``, added with their weights.

    Attributes:
        terms: The terms of the latest loss without weights, by name: ``"soft"``, ``"hard"``, layers of the student.

    Raises:
        ValueError: An argument is out of range, student or teacher has no such layer, or they share parameters.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distillation = Distillation(student, teacher, temperature=4.0, alpha=0.9)
        >>> x, labels = torch.ones(2, 4), torch.tensor([0, 2])
        >>> distillation(student(x), labels, x).backward()
        >>> student.weight.grad is not None, teacher.weight.grad is None
        (True, True)

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float | Schedule = 0.5,
        features: Sequence[FeatureLoss] = (),
    ) -> None:
        check_temperature(temperature)
        if not callable(alpha):
            _check_alpha(alpha)
        check_separate(student, teacher)
        self.temperature, self.alpha, self.features = temperature, alpha, tuple(features)
        self.terms: dict[str, Tensor] = {}
        self._outputs = LayerOutputs("student", student, [name for loss in features for name in loss.student_layers])
        try:
            self._teacher = Teacher(teacher, [name for loss in features for name in loss.teacher_layers])
        except ValueError:
            self._outputs.remove()
            raise

    def __call__(self, output: Any, labels: Tensor, inputs: Any, step: int = 0) -> Tensor:
        """Return the loss; the teacher runs on the inputs.

        Args:
            output: What the student gave for the inputs: logits ``[..., C]``, or an object with ``logits``.
            labels: ``[...]`` int64, -100 where there is none.
            inputs: For the teacher: a tensor, a tuple or list of positional or a dict of keyword arguments.
            step: Where the training is, for a scheduled alpha.

        Returns:
            Scalar.

        Raises:
            ValueError: Shapes do not fit, alpha is out of range, the student's layers have not run, or a term is NaN
                or infinite.
        """
        alpha = self.alpha(step) if callable(self.alpha) else self.alpha
        _check_alpha(alpha)
        student = logits_of("student", output)
        features = self._outputs.take()
        teacher = self._teacher(inputs)
        check_same_shape("logits", student, teacher)
        terms = [
            Term("soft", alpha, soft_loss(student, teacher, self.temperature)),
            Term("hard", 1 - alpha, cross_entropy(student, labels)),
            *(
                Term(" ".join(loss.student_layers), loss.weight, loss(features, self._teacher.features))
                for loss in self.features
            ),
        ]
        self.terms = {term.name: term.value.detach() for term in terms}
        return weighted_sum(terms)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield the parameters of the adapters of feature losses; the optimizer has to be given them too."""
        for loss in self.features:
            adapter = getattr(loss, "adapter", None)
            if isinstance(adapter, nn.Module):
                yield from adapter.parameters()

    def remove(self) -> None:
        """Take the hooks off student and teacher, as before the student is saved."""
        self._outputs.remove()
        self._teacher.remove()


def linear_schedule(start: float, end: float, steps: int) -> Schedule:
    """Return a function that goes from start to end in that many steps, and stays there.

    Raises:
        ValueError: The number of steps is not above zero.

    Example:
        >>> alpha = linear_schedule(0.9, 0.5, steps=4)
        >>> [round(alpha(step), 3) for step in (0, 2, 4, 9)]
        [0.9, 0.7, 0.5, 0.5]
    """
    if steps <= 0:
        raise ValueError(f"expected at least 1 step, got {steps!r}")

    def schedule(step: int) -> float:
        share = min(max(step / steps, 0.0), 1.0)
        return start + share * (end - start)

    return schedule


def _check_alpha(alpha: float) -> None:
    if not is_real(alpha) or not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha in [0, 1], got {alpha!r}")
