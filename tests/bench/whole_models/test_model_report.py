"""What a report says, as tables, a drawing and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsecore.bench.whole_models import files, plot
from sparsecore.bench.whole_models.compare import compare, label
from sparsecore.bench.whole_models.tables import markdown, notes, tables


def test_ours_over_the_best_dense_peer(model_report: dict[str, Any]) -> None:
    found = compare(model_report["cells"][1])
    assert found.dense is not None
    assert label(found.dense) == "ONNX Runtime"
    assert found.over_dense(found.ours) == 2.5
    assert [label(row) for row in found.rows] == [
        "sparsecore",
        "PyTorch eager",
        "PyTorch eager, channels last",
        "ONNX Runtime",
        "ONNX Runtime, int8",
    ]
    assert found.summary() == {
        "batch": 1,
        "threads": 1,
        "sparsity": 0.9,
        "best_dense": "ONNX Runtime",
        "ours_over_best_dense": 2.5,
        "best_int8": "ONNX Runtime, int8",
        "our_int8_over_best_int8": None,
    }


def test_nothing_was_timed(model_report: dict[str, Any]) -> None:
    for cell in model_report["cells"]:
        cell["candidates"] = []
    assert compare(model_report["cells"][0]).summary()["best_dense"] is None
    assert not plot.is_drawable(model_report)
    with pytest.raises(ValueError, match="got none"):
        plot.draw(model_report, Path("none.svg"))
    assert "my net" in markdown(model_report)


def test_tables(model_report: dict[str, Any]) -> None:
    one, two = tables(model_report)
    assert (one.title, two.title) == ("folder/my net, batch 1, 1 thread", "folder/my net, batch 1, 2 threads")
    assert one.headings == ["", "0% zeros", "over dense", "error", "90% zeros", "over dense", "error"]
    rows = {row[0]: row[1:] for row in one.rows}
    assert rows["sparsecore"] == ["2.5 ms", "0.80x", "1.0e-06", "800 us", "2.50x", "1.0e-06"]
    assert "OpenVINO" not in rows
    assert one.rich().row_count == len(rows)


def test_a_candidate_that_a_cell_lacks(model_report: dict[str, Any]) -> None:
    del model_report["cells"][0]["candidates"][3]
    rows = {row[0]: row[1:] for row in tables(model_report)[0].rows}
    assert rows["ONNX Runtime"][:3] == ["-", "-", "-"]


def test_notes(model_report: dict[str, Any]) -> None:
    pruned, more, missing, *failures = notes(model_report)
    assert (pruned, more) == ("0% zeros: nothing pruned.", "90% zeros: 3 layers pruned.")
    assert missing == "OpenVINO is not installed: pip install it"
    assert failures[0].startswith("batch 1, 90% zeros, 1 thread: OpenVINO dense: the output is wrong")


def test_files(model_report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = files.write(model_report, tmp_path / "new")
    assert [path.name for path in paths] == [f"model-folder-my-net-avx2{end}" for end in (".json", ".md", ".svg")]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == model_report
    text = paths[1].read_text(encoding="utf-8")
    assert "| sparsecore | 2.5 ms |" in text
    assert "12,345 parameters" in text
    svg = paths[2].read_text(encoding="utf-8")
    assert "800 ms" not in svg
    assert "0.8 ms, 2.50x" in svg
    files.write(model_report, tmp_path / "new")
    assert paths[2].read_text(encoding="utf-8") == svg
    paths = files.write(model_report | {"pattern": "4:16"}, tmp_path / "new")
    assert paths[0].name == "model-folder-my-net-avx2-4of16.json"
    assert "--pattern 4:16`" in paths[1].read_text(encoding="utf-8")
