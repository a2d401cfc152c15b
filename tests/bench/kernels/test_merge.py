"""Medians of several runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from click.testing import CliRunner
from made_up import candidate, cell

from sparsecore.bench.kernels import files
from sparsecore.bench.kernels.layers import LAYERS
from sparsecore.bench.kernels.merge import merge
from sparsecore.cli import cli


def run_of(report: dict[str, Any], cells: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(report) | {"cells": cells} | changes


def time_of(cell: dict[str, Any], name: str) -> Any:
    return next(row["us"]["median_us"] for row in cell["candidates"] if row["name"] == name and "us" in row)


def test_medians_over_the_runs_that_have_a_cell(report: dict[str, Any]) -> None:
    runs = [run_of(report, [cell(us), cell(us / 2, 0.9, LAYERS[-1])], complete=us != 50) for us in (50, 90, 40)]
    runs.append(run_of(report, [cell(70, 0.5)]))
    merged = merge(runs)
    assert [(made["sparsity"], time_of(made, "panel")) for made in merged["cells"]] == [(0.5, 70), (0.9, 50), (0.9, 25)]
    panel = next(row for row in merged["cells"][1]["candidates"] if row["name"] == "panel")
    assert panel["us"]["rounds"] == 3
    assert panel["first_us"]["median_us"] == 100
    assert panel["share_of_peak"] == 0.2
    assert (merged["runs"], merged["rounds"], merged["complete"]) == (4, 28, False)
    assert merged["means"][0]["sparsity"] == 0.5
    assert merge([merged, runs[0]])["runs"] == 5
    assert "28 rounds in 4 runs, medians over the runs" in files.tables.markdown(merged)
    assert "7 rounds. " in files.tables.markdown(runs[0])


def test_what_was_wrong_once_stays_wrong_and_what_did_not_finish_is_left_out(report: dict[str, Any]) -> None:
    wrong = cell(50, failures=["mkl: gone"])
    wrong["candidates"][1]["wrong"] = True
    wrong["candidates"].append(candidate("mkl", "csr", None))
    right = cell(70)
    right["candidates"].append(candidate("mkl", "csr", 30.0))
    (made,) = merge([run_of(report, [wrong]), run_of(report, [right])])["cells"]
    assert next(row["wrong"] for row in made["candidates"] if row["name"] == "panel")
    assert time_of(made, "csr") == 30
    assert made["failures"] == ["mkl: gone"]


@pytest.mark.parametrize("change", [{"mask": "random"}, {"machine": {"threads": 1}}, {"machine": {"cpu": "Other"}}])
def test_runs_that_do_not_belong_together(report: dict[str, Any], change: dict[str, Any]) -> None:
    machine = report["machine"] | change.get("machine", {})
    with pytest.raises(ValueError, match="expected reports of one processor"):
        merge([report, report | change | {"machine": machine}])
    with pytest.raises(ValueError, match="got none"):
        merge([])


def test_command(report: dict[str, Any], tmp_path: Path) -> None:
    files.write(report, tmp_path)
    (path,) = tmp_path.glob("*.json")
    result = CliRunner().invoke(cli, ["kernels", "merge", str(path), str(path), "--out", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    (merged,) = files.read(tmp_path / "both" / path.name)
    assert merged["runs"] == 2
    other = tmp_path / "other.json"
    other.write_text(path.read_text().replace('"magnitude"', '"random"'))
    result = CliRunner().invoke(cli, ["kernels", "merge", str(path), str(other), "--out", str(tmp_path / "no")])
    assert result.exit_code == 2
    assert "expected reports of one processor" in result.stderr
    assert not (tmp_path / "no").exists()
