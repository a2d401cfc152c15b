"""The command line: what it prints, where its JSON goes, and errors in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner, Result
from torch import nn

from sparsecore import __main__
from sparsecore.cli import cli
from sparsecore.errors import FormatError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="sparsecore")


def test_info_lists_every_operation() -> None:
    result = run("info")
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", "--json", "-").stdout)
    for operation in facts["operations"]:
        assert operation in result.stdout
    assert "in use" in result.stdout


def test_info_json_on_stdout_is_nothing_but_json() -> None:
    result = run("info", "--json", "-")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {"machine", "build", "cuda_available", "operations"}


def test_info_json_in_a_file_keeps_the_table(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    result = run("info", "--json", str(path))
    assert "in use" in result.stdout
    assert "operations" in json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["info", "--nonsense"],
        ["demo", "--threads", "0"],
        ["demo", "--threads", "many"],
        ["demo", "--seed", "-1"],
        ["demo", "--out", __file__],
        ["info", "--json", "/no/such/folder/info.json"],
        ["bench", "no_such_module:f", "--input", "1,3"],
        ["bench", "sparsecore:no_such_function", "--input", "1,3"],
        ["bench", "sparsecore", "--input", "1,3"],
        ["bench", ":", "--input", "1,3"],
        ["bench", "sparsecore.bench.models:digits_net"],
        ["bench", "sparsecore.bench.models:digits_net", "--input", "1,x"],
        ["bench", "sparsecore.bench.models:digits_net", "--input", "1,0"],
        ["bench", "sparsecore.bench.models:digits_net", "--input", "1,8", "--sparsity", "1"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)


@pytest.mark.parametrize("error", [FormatError("expected int8,\ngot float32"), OSError("disk full"), click.Abort()])
def test_expected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("sparsecore.bench.probes.installation", fail)
    result = run("info")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: .+\n", result.stderr)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecore.bench.probes.installation", lambda: {}["bug"])
    assert isinstance(run("info").exception, KeyError)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["demo", "--help"], ["--version"]])
def test_help_and_version(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "sparsecore" in result.stdout


def test_bench_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def benchmark(model: Any, x: Any, sparsities: Any, **options: Any) -> dict[str, Any]:
        seen.update(options, model=type(model), shape=tuple(x.shape), sparsities=sparsities)
        timing = {"batch": 2, "median_us": 5.0, "speedup": 1.0}
        return {"baseline": "eager", "versions": [{"name": "eager", "timings": [timing]}]}

    seen: dict[str, Any] = {}
    monkeypatch.setattr("sparsecore.bench.sweep.benchmark", benchmark)
    result = run("bench", "torch.nn:ReLU", "--input", "2,3", "--sparsity", "0.5", "--exclude", "stem.*")
    assert result.exit_code == 0, result.output
    assert "eager" in result.stdout
    assert (seen["model"], seen["shape"], seen["sparsities"]) == (nn.ReLU, (2, 3), (0.5,))
    assert seen["exclude"] == ("stem.*",)


def test_no_command_shows_the_help() -> None:
    assert "Usage: sparsecore" in run().output


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_is_one_line_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'pip install "sparsecore[cli]"' in error


def test_python_dash_m() -> None:
    command = [sys.executable, "-m", "sparsecore", "info", "--json", "-"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["operations"]
