"""Reports as Markdown, for the terminal, as SVG and as files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up import candidate, cell, int8_cell

from sparsecore.bench.kernels import files, plot, tables
from sparsecore.bench.kernels.layers import Layer
from sparsecore.errors import FormatError, MissingExtraError

Report = dict[str, Any]
ONE_ROW = Layer("", 1000, 1000, 1)


def test_markdown(report: Report) -> None:
    text = tables.markdown(report)
    assert "cpu Some CPU, isa avx2, threads 2" in text
    assert "torch 2.13.0" in text
    assert "## 90% zeros, 2 threads" in text
    assert (
        "| linear 768x768, 128 | 100 us torch | 25 us panel | 4.00x | 2.00x | 40% | 3.20x onnxruntime int8 |"
    ) in text.splitlines()
    assert "| 70% | all, 16 columns and more | 2 | 0.94x | 0.75x | 9% |" in text.splitlines()
    assert "- 70% conv 3x3 37->53 @19: 80 us onnxruntime int8, ours 125 us panel (0.64x)" in text.splitlines()
    assert "- 90% conv 3x3 37->53 @19: openvino: killed by SIGKILL during load" in text.splitlines()
    assert "- linear: <= 70%" in text.splitlines()
    assert "- conv kxk: 74%" in text.splitlines()
    assert "MALLOC_TOP_PAD_" in text


def test_every_row_of_a_markdown_table_has_as_many_cells(report: Report) -> None:
    report["cells"] += [int8_cell(0.9), int8_cell(0.9, ONE_ROW)]
    all_tables = (
        *tables.layer_tables(report),
        tables.mean_table(report),
        *tables.format_tables(report),
        *tables.int8_tables(report),
    )
    assert len(all_tables) == 7
    for table in all_tables:
        assert len({line.count("|") for line in table.markdown().splitlines()}) == 1


def test_a_column_for_4_bit_weights_where_there_are_any(report: Report) -> None:
    assert "| over 4-bit |" not in tables.markdown(report)
    report["cells"][2]["candidates"] += [
        candidate("ggml", "q4_0", 20, dtype="int4"),
        candidate("sparsecore", "lookup int4", 10, dtype="int4", sparse=True),
    ]
    lines = tables.markdown(report).splitlines()
    assert any(line.endswith("| 3.20x onnxruntime int8 | 0.80x ggml q4_0 | 2.00x |") for line in lines)
    assert any(line.endswith("| 2.00x onnxruntime int8 | - | - |") for line in lines)
    (mean,) = (line for line in lines if line.startswith("| 90% | all, 16 columns and more |"))
    assert mean.endswith("| 0.80x | 2.00x |")
    test_every_row_of_a_markdown_table_has_as_many_cells(report)


def test_which_format_wins(report: Report) -> None:
    lines = tables.markdown(report).splitlines()
    assert "## Which format wins, 2 threads" in lines
    assert "| linear 768x768, 128 | panel 1.11x / 0.89x | panel 4.00x / 3.20x |" in lines
    report["cells"] = [int8_cell(0.5), cell(25, 0.9, candidates=[])]
    of_all, of_float32 = tables.format_tables(report)
    assert of_all.rows == [["linear 768x768, 128", "lookup int8 2.50x / 1.55x", "-"]]
    assert of_float32.rows == [["linear 768x768, 128", "panel 2.00x / 1.24x", "-"]]


def test_int8(report: Report) -> None:
    report["cells"] = [int8_cell(0.5), int8_cell(0.9), int8_cell(0.9, ONE_ROW)]
    (table, reads) = tables.int8_tables(report)
    assert table.headings == [
        *("layer", "best peer", "ours", "over it", "over ONNX Runtime"),
        *("sparse, 50%", "sparse, 90%", "slower at"),
    ]
    peer, ours = "62 us openvino int8", "96 us"
    assert table.rows == [
        ["linear 768x768, 128", peer, ours, "0.65x", "0.83x", "1.55x", "1.55x", "-"],
        ["linear 1000x1000, 1", peer, ours, "0.65x", "0.83x", "-", "1.55x", "-"],
        ["geometric mean", "", "", "0.65x", "0.83x", "1.55x", "1.55x", ""],
        ["worst", "", "", "0.65x", "0.83x", "1.55x", "1.55x", ""],
    ]
    assert reads.headings == ["layer", "zeros", "int8", "lookup int8"]
    assert reads.rows == [["linear 1000x1000, 1", "90%", "2.0 (1.5)", "2.0 (0.6)"]]
    assert tables.sections(report)[0] == (
        "Goals of int8",
        [
            "dense int8 over ONNX Runtime's, geometric mean: 0.83x, goal 0.95x: missed",
            "dense int8 over ONNX Runtime's, worst layer: 0.83x (linear 768x768, 128), goal 0.80x: met",
        ],
    )


def test_the_int8_peak_of_machines_with_vnni_only(report: Report) -> None:
    report["cells"] = [int8_cell(0.5)]
    assert "int8 peak" not in tables.markdown(report)
    report["machine"]["isa"] = "avx512vnni"
    heading = "of int8 peak (4x FMA)"
    (table,) = tables.int8_tables(report)
    assert table.rows[0][list(table.headings).index(heading)] == "5%"
    assert "The int8 peak is 4 times the float32 multiply-add peak" in tables.markdown(report)


def test_peers_that_are_faster_than_all_of_ours(report: Report) -> None:
    (table,) = tables.int8_tables(report)
    assert [(row[0], row[-1]) for row in table.rows[:2]] == [
        ("linear 768x768, 128", "70%"),
        ("conv 3x3 37->53 @19", "70%"),
    ]


def test_a_layer_that_nobody_computed(report: Report) -> None:
    report["cells"] = [cell(candidates=[])]
    assert "| linear 768x768, 128 | - | - | - | - | - | - |" in tables.markdown(report)
    assert tables.sections(report) == []
    assert tables.format_tables(report) == tables.int8_tables(report) == []


def test_terminal(report: Report) -> None:
    console = pytest.importorskip("rich.console").Console(width=200, record=True, file=io.StringIO())
    for table in tables.layer_tables(report):
        console.print(table.rich())
    text = console.export_text()
    assert "70% zeros, 2 threads" in text
    assert "0.64x onnxruntime int8" in text


def test_svg(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        plot.draw([report, report], path)
    root = ElementTree.parse(paths[0]).getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"linear, from <= 70%", "conv kxk, from 74%", "Some CPU, avx2, 2 threads", "90%", "1x"} <= texts
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_svg_of_nothing_is_refused(report: Report, tmp_path: Path) -> None:
    report["cells"] = [cell(candidates=[])]
    with pytest.raises(ValueError, match="got none"):
        plot.draw([report], tmp_path / "a.svg")


def test_svg_without_matplotlib(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"sparsecore\[bench\]"):
        plot.draw([report], tmp_path / "a.svg")


def test_files(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = [path.name for path in files.write(report, tmp_path / "new")]
    assert names == [f"kernels-avx2-2-threads{ending}" for ending in (".json", ".md", ".svg", "-formats.svg")]
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(names)
    assert files.read(tmp_path / "new" / names[0]) == [report]
    assert files.name_of(report | {"mask": "4x1"}) == "kernels-avx2-2-threads-4x1"
    assert files.name_of(report | {"mask": "4:16"}) == "kernels-avx2-2-threads-4of16"

    report["cells"] = []
    assert [path.suffix for path in files.write(report, tmp_path / "empty")] == [".json", ".md"]


def test_a_file_may_hold_several(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "reports.json"
    path.write_text(json.dumps({"reports": [report, report]}), encoding="utf-8")
    assert files.read(path) == [report, report]


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"reports": []}', '{"reports": [{"schema": 0}]}', '{"schema": 2}']
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"expected a report of sparsecore kernels bench.*other\.json"):
        files.read(path)
