"""The drawing of which format wins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up import candidate, cell, int8_cell

from sparsecore.bench.kernels import grid
from sparsecore.bench.kernels.layers import Layer
from sparsecore.errors import MissingExtraError

Report = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


def texts_in(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def test_svg(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report["cells"].append(int8_cell(0.9, Layer("", 4096, 4096, 1)))
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        grid.draw([report], path)
    texts = texts_in(paths[0])
    assert {
        "linear layers, Some CPU, avx2, 2 threads",
        "convolutions, Some CPU, avx2, 2 threads",
        "768x768, M = 128",
        "4096x4096, M = 1",
        "3x3 37->53 @19",
        *("70%", "90%", "0.89", "3.20", "1.55"),
        *("panel", "lookup int8"),
    } <= set(texts)
    assert "int8" not in texts  # it wins nowhere
    assert paths[0].read_bytes() == paths[1].read_bytes()
    root = ElementTree.parse(paths[0]).getroot()
    assert 990 <= float(root.get("width", "").removesuffix("pt")) * 96 / 72 <= 1010


def test_a_cell_where_a_peer_is_faster_is_framed(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    color = grid.COLORS["panel"]
    fills = []
    for us in (50, 400):
        report["cells"] = [cell(us)]
        grid.draw([report], tmp_path / "a.svg")
        # One fill is that of the legend.
        fills.append((tmp_path / "a.svg").read_text(encoding="utf-8").count(f"fill: {color}; stroke: {color}"))
    assert fills == [2, 1]


def test_over_float32_where_no_int8_was_measured(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = cell(50)
    del made["candidates"][-1]
    made["candidates"][1]["name"] = "a new format"
    report["cells"] = [made, cell(50, 0.95, candidates=[candidate("sparsecore", "csr", 10, sparse=True)])]
    grid.draw([report], tmp_path / "a.svg")
    assert {"2.00 f", "-", "a new format", "csr"} <= set(texts_in(tmp_path / "a.svg"))


def test_reports_below_each_other(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    convolutions = [made for made in report["cells"] if made["layer"]["kernel"]]
    empty = report | {"cells": [cell(candidates=[])]}
    grid.draw([report, empty, report | {"cells": convolutions}], tmp_path / "a.svg")
    titles = [text for text in texts_in(tmp_path / "a.svg") if "Some CPU" in text]
    assert [title.partition(",")[0] for title in titles] == ["linear layers", "convolutions", "convolutions"]


def test_nothing_is_refused(report: Report, tmp_path: Path) -> None:
    report["cells"] = [cell(candidates=[candidate("sparsecore", "csr", 10, sparse=True)])]
    assert not grid.is_drawable(report)
    with pytest.raises(ValueError, match="got none"):
        grid.draw([report], tmp_path / "a.svg")


def test_without_matplotlib(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"sparsecore\[bench\]"):
        grid.draw([report], tmp_path / "a.svg")
