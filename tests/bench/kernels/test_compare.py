"""Conclusions from made-up times."""

from __future__ import annotations

import math
from typing import Any

import pytest
from made_up import candidate, cell

from sparsecore.bench.kernels.compare import (
    ALL,
    BreakEven,
    break_even,
    break_evens,
    compare,
    conclusions,
    geometric_mean,
    label,
    losses,
    means,
)
from sparsecore.bench.kernels.layers import FEW_ROWS, LINEAR, ONE_ROW, POINTWISE, Layer


def names(comparison: Any) -> dict[str, str | None]:
    found = {}
    for role in ("dense", "ours", "ours_any", "peer"):
        row = getattr(comparison, role)
        found[role] = None if row is None else label(row)
    return found


def test_the_fastest_of_every_sort() -> None:
    comparison = compare(cell(50))
    assert names(comparison) == {"dense": "torch", "ours": "panel", "ours_any": "panel", "peer": "onnxruntime int8"}
    assert comparison.over_dense == 2
    assert comparison.cold_over_dense == 1.5
    assert comparison.over_peers == 1.6
    assert comparison.share_of_peak == 0.2


def test_our_int8_counts_against_peers_only() -> None:
    made = cell(50)
    made["candidates"].append(candidate("sparsecore", "lookup int8", 10, dtype="int8", sparse=True))
    comparison = compare(made)
    assert (names(comparison)["ours"], names(comparison)["ours_any"]) == ("panel", "lookup int8")
    assert (comparison.over_dense, comparison.over_peers) == (2, 8)


def test_the_dense_layer_in_our_process_is_not_ours() -> None:
    made = cell(50)
    del made["candidates"][2:]
    comparison = compare(made)
    assert names(comparison) == {"dense": "torch", "ours": "panel", "ours_any": "panel", "peer": "torch"}
    assert comparison.over_dense == 2.2


def test_wrong_and_unfinished_candidates_do_not_count() -> None:
    made = cell(50)
    made["candidates"] += [
        candidate("openvino", "dense", 1, wrong=True),
        candidate("mkl", "csr", None, sparse=True),
    ]
    assert compare(made).over_peers == 1.6


def test_4_bit_weights_are_compared_apart() -> None:
    made = cell(50)
    assert compare(made).over_int4 is None
    made["candidates"] += [
        candidate("ggml", name, us, dtype="int4") for name, us in (("q4_0", 40), ("q4_0 packed", 20))
    ]
    comparison = compare(made)
    assert comparison.peer_int4 is not None
    assert label(comparison.peer_int4) == "ggml q4_0 packed"
    assert (comparison.over_peers, comparison.over_int4, comparison.int4_over_int4) == (1.6, 0.4, None)
    assert losses([comparison]) == []
    made["candidates"].append(candidate("sparsecore", "lookup int4", 10, dtype="int4", sparse=True))
    comparison = compare(made)
    assert (comparison.over_peers, comparison.over_int4, comparison.int4_over_int4) == (1.6, 0.4, 2)
    assert (names(comparison)["ours_any"], label(comparison.our_int4 or {})) == ("panel", "lookup int4")
    assert conclusions([made])["means"][0]["over_int4"] == pytest.approx(0.4)


def test_nothing_measured() -> None:
    comparison = compare(cell(candidates=[]))
    assert names(comparison) == dict.fromkeys(("dense", "ours", "ours_any", "peer"))
    assert comparison.over_dense is comparison.over_peers is comparison.share_of_peak is None
    empty = conclusions([cell(candidates=[])])
    assert empty["break_even"] == {"groups": {}, "layers": {}}
    assert empty["means"][0]["over_dense"] is None


def test_losses_are_the_worst_first() -> None:
    comparisons = [compare(cell(us)) for us in (100, 79, 160)]
    assert [c.over_peers for c in losses(comparisons)] == [0.5, 0.8]


def test_geometric_mean() -> None:
    assert geometric_mean([2, None, 8]) == pytest.approx(4)
    assert geometric_mean([]) is None


def test_means_leave_small_layers_out() -> None:
    layers = {
        "linear": Layer("", 64, 128, 16),
        "conv": Layer("", 64, 128, 7, 1),
        "one row": Layer("", 64, 128, 1),
        "few rows": Layer("", 64, 128, 2),
        "few columns": Layer("", 64, 128, 3, 1),
        "small K": Layer("", 64, 127, 16),
    }
    times = {"linear": 50, "conv": 25, "one row": 200, "few rows": 400, "few columns": 1, "small K": 1}
    found = means([compare(cell(times[name], layer=layer)) for name, layer in layers.items()])
    assert {mean.group: (mean.layers, mean.over_dense) for mean in found} == {
        ALL: (2, pytest.approx(math.sqrt(8))),
        LINEAR: (1, pytest.approx(2)),
        POINTWISE: (1, pytest.approx(4)),
        ONE_ROW: (1, pytest.approx(0.5)),
        FEW_ROWS: (1, pytest.approx(0.25)),
    }


@pytest.mark.parametrize(
    ("speedups", "expected", "text"),
    [
        ({0.5: 0.5, 0.7: 2.0}, BreakEven("crosses", 0.6), "60%"),
        ({0.9: 4.0, 0.5: 0.5, 0.7: 1.0}, BreakEven("crosses", 0.7), "70%"),
        ({0.5: 2.0, 0.7: 0.25, 0.8: 2.0}, BreakEven("crosses", 0.7 + 0.1 * 2 / 3), "77%"),
        ({0.5: 1.0, 0.7: 2.0}, BreakEven("below", 0.5), "<= 50%"),
        ({0.5: 0.2, 0.95: 0.9}, BreakEven("never", 0.95), "> 95%"),
        ({0.9: 3.0}, BreakEven("below", 0.9), "<= 90%"),
    ],
)
def test_break_even(speedups: dict[float, float], expected: BreakEven, text: str) -> None:
    found = break_even(speedups)
    assert found is not None
    assert found.state == expected.state
    assert found.sparsity == pytest.approx(expected.sparsity)
    assert str(found) == text


def test_break_even_of_nothing() -> None:
    assert break_even({}) is None


def test_break_even_of_groups_and_layers() -> None:
    layers = Layer("", 64, 128, 16), Layer("", 64, 127, 16)
    cells = [
        cell(us, sparsity, layer)
        for layer, times in zip(layers, ((200, 50), (400, 100)), strict=True)
        for us, sparsity in zip(times, (0.5, 0.7), strict=True)
    ]
    found = break_evens([compare(made) for made in cells])
    assert {group: place.sparsity for group, place in found.items()} == pytest.approx({ALL: 0.6, LINEAR: 0.6})
    in_json = conclusions(cells)["break_even"]
    assert in_json["groups"][LINEAR] == {"state": "crosses", "sparsity": pytest.approx(0.6)}
    assert in_json["layers"][layers[1].name] == {"state": "crosses", "sparsity": pytest.approx(0.7)}
