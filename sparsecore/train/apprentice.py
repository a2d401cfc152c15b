"""Apprentice: a student of few bits, such as a ternary one, learns beside a teacher of full precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sparsecore.calibration import call_model
from sparsecore.train.teacher import Teacher
from sparsecore.train.terms import (
    Term,
    check_same_shape,
    check_separate,
    check_temperature,
    check_weights,
    cross_entropy,
    logits_of,
    soft_cross_entropy,
    trainable,
    weighted_sum,
)

SCHEMES = {
    "A": "teacher and student are trained together, both from the start",
    "B": "the teacher is trained before and fixed, the student starts from scratch",
    "C": "as B, but the student starts from trained weights of full precision and is tuned at a lower learning rate",
}


class Apprentice:
    """The loss ``alpha * H(y, pT) + beta * H(y, pA) + gamma * H(zT, pA)`` of a teacher T and an apprentice A.

    y are the labels, p the probabilities; in the third term the teacher's probabilities, from its logits zT, are the
    target, and it has no gradient to the teacher. The teacher is never made worse for the student's sake: in scheme A
    its own labels train it, and in B and C, where the first term is left out, nothing of it changes.

    Schemes B and C differ in where the student starts, which is the caller's part: for C load trained weights first,
    lower the precision after, with ``prepare_ternary(student)`` or the like, and train at a lower learning rate.

    Args:
        student: The apprentice, its precision lowered already.
        teacher: A model of full precision with the same classes.
        scheme: ``"A"`` trains both together, ``"B"`` and ``"C"`` keep the teacher fixed.
        alpha: Weight of the teacher's own loss, in scheme A.
        beta: Weight of the labels.
        gamma: Weight of the teacher's probabilities.
        temperature: What the logits are divided by in the third term, whose gradient keeps its size.

    Attributes:
        terms: The terms of the latest loss by name (``"teacher"``, ``"labels"``, ``"soft"``), without their weights.

    Raises:
        ValueError: There is no such scheme, a weight or the temperature is out of range, or the two share parameters.

    Example:
        >>> from sparsecore.quantize import prepare_ternary
        >>> teacher, student = nn.Linear(4, 3), prepare_ternary(nn.Sequential(nn.Linear(4, 3)))
        >>> apprentice = Apprentice(student, teacher, scheme="B")
        >>> optimizer = torch.optim.SGD(apprentice.parameters(), lr=0.1)
        >>> x, labels = torch.ones(2, 4), torch.tensor([0, 2])
        >>> apprentice(student(x), labels, x).backward()
        >>> optimizer.step()

    Reference:
        Mishra & Marr, Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network Accuracy,
        ICLR 2018, eq. 1 and sec. 5.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        scheme: str = "B",
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"expected a scheme of {sorted(SCHEMES)}, got {scheme!r}")
        check_weights(alpha=alpha, beta=beta, gamma=gamma)
        check_temperature(temperature)
        check_separate(student, teacher)
        self.student, self.teacher, self.scheme = student, teacher, scheme
        self._fixed = Teacher(teacher)
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.terms: dict[str, Tensor] = {}

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher learns too."""
        return self.scheme == "A"

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield what the optimizer is to train: the student, and in scheme A the teacher."""
        return trainable(self.student, *[self.teacher] * self.trains_teacher)

    def __call__(self, output: Any, labels: Tensor, inputs: Any) -> Tensor:
        """Return the loss; the teacher runs on the inputs.

        Args:
            output: What the student gave for the inputs: logits ``[..., C]``, or an object with ``logits``.
            labels: ``[...]`` int64, -100 where there is none.
            inputs: For the teacher: a tensor, a tuple or list of positional or a dict of keyword arguments.

        Returns:
            Scalar.

        Raises:
            ValueError: Shapes do not fit, or a term is NaN or infinite.
        """
        student = logits_of("student", output)
        teacher = self._teach(inputs)
        check_same_shape("logits", student, teacher)
        terms = [
            Term("labels", self.beta, cross_entropy(student, labels)),
            Term("soft", self.gamma, soft_cross_entropy(student, teacher, self.temperature)),
        ]
        if self.trains_teacher:
            terms.append(Term("teacher", self.alpha, cross_entropy(teacher, labels)))
        self.terms = {term.name: term.value.detach() for term in terms}
        return weighted_sum(terms)

    def _teach(self, inputs: Any) -> Tensor:
        """The teacher's logits, with a gradient if it is trained."""
        if self.trains_teacher:
            return logits_of("teacher", call_model(self.teacher, inputs))
        return self._fixed(inputs)
