"""Which format wins, from made-up times."""

from __future__ import annotations

import pytest
from made_up import candidate, cell, int8_cell

from sparsecore.bench.kernels.compare import compare
from sparsecore.bench.kernels.formats import Win, winners
from sparsecore.bench.kernels.layers import Layer

ROW, ROWS, CONV = Layer("", 64, 128, 1), Layer("", 64, 128, 16), Layer("", 64, 128, 7, 1)


def test_linear_layers_by_rows_then_convolutions() -> None:
    comparisons = [compare(cell(50, share, layer)) for share in (0.9, 0.5) for layer in (ROWS, CONV, ROW)]
    linear, convolutions = winners(comparisons)
    assert (linear.title, [wins.layer["name"] for wins in linear.layers]) == ("linear layers", [ROW.name, ROWS.name])
    assert (convolutions.title, [wins.layer["name"] for wins in convolutions.layers]) == ("convolutions", [CONV.name])
    assert linear.sparsities == [0.5, 0.9]
    assert linear.layers[0].fastest.keys() == {0.5, 0.9}


def test_the_fastest_of_all_and_the_fastest_in_float32() -> None:
    ((wins,),) = [group.layers for group in winners([compare(int8_cell(0.9))])]
    assert wins.fastest == {0.9: Win("lookup int8", 2.5, pytest.approx(1.55))}
    assert wins.fastest_float32 == {0.9: Win("panel", 2.0, pytest.approx(1.24))}


def test_without_int8_of_peers() -> None:
    made = cell(50)
    made["candidates"] = [row for row in made["candidates"] if row["dtype"] != "int8"]
    made["candidates"].append(candidate("sparsecore", "int8", 25, dtype="int8"))
    (group,) = winners([compare(made)])
    assert group.layers[0].fastest == {0.9: Win("int8", 4.0, None)}


def test_layers_without_ours_are_left_out() -> None:
    made = cell(50)
    del made["candidates"][1]
    assert winners([compare(made)]) == winners([]) == []
