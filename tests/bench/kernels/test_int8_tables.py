"""What int8 is compared with, from made-up times."""

from __future__ import annotations

import pytest
from made_up import candidate, cell, int8_cell

from sparsecore.bench.kernels.compare import compare
from sparsecore.bench.kernels.int8 import Goal, WeightRead, goals, int8_layers, weight_reads
from sparsecore.bench.kernels.layers import LAYERS, Layer

LAYER = LAYERS[0]


def test_a_layer_over_all_shares_of_zeros() -> None:
    slow = int8_cell(0.5)
    slow["candidates"][-1]["us"]["median_us"] = 30  # of OpenVINO
    (found,) = int8_layers([compare(slow), compare(int8_cell(0.9))], "avx512vnni")
    assert (found.layer["name"], found.peer, found.peer_us, found.ours_us) == (LAYER.name, "openvino int8", 46, 96)
    assert found.dense_over_peer == pytest.approx((30 / 96 * 62 / 96) ** 0.5)
    assert found.dense_over_onnx == pytest.approx(80 / 96)
    assert found.sparse_over_peer == pytest.approx({0.5: 0.75, 0.9: 1.55})
    assert found.behind == (0.5,)


def test_the_share_of_the_int8_peak_counts_zeros() -> None:
    # 10/96 of the FMA peak on half of the weights is twice as much on all of them, and int8 could do four times that.
    for share, expected in ((0.5, 10 / 96 / 2), (0.9, 10 / 96 * 2.5)):
        (found,) = int8_layers([compare(int8_cell(share))], "avx512vbmi")
        assert found.share_of_peak == pytest.approx(expected, rel=1e-3)
    assert int8_layers([compare(int8_cell(0.5))], "avx2")[0].share_of_peak is None
    assert int8_layers([compare(int8_cell(0.5, nnz=0))], "avx512vbmi")[0].share_of_peak is None


def test_peers_or_ours_alone() -> None:
    (peers,) = int8_layers([compare(cell(90))], "avx2")
    assert (peers.peer, peers.ours_us, peers.dense_over_peer, peers.sparse_over_peer) == (
        "onnxruntime int8",
        None,
        None,
        {},
    )
    assert peers.behind == (0.9,)
    ours = cell(50, candidates=[candidate("sparsecore", "int8", 25, dtype="int8")])
    (alone,) = int8_layers([compare(ours)], "avx2")
    assert (alone.peer, alone.peer_us, alone.ours_us, alone.behind) == (None, None, 25, ())
    assert goals([peers, alone]) == []
    assert int8_layers([compare(cell(50, candidates=[]))], "avx2") == []


def test_goals() -> None:
    fast = int8_cell(layer=LAYERS[1])
    fast["candidates"][4]["us"]["median_us"] = 20  # of our dense int8, ONNX Runtime takes 80
    mean, worst = goals(int8_layers([compare(int8_cell()), compare(fast)], "avx2"))
    assert mean.reached == pytest.approx((80 / 96 * 4) ** 0.5)
    assert (worst.reached, worst.where) == (pytest.approx(80 / 96), LAYER.name)
    assert [goal.is_met for goal in (mean, worst)] == [True, True]
    assert not Goal("", 0.8, 0.79).is_met


def test_bytes_read_by_layers_of_few_rows() -> None:
    layer = Layer("", 400, 1000, 2)
    made = int8_cell(layer=layer)
    made["candidates"] += [candidate("sparsecore", "csr", None, weight_bytes=1)]
    reads = weight_reads(compare(made))
    assert reads == {
        "int8": WeightRead(pytest.approx(2.0), pytest.approx(3.84)),
        "lookup int8": WeightRead(pytest.approx(2.0), pytest.approx(1.6)),
    }
    assert weight_reads(compare(int8_cell())) == {}
    assert weight_reads(compare(cell(layer=layer))) == {}  # of an older report, without bytes
