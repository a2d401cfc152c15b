"""The command line: what it prints, where its JSON goes, and errors in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner, Result

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
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)


@pytest.mark.parametrize("error", [FormatError("expected int8,\ngot float32"), OSError("disk full")])
def test_expected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("sparsecore.bench.probes.installation", fail)
    result = run("info")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: .+\n", result.stderr)


@pytest.mark.parametrize("error", [click.Abort, KeyboardInterrupt])
def test_an_interrupted_command_is_one_line(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def stop() -> None:
        raise error

    monkeypatch.setattr("sparsecore.bench.probes.installation", stop)
    result = run("info")
    assert (result.exit_code, result.stderr.strip()) == (130, "stopped")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecore.bench.probes.installation", lambda: {}["bug"])
    assert isinstance(run("info").exception, KeyError)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["demo", "--help"], ["--version"]])
def test_help_and_version(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "sparsecore" in result.stdout


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
