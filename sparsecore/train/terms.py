"""What the losses of training with a teacher are made of: terms, checked inputs, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.arguments import is_real
from sparsecore.errors import require_module

NO_LABEL = -100  # as in PyTorch


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy H(y, p), the mean over the samples that have a label; 0 if none has.

    Args:
        logits: ``[..., C]`` float.
        labels: ``[...]`` int64 in [0, C), -100 where there is none.

    Raises:
        ValueError: the shapes do not fit, or a label is none of the classes.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"expected labels as a tensor, got {type(labels).__name__}")
    if labels.shape != logits.shape[:-1] or logits.dim() < 2:
        raise ValueError(
            f"expected logits [..., classes] and labels [...], got {list(logits.shape)} and {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected labels as integers, the numbers of classes, got {labels.dtype}")
    classes = logits.shape[-1]
    is_wrong = (labels != NO_LABEL) & ((labels < 0) | (labels >= classes))
    if is_wrong.any():
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, or {NO_LABEL} for none, got {int(labels[is_wrong][0])}"
        )
    total = F.cross_entropy(at_least_float32(logits).flatten(0, -2), labels.long().flatten(), reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp_min(1)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the teacher's probabilities times T^2, the mean over the batch.

    At a higher temperature both become softer and their gradient falls as 1/T^2; the factor makes up for it. The
    gradient goes to the student alone.

    Args:
        student: ``[..., C]`` float, logits.
        teacher: logits in the same shape.
        temperature: T, what the logits are divided by.

    Returns:
        Scalar ``T^2 * mean(sum_c t_c * log(t_c / s_c))`` with t = softmax(teacher / T), s = softmax(student / T).

    Raises:
        ValueError: the shapes differ, or the temperature is not above zero.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> soft_loss(logits, logits, temperature=4.0).item()
        0.0

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015, sec. 2.
    """
    check_temperature(temperature)
    check_same_shape("logits", student, teacher)
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy H(z, p) with the teacher's probabilities as targets, times T^2; arguments as `soft_loss`.

    It is the divergence plus the entropy of the teacher, which has no gradient.
    """
    log_teacher = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=-1)
    entropy = -(log_teacher.exp() * log_teacher).sum(-1).mean()
    return soft_loss(student, teacher, temperature) + temperature**2 * entropy


class Term(NamedTuple):
    """One part of a loss: its name, its weight and its value, a scalar."""

    name: str
    weight: float
    value: Tensor


def weighted_sum(terms: Sequence[Term]) -> Tensor:
    """Add up weight * value; a term of weight 0 counts nothing, whatever its value.

    Raises:
        ValueError: a term is NaN or infinite; the message says which, and nothing has been trained with it.
    """
    kept = [term for term in terms if term.weight]
    if not kept:
        raise ValueError(f"expected a weight above zero for {' or '.join(term.name for term in terms)}, all are 0")
    total = torch.stack([term.weight * term.value for term in kept]).sum()
    if not total.isfinite():
        bad = ", ".join(f"{term.name}: {term.value.item()}" for term in kept if not term.value.isfinite())
        raise ValueError(
            f"the loss is not finite ({bad or f'the sum: {total.item()}'}); look for NaN in the inputs and the logits, "
            "or lower the learning rate"
        )
    return total


def logits_of(what: str, output: Any) -> Tensor:
    """Return the logits of an output: the tensor, or its attribute ``logits`` as transformers have it."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ValueError(f"expected logits from the {what}, as a tensor or as .logits, got {type(output).__name__}")
    return logits


def check_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError if student and teacher do not have the same shape; broadcasting would hide it."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected {what} of student and teacher in one shape, got {list(student.shape)} and {list(teacher.shape)}"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is finite and above zero."""
    if not is_real(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"expected a temperature above zero, got {temperature!r}")


def check_weights(**weights: float) -> None:
    """Raise ValueError if a weight is negative, NaN or infinite."""
    for name, weight in weights.items():
        if not is_real(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"expected {name} of at least 0, got {weight!r}")


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError if the two share parameters: training one would change the other."""
    require_module(student, "the student")
    require_module(teacher, "the teacher")
    own = {id(parameter) for parameter in trainable(student)}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in own]
    if shared:
        raise ValueError(
            f"student and teacher share {shared[0]} and {len(shared) - 1} other parameters; start the student from "
            "copy.deepcopy(teacher)"
        )


def trainable(*models: nn.Module) -> Iterable[nn.Parameter]:
    """Yield the parameters of the models that take a gradient."""
    return (parameter for model in models for parameter in model.parameters() if parameter.requires_grad)


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
