"""Scores of a model that are expensive to compute: kept in a file as soon as they are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.arguments import finite_number
from sparsecore.errors import BundleError

#: What a model is worth, higher is better.
Evaluate = Callable[[nn.Module], float]


class KnownScores:
    """Scores by (name, share pruned), kept in a file if there is one.

    Args:
        file: JSON, read if it exists and written after every new score; None keeps them in memory only.
        belongs_to: What the scores depend on; a file with other entries is refused.

    Raises:
        BundleError: The file is damaged, or belongs to something else.
    """

    def __init__(self, file: str | Path | None, belongs_to: Mapping[str, str]) -> None:
        self._path = None if file is None else Path(file)
        self._belongs_to = dict(belongs_to)
        self._scores: dict[tuple[str, float], float] = {}
        if self._path and self._path.exists():
            self._read(self._path)

    def score(self, name: str, share: float, evaluate: Callable[[], float]) -> float:
        """Return a score, known or evaluated now.

        Args:
            name: What is pruned, ``""`` for nothing.
            share: How much of it.
            evaluate: Computes the score.

        Raises:
            ValueError: It is not a finite number.
        """
        if (name, share) not in self._scores:
            value = finite_number(found := evaluate())
            if value is None:
                what = f"{name} pruned to {share:.1%}" if name else "the model as it is"
                raise ValueError(f"expected a finite number from evaluate, got {found!r} for {what}")
            self._scores[name, share] = value
            self._write()
        return self._scores[name, share]

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            scores = {(str(name), float(share)): float(value) for name, share, value in content["scores"]}
            belongs_to = content["belongs_to"]
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{path} is not the file of a sensitivity scan; delete it or name another") from error
        if belongs_to != self._belongs_to:
            others = sorted(key for key, value in self._belongs_to.items() if belongs_to.get(key) != value)
            raise BundleError(f"{path} belongs to a scan with other {', '.join(others)}; delete it or name another")
        self._scores = scores

    def _write(self) -> None:
        if self._path:
            rows = [[name, share, value] for (name, share), value in self._scores.items()]
            content = json.dumps({"belongs_to": self._belongs_to, "scores": rows}, indent=1)
            unfinished = self._path.with_name(f"{self._path.name}.unfinished")
            unfinished.write_text(content + "\n")
            unfinished.replace(self._path)  # whole or not at all, whenever the scan is stopped


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
