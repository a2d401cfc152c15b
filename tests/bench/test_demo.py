"""The demo command around a fake report, and, slowly, the demo itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from sparsecore.bench.demo import run_demo
from sparsecore.bench.demo_digits import DigitsPlan, run_digits
from sparsecore.bench.demo_resnet import ResNetPlan, run_resnet
from sparsecore.bench.progress import silent
from sparsecore.cli import cli


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Replace the demo by one that notes its arguments and returns the fake report."""
    calls: list[tuple[Any, ...]] = []

    def run_demo(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return report

    monkeypatch.setattr("sparsecore.bench.demo.run_demo", run_demo)
    return calls


def test_prints_both_tables_and_where_the_report_is(
    demo: list[tuple[Any, ...]], report: dict[str, Any], tmp_path: Path
) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        cli, ["demo", "--out", str(tmp_path), "--threads", "2", "--seed", "7"]
    )
    assert result.exit_code == 0, result.output
    assert demo[0][:3] == (tmp_path, 2, 7)
    for version in (*report["digits"]["versions"], *report["resnet50"]["versions"]):
        assert version["name"] in result.stdout
    assert "layer1.0.conv1" in result.stdout
    assert "3.2e-06" in result.stdout
    assert str(tmp_path / "report.html") in result.stdout


@pytest.mark.usefixtures("demo")
def test_json_on_stdout_is_nothing_but_json(report: dict[str, Any]) -> None:
    result = CliRunner().invoke(cli, ["demo", "--json", "-"])
    assert json.loads(result.stdout) == report


def test_digits_section_of_a_short_plan(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    plan = DigitsPlan(train_epochs=1, prune_epochs=1, finetune_epochs=1, batches=(1,), min_time_s=0.01)
    section = run_digits(tmp_path, seed=0, progress=silent, plan=plan)
    assert section["sparsity"] == pytest.approx(0.9, abs=1e-3)
    names = [version["name"] for version in section["versions"]]
    assert names == [
        "dense",
        "dense, channels last",
        "masked dense",
        "CSR",
        "int8",
        "lookup int8",
        "converted, batch 1",
    ]
    versions = dict(zip(names, section["versions"], strict=True))
    masked_accuracy = versions["masked dense"]["accuracy"]
    assert versions["CSR"]["accuracy"] == pytest.approx(masked_accuracy, abs=0.01)
    assert versions["lookup int8"]["accuracy"] == versions["int8"]["accuracy"]
    assert versions["lookup int8"]["disk_bytes"] < versions["CSR"]["disk_bytes"]
    assert versions["CSR"]["disk_bytes"] < versions["dense"]["disk_bytes"]
    for version in section["versions"]:
        assert (tmp_path / version["file"]).stat().st_size == version["disk_bytes"]
    json.dumps(section)


def test_resnet_section_of_a_small_image() -> None:
    plan = ResNetPlan(image_size=32, min_time_s=0, min_rounds=1)
    section = run_resnet(seed=0, progress=silent, plan=plan)
    assert section["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert section["max_relative_difference"] < 1e-3
    assert len(section["layers"]) == 54
    assert section["layers"][0]["format"] in ("dense", "4x1", "8x1")  # without zeros
    json.dumps(section)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    report = run_demo(tmp_path, progress=silent)
    assert report["digits"]["versions"][0]["accuracy"] >= 0.97
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
