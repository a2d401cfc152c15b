"""Zeros: at once, along a curve, or in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsecore.prune import GradualPruner, IterativePruner, PruningSensitivity, Taylor, pruning_sensitivity
from sparsecore.train.strategies.base import Stage, State, Strategy
from sparsecore.train.strategies.options import RecipeOption

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run


class OneShotPruning(Strategy):
    """``prune()``; the zeros stay."""

    stage = Stage.ZEROS
    left_out = ("progress",)

    def begin(self, run: Run) -> None:
        inputs: dict[str, Any] = {}
        if "batches" in self.method.inputs:
            inputs = {"batches": run.calibration_inputs, "progress": False}
        if "loss" in self.method.needs:
            inputs["criterion"] = self._gradients_added_up(run)
        run.hold(self.method.bind(**self.options)(model=run.model, masks=run.masks, **inputs))

    def _gradients_added_up(self, run: Run) -> Taylor:
        taylor = Taylor(run.model, self.options.get("exclude", ()))
        for _ in run.backward_passes():
            taylor.update()
        return taylor


class GradualPruning(Strategy):
    """``GradualPruner``, whose curve goes from the first step of ``start`` to the last one before ``end``."""

    stage = Stage.ZEROS
    spans = True
    left_out = ("begin", "end")
    pruner: GradualPruner

    def begin(self, run: Run) -> None:
        if self.options.get("criterion", "magnitude") != "magnitude":
            next(run.backward_passes())
        steps = (self.end - self.start) * run.steps_per_epoch
        bound = self.method.bind(**self.options, begin=0, end=steps)
        run.release_masks()
        self.pruner = bound(model=run.model, optimizer=run.optimizer, masks=run.masks)
        run.hold(self.pruner.masks, self.pruner)

    def after_step(self, run: Run) -> None:
        self.pruner.step()

    def resume(self, run: Run, state: State) -> None:
        masks = run.masks.state_dict() if run.masks else {}
        self.begin(run)
        self.pruner.load_state_dict({**state, "masks": masks})

    def state_dict(self) -> State:
        return _without_masks(self.pruner.state_dict())


class IterativePruning(Strategy):
    """``IterativePruner``, whose rounds begin at even distances from ``start`` to ``end``."""

    stage = Stage.ZEROS
    spans = True
    own = (
        RecipeOption(
            "sensitivity",
            bool | dict[str, Any],
            False,
            "Whether to scan the layers first, by the metric; or options of `pruning_sensitivity()`.",
        ),
    )
    pruner: IterativePruner

    def begin(self, run: Run) -> None:
        self._make(run, self._scan(run))
        self._steps = 0

    def before_step(self, run: Run) -> None:
        rounds = self.options["rounds"]
        due = self.pruner.round * (self.end - self.start) * run.steps_per_epoch // rounds
        if self.pruner.round < rounds and self._steps >= due:
            next(self.pruner)
        self._steps += 1

    def finish(self, run: Run) -> None:
        for _ in self.pruner:  # rounds that had no step of their own
            pass

    def resume(self, run: Run, state: State) -> None:
        masks = run.masks.state_dict() if run.masks else {}
        self._make(run, None)
        self.pruner.load_state_dict({**state["pruner"], "masks": masks})
        self._steps = state["steps"]

    def state_dict(self) -> State:
        return {"pruner": _without_masks(self.pruner.state_dict()), "steps": self._steps}

    def _make(self, run: Run, scan: PruningSensitivity | None) -> None:
        run.release_masks()
        bound = self.method.bind(**self.options)
        self.pruner = bound(model=run.model, optimizer=run.optimizer, sensitivity=scan, masks=run.masks)
        run.hold(self.pruner.masks, self.pruner)

    def _scan(self, run: Run) -> PruningSensitivity | None:
        wanted = self.further["sensitivity"]
        if wanted is False or run.is_rehearsal:
            return None
        options: dict[str, Any] = {"file": run.file(f"pruning-sensitivity-{run.step}.json")}
        options |= {name: self.options[name] for name in ("exclude", "pattern") if name in self.options}
        options |= wanted if isinstance(wanted, Mapping) else {}
        return run.ranks.from_first(lambda: pruning_sensitivity(run.model, run.evaluate_here, **options))


def _without_masks(state: State) -> State:
    """The run keeps the masks, which strategies share."""
    return {name: value for name, value in state.items() if name != "masks"}
