"""Scores of a model that are expensive to compute: kept in a file as soon as they are known."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecore.atomic import replacing, require_place
from sparsecore.errors import BundleError

#: What a model is worth, higher is better: a number of Python's or NumPy's, or a tensor of one.
Evaluate = Callable[[nn.Module], float]


def require_evaluate(evaluate: Evaluate) -> None:
    """Raise TypeError for what cannot be called with a model."""
    if not callable(evaluate):
        raise TypeError(
            f"expected evaluate as a function that takes the model and returns a number, got {type(evaluate).__name__}"
        )


def score_of(evaluate: Evaluate, model: nn.Module, what: str) -> float:
    """Evaluate a model.

    Args:
        evaluate: The user's function.
        model: Its argument.
        what: The state of the model, for errors.

    Raises:
        ValueError: The result is not one finite number.
    """
    value: Any = evaluate(model)
    number = finite_number(value)
    if number is None:
        raise ValueError(f"expected a finite number from evaluate, got {value!r} for {what}")
    return number


def finite_number(value: Any) -> float | None:
    """Return a finite number of Python's or NumPy's, or of a tensor or array of one; None for anything else.

    Example:
        >>> finite_number(torch.tensor(2)), finite_number(float("nan")), finite_number("2")
        (2.0, None, None)
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    elif isinstance(value, np.integer | np.floating):
        value = float(value)
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


class KnownScores:
    """Scores by (name, share pruned), kept in a file if there is one.

    Args:
        file: JSON, read if it exists and written after every new score; None keeps them in memory only.
        belongs_to: What the scores depend on; a file with other entries is refused.

    Raises:
        BundleError: The file is damaged, belongs to something else, or is a folder.
        OSError: It cannot be written.
    """

    def __init__(self, file: str | Path | None, belongs_to: Mapping[str, str]) -> None:
        self._path = None if file is None else Path(file)
        self._belongs_to = dict(belongs_to)
        self._scores: dict[tuple[str, float], float] = {}
        if self._path and self._path.exists():
            self._read(self._path)
        elif self._path:
            require_place(self._path)

    def score(self, name: str, share: float, evaluate: Evaluate, model: nn.Module) -> float:
        """Return a score, known or evaluated now.

        Args:
            name: What is pruned, ``""`` for nothing.
            share: How much of it.
            evaluate: Computes the score.
            model: What is evaluated, pruned.

        Raises:
            ValueError: It is not a finite number.
        """
        if (name, share) not in self._scores:
            what = f"{name} pruned to {share:.1%}" if name else "the model as it is"
            self._scores[name, share] = score_of(evaluate, model, what)
            self._write()
        return self._scores[name, share]

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = {_key(name, share): _finite(value) for name, share, value in content["scores"]}
            belongs_to = dict(content["belongs_to"])
        except (ValueError, TypeError, KeyError, IsADirectoryError) as error:
            raise BundleError(
                f"{path} is not the file of a sensitivity scan, or damaged; delete it or name another"
            ) from error
        if belongs_to != self._belongs_to:
            others = sorted(key for key, value in self._belongs_to.items() if belongs_to.get(key) != value)
            raise BundleError(f"{path} belongs to a scan with other {', '.join(others)}; delete it or name another")
        self._scores = scores

    def _write(self) -> None:
        if self._path:
            rows = [[name, share, value] for (name, share), value in self._scores.items()]
            content = json.dumps({"belongs_to": self._belongs_to, "scores": rows}, indent=1)
            with replacing(self._path) as new:  # whole or not at all, whenever the scan is stopped
                new.write_text(content + "\n", encoding="utf-8")


def _key(name: Any, share: Any) -> tuple[str, float]:
    if not isinstance(name, str) or not 0 <= _finite(share) < 1:
        raise ValueError(f"expected a name and a share in [0, 1), got {name!r} and {share!r}")
    return name, float(share)


def _finite(value: Any) -> float:
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors' names, types, shapes and values, in their order."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        value = tensor.detach().contiguous().cpu()
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def name_of(criterion: Any) -> str:
    """Return the name by which a file of scores knows a criterion."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__qualname__", type(criterion).__qualname__)
