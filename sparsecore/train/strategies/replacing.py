"""Layers replaced by cheaper pairs, which are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecore.train.replace import Replacements
from sparsecore.train.strategies.base import Stage, Strategy

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run


class Separable(Strategy):
    """``replace_by_separable()``."""

    stage = Stage.LAYERS

    def begin(self, run: Run) -> None:
        with run.changing() as changes:
            self.method.bind(**self.options)(model=run.model)
            changes.record({"kind": "separable", "options": dict(self.options)})


class LowRank(Strategy):
    """``replace_by_low_rank()``."""

    stage = Stage.LAYERS

    def begin(self, run: Run) -> None:
        with run.changing() as changes:
            replaced: Replacements = self.method.bind(**self.options)(model=run.model)
            ranks = {row.layer: row.rank for row in replaced if row.rank}
            changes.record({"kind": "low_rank", "ranks": ranks})
