"""Fewer values per weight: while training, or after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecore.quantize import SharedWeights, clip_binary, convert_qat, fold_qat
from sparsecore.train.strategies.base import Stage, State, Strategy

if TYPE_CHECKING:
    from sparsecore.train.compressor.run import Run


class QuantizationAwareTraining(Strategy):
    """BatchNorm folded, then ``prepare_qat()``; at last int8 layers, or plain ones where there is no kernel."""

    stage = Stage.VALUES
    spans = must_last = True
    left_out = ("progress",)

    def begin(self, run: Run) -> None:
        is_static = self.options.get("activations", "static") == "static"
        with run.changing() as changes:
            changes.fold_batchnorm()
            self._prepare(run, run.calibration_inputs if is_static else None)

    def replay_begin(self, run: Run) -> None:
        self._prepare(run, None)

    def conclude(self, run: Run) -> None:
        bits = self.options.get("bits", 8)
        has_kernel = (self.options.get("activation_bits") or bits) == 8
        with run.changing():
            convert_qat(run.model) if has_kernel else fold_qat(run.model)

    def _prepare(self, run: Run, batches: object) -> None:
        self.method.bind(**self.options)(model=run.model, batches=batches, progress=False)


class BinaryTraining(Strategy):
    """``prepare_binary()`` with ``clip_binary()``, at last plain layers with two values."""

    stage = Stage.VALUES
    spans = must_last = True

    def begin(self, run: Run) -> None:
        with run.changing():
            self.replay_begin(run)
        self._handle = clip_binary(run.model, run.optimizer)

    def replay_begin(self, run: Run) -> None:
        self.method.bind(**self.options)(model=run.model, generator=run.generator)

    def resume(self, run: Run, state: State) -> None:
        self._handle = clip_binary(run.model, run.optimizer)

    def conclude(self, run: Run) -> None:
        self._handle.remove()
        fold_qat(run.model)


class TernaryTraining(Strategy):
    """``prepare_ternary()``, at last plain layers with three values."""

    stage = Stage.VALUES
    spans = must_last = True

    def begin(self, run: Run) -> None:
        with run.changing():
            self.replay_begin(run)

    def replay_begin(self, run: Run) -> None:
        self.method.bind(**self.options)(model=run.model)

    def conclude(self, run: Run) -> None:
        with run.changing():
            fold_qat(run.model)


class WeightSharing(Strategy):
    """``share_weights()``, whose values are trained on."""

    stage = Stage.VALUES
    spans = must_last = True
    shared: SharedWeights

    def begin(self, run: Run) -> None:
        self._hold(run, self.method.bind(**self.options)(model=run.model, generator=run.generator))

    def resume(self, run: Run, state: State) -> None:
        self._hold(run, SharedWeights(run.model, state["codes"]))

    def conclude(self, run: Run) -> None:
        self._handle.remove()

    def state_dict(self) -> State:
        return {"codes": self.shared.state_dict()}

    def _hold(self, run: Run, shared: SharedWeights) -> None:
        self.shared = shared
        self._handle = shared.attach(run.optimizer)


class Int8AfterTraining(Strategy):
    """BatchNorm folded and ``quantize()``, when all training is over."""

    stage = Stage.RESULT
    left_out = ("progress",)

    def begin(self, run: Run) -> None:
        with run.changing() as changes:
            changes.fold_batchnorm()
            needs_batches = (
                self.method.fixed.get("activations") == "static"
                or self.options.get("per_channel")
                or self.options.get("bias_correction")
                or self.options.get("max_error") is not None
            )
            batches = run.calibration_inputs if needs_batches else None
            self.method.bind(**self.options)(model=run.model, batches=batches, progress=False)
