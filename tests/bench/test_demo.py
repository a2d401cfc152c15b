"""The demo command around a fake report, and, slowly, the demo itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

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
