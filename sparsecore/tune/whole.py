"""Times of a whole pass: is the model faster all dense, and where does the time of a pass go?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sparsecore.bench.timing import interleave
from sparsecore.graph.capture import Captured
from sparsecore.graph.compiled import CompiledModule
from sparsecore.tune.choice import Explanation, LayerChoice
from sparsecore.tune.chooser import MARGIN
from sparsecore.tune.makers import DENSE

# Where the chosen formats take at least this share of the dense time, the model may be faster in the layout that
# PyTorch's dense kernels want, which layers cannot choose one by one.
WORTH_COMPARING = 0.5
MIN_TIME_S = 1.0
MIN_ROUNDS = 9  # of models whose passes take so long that there would be fewer
PASSES = 15


def faster_of(
    compiled: CompiledModule, dense: Captured, inputs: Sequence[Tensor], explanation: Explanation
) -> tuple[CompiledModule, Explanation]:
    """The compiled model, or the dense one in channels-last if a whole pass of that is not clearly slower.

    Args:
        compiled: as chosen layer by layer.
        dense: its graph for PyTorch's kernels.
        inputs: the example.
        explanation: of the choice.
    """
    measured = [row for row in explanation if row.time_us is not None and row.dense_us is not None]
    chosen_us, dense_us = sum(row.time_us or 0.0 for row in measured), sum(row.dense_us or 0.0 for row in measured)
    if chosen_us < WORTH_COMPARING * dense_us:
        return compiled, explanation
    other = CompiledModule(dense)
    with torch.no_grad():
        runs = {name: partial(model.run_tensors, inputs) for name, model in (("chosen", compiled), (DENSE, other))}
        timings = interleave(runs, min_time_s=MIN_TIME_S, min_rounds=MIN_ROUNDS)
    times = {name: timing.q25_us for name, timing in timings.items()}
    if times["chosen"] < MARGIN * times[DENSE]:
        return compiled, explanation
    reason = (
        f"a pass of the whole model is as fast dense in channels-last: {times[DENSE]:.0f} us, "
        f"{times['chosen']:.0f} us with each layer's fastest format"
    )
    rows = tuple(
        replace(row, format=DENSE, kernel="torch", time_us=None, alone_us=None, roofline=None, error=0.0, reason=reason)
        for row in explanation
    )
    return other, replace(explanation, rows=rows)


def with_pass_times(compiled: CompiledModule, inputs: Sequence[Tensor], explanation: Explanation) -> Explanation:
    """The explanation with the layers' times in a pass, what runs between them, and the time of a pass."""
    program = compiled.program_for(inputs)
    with torch.no_grad():
        timing = interleave({"pass": partial(compiled.run_tensors, inputs)}, min_time_s=MIN_TIME_S / 2)["pass"]
    samples = program.profile(inputs, PASSES)
    times = {name: statistics.quantiles(values, n=4)[0] for name, values in samples.items()}
    names = compiled.layers_of_nodes()
    by_layer: dict[str, float] = {}
    for node in names.keys() & times.keys():
        by_layer[names[node]] = by_layer.get(names[node], 0.0) + times[node]
    rows = tuple(_in_pass(row, by_layer[row.name]) if row.name in by_layer else row for row in explanation)
    between = {node: time_us for node, time_us in times.items() if node not in names}
    return replace(explanation, rows=rows, pass_us=timing.q25_us, between_us=between)


def _in_pass(row: LayerChoice, time_us: float) -> LayerChoice:
    """The row with the layer's time in a pass."""
    if row.time_us is None:
        return replace(row, time_us=time_us)
    roofline = None if row.roofline is None else row.roofline * row.time_us / time_us
    return replace(row, time_us=time_us, roofline=roofline)
