"""What layers inside of a model give, by their names, and losses between those of a student and a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecore.errors import require_module
from sparsecore.lookup import close_matches
from sparsecore.train.terms import check_same_shape, check_weights

Features = Mapping[str, Tensor]


class LayerOutputs:
    """Outputs of chosen layers in the latest call of a model, by hooks; the model computes what it did before.

    Args:
        what: The model's part, such as ``"student"``, for errors.
        model: Any module.
        layers: Names in ``model.named_modules()``.

    Raises:
        ValueError: The model has no layer of that name.
    """

    def __init__(self, what: str, model: nn.Module, layers: Iterable[str]) -> None:
        require_module(model, f"the {what}")
        self._what = what
        self._latest: dict[str, Tensor] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        names = tuple(dict.fromkeys(layers))
        for name in names:
            if name not in modules:
                raise ValueError(f"the {what} has no layer {name!r}{close_matches(name, modules)}")
        self._names = names
        self._handles = [modules[name].register_forward_hook(self._recorder(name, modules[name])) for name in names]

    def take(self) -> Features:
        """Return the outputs by name, and forget them.

        Raises:
            ValueError: A layer has not run since, or did not give a tensor.
        """
        missing = [name for name in self._names if name not in self._latest]
        if missing:
            raise ValueError(f"{self._what}: layer {missing[0]!r} has not run; call the {self._what} first")
        latest, self._latest = self._latest, {}
        return latest

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._latest.clear()

    def _recorder(self, name: str, layer: nn.Module) -> Any:
        def record(module: nn.Module, args: object, output: Any) -> None:
            if module is not layer:  # a copy of the model has copies of the hooks
                return
            first = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(first, Tensor):
                raise ValueError(f"{self._what}: expected a tensor from layer {name!r}, got {type(output).__name__}")
            self._latest[name] = first.clone()  # a layer behind it may work in place

        return record


class FeatureLoss(Protocol):
    """A term that compares layers of a student with layers of a teacher."""

    student_layers: Sequence[str]
    teacher_layers: Sequence[str]
    weight: float

    def __call__(self, student: Features, teacher: Features) -> Tensor:
        """Return a scalar from the outputs of the layers, by name."""


class L2Features:
    """Mean squared difference of a student's layer and a teacher's.

    Args:
        student: Name of the student's layer.
        teacher: Name of the teacher's; None for the same name.
        weight: Factor of the term in the loss.
        adapter: Brings the student's features into the teacher's shape, such as ``nn.Conv2d(64, 256, 1)``; it is
            trained with the student and dropped afterwards.

    Raises:
        ValueError: The weight is negative; when called: the shapes differ.

    Reference:
        Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, eq. 3; here the mean over all entries.
    """

    def __init__(
        self, student: str, teacher: str | None = None, *, weight: float = 1.0, adapter: nn.Module | None = None
    ) -> None:
        check_weights(weight=weight)
        self.student_layers, self.teacher_layers = (student,), (student if teacher is None else teacher,)
        self.weight, self.adapter = weight, adapter

    def __call__(self, student: Features, teacher: Features) -> Tensor:
        ours, theirs = student[self.student_layers[0]], teacher[self.teacher_layers[0]]
        adapted = ours if self.adapter is None else self.adapter(ours)
        check_same_shape(
            f"features {self.student_layers[0]!r} and {self.teacher_layers[0]!r} (adapter= changes the student's)",
            adapted,
            theirs,
        )
        return F.mse_loss(adapted, theirs)


class FSPFeatures:
    """Squared difference of the flow between two layers, in a student and in a teacher (FSP).

    Args:
        student: Names of the first and the second layer of the student.
        teacher: Names of those of the teacher; None for the same names. The channels are to be as many as the
            student's, the images may be of another size.
        weight: Factor of the term in the loss.

    Raises:
        ValueError: The weight is negative, or there are not two names; when called: the channels differ.

    Reference:
        Yim et al., A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning,
        CVPR 2017, eq. 1-2.
    """

    def __init__(
        self, student: tuple[str, str], teacher: tuple[str, str] | None = None, *, weight: float = 1.0
    ) -> None:
        check_weights(weight=weight)
        teacher = student if teacher is None else teacher
        for names in (student, teacher):
            if isinstance(names, str) or len(names) != 2:
                raise ValueError(f"expected the names of two layers, got {names!r}")
        self.student_layers, self.teacher_layers, self.weight = tuple(student), tuple(teacher), weight

    def __call__(self, student: Features, teacher: Features) -> Tensor:
        ours = fsp_matrix(*(student[name] for name in self.student_layers))
        theirs = fsp_matrix(*(teacher[name] for name in self.teacher_layers))
        names = f"{' to '.join(self.student_layers)} and {' to '.join(self.teacher_layers)}"
        check_same_shape(f"FSP matrices [B, first channels, second channels] of {names}", ours, theirs)
        return (ours - theirs).square().sum((1, 2)).mean()


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products of the channels of two layers, over the positions of an image.

    Args:
        first: ``[B, C1, *size]``; the larger images are brought to the smaller size by maximum pooling.
        second: ``[B, C2, *size]``.

    Returns:
        ``[B, C1, C2]``: sum over the positions of first * second, divided by their number.

    Raises:
        ValueError: There are no positions, or different numbers of images or dimensions.

    Example:
        >>> fsp_matrix(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)).tolist()
        [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
    """
    if not 3 <= first.dim() == second.dim() <= 5 or len(first) != len(second):
        raise ValueError(
            f"expected features [B, C, ...] of one number of images and dimensions, got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    size = [min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True)]
    first, second = (_pooled(features, size).flatten(2) for features in (first, second))
    return torch.einsum("bip,bjp->bij", first, second) / first.shape[2]


def _pooled(features: Tensor, size: list[int]) -> Tensor:
    if list(features.shape[2:]) == size:
        return features
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[len(size) - 1]
    pooled: Tensor = pool(features, size)
    return pooled
