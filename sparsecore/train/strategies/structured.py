"""Channels, heads and layers that are cut out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sparsecore.prune.structured import (
    ChannelSensitivity,
    ResRep,
    channel_sensitivity,
    drop_layers,
    penalize_scales,
    split_attention,
)
from sparsecore.train.strategies.base import Stage, State, Strategy
from sparsecore.train.strategies.options import RecipeOption

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run


class ChannelPruning(Strategy):
    """``prune_channels()``."""

    stage = Stage.CHANNELS
    left_out = ("dry_run",)

    def begin(self, run: Run) -> None:
        bound = self.method.bind(**self.options)
        run.cut(lambda: bound(dry_run=True, **run.inputs_of(self.method)))


class FiltersToTarget(Strategy):
    """``prune_to_target()``, alike everywhere or by a sensitivity scan."""

    stage = Stage.CHANNELS
    left_out = ("dry_run",)
    own = (
        RecipeOption(
            "sensitivity",
            bool | dict[str, Any],
            False,
            "Whether to scan the layers first, by the metric, and to cut those that matter less further; or options "
            "of `channel_sensitivity()`. Scores are kept in the output folder.",
        ),
    )

    def begin(self, run: Run) -> None:
        bound = self.method.bind(**self.options)
        inputs = {"model": run.model, "example_inputs": run.example_inputs, **self._data(run)}
        run.cut(lambda: bound(dry_run=True, sensitivity=self._scan(run), **inputs))

    def _scan(self, run: Run) -> ChannelSensitivity | None:
        wanted = self.further["sensitivity"]
        if wanted is False or run.is_rehearsal:
            return None
        options = dict(wanted) if isinstance(wanted, Mapping) else {}
        options |= {name: self.options[name] for name in ("criterion", "exclude") if name in self.options}
        options |= {"file": run.file(f"channel-sensitivity-{run.step}.json"), **self._data(run)}
        return channel_sensitivity(run.model, run.example_inputs, run.evaluate_here, **options)

    def _data(self, run: Run) -> dict[str, Any]:
        criterion = self.options.get("criterion")
        return run.judged_on_data(criterion) if criterion in ("activation", "taylor") else {}


class NetworkSlimming(Strategy):
    """``penalize_scales()`` from ``start`` to ``end``, then ``slim()``."""

    stage = Stage.CHANNELS
    spans = True
    left_out = ("dry_run",)
    borrowed: ClassVar = {"strength": "sparsecore.prune.structured:penalize_scales"}

    def begin(self, run: Run) -> None:
        self._handle = penalize_scales(run.model, run.optimizer, **self.further)

    def resume(self, run: Run, state: State) -> None:
        self.begin(run)

    def finish(self, run: Run) -> None:
        self._handle.remove()
        bound = self.method.bind(**self.options)
        with run.changing() as changes:
            changes.cut(bound(model=run.model, example_inputs=run.example_inputs).edits)


class ResRepPruning(Strategy):
    """``ResRep`` from ``start`` to ``end``, then its merge."""

    stage = Stage.CHANNELS
    spans = True
    resrep: ResRep

    def begin(self, run: Run) -> None:
        with run.changing() as changes:
            self.replay_begin(run)
            changes.add_group(self._weights(), weight_decay=0.0, momentum=0.99)
        self._handle = self.resrep.attach(run.optimizer)

    def replay_begin(self, run: Run) -> None:
        self.resrep = self.method.bind(**self.options)(model=run.model, example_inputs=run.example_inputs)

    def after_step(self, run: Run) -> None:
        self.resrep.step()

    def finish(self, run: Run) -> None:
        self._handle.remove()
        with run.changing() as changes:
            changes.cut(self.resrep.merge())

    def replay_finish(self, run: Run) -> None:
        self.resrep.merge(threshold=0.0)  # no row is shorter than that: compactors go, channels stay

    def resume(self, run: Run, state: State) -> None:
        self.resrep.load_state_dict(state)
        self._handle = self.resrep.attach(run.optimizer)

    def state_dict(self) -> State:
        return dict(self.resrep.state_dict())

    def _weights(self) -> list[Any]:
        return [compactor.weight for compactor in self.resrep.compactors.values()]


class HeadPruning(Strategy):
    """``split_attention()``, then ``prune_heads()``."""

    stage = Stage.CHANNELS

    def begin(self, run: Run) -> None:
        bound = self.method.bind(**self.options)
        with run.changing() as changes:
            split_attention(run.model)
            changes.record({"kind": "split_attention"})
            changes.cut(bound(**run.inputs_of(self.method)))


class LayerDrop(Strategy):
    """``drop_layers()`` from ``start`` to ``end``, then ``prune_layers()``."""

    stage = Stage.LAYERS
    spans = True

    def begin(self, run: Run) -> None:
        container, probability = self.options["container"], self.options["probability"]
        drop_layers(run.model, container, probability, generator=run.generator)

    def replay_begin(self, run: Run) -> None:
        self.begin(run)

    def finish(self, run: Run) -> None:
        bound = self.method.bind(**self.options)
        with run.changing() as changes:
            changes.record({"kind": "layers", **bound(model=run.model).to_dict()})
