"""The team: what one library does wrong is a line, and the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsecore.bench.peers.library import Library
from sparsecore.bench.peers.process import CommandError, WorkerError
from sparsecore.bench.peers.team import MAX_STARTS, Team

GOOD, FRAIL, BROKEN = (Library(name, "", ()) for name in ("good", "frail", "broken"))


class FakeProcess:
    """Dies, fails, or is well, as the name of its library says."""

    started: list[str]
    ended: list[str]

    def __init__(self, library: Library, threads: int, folder: Path) -> None:
        self.name = library.name
        self.started.append(self.name)
        if self.name == "broken":
            raise CommandError("ImportError: no such library")

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.append(self.name)

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        if options.get("fail"):
            raise CommandError("ValueError: no")
        if self.name == "frail":
            raise WorkerError(f"killed by SIGKILL during {command}")
        return {"candidates": {"a": {}}, "failed": {}}


@pytest.fixture(autouse=True)
def _fake_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProcess.started, FakeProcess.ended = [], []
    monkeypatch.setattr("sparsecore.bench.peers.team.WorkerProcess", FakeProcess)


def test_a_dead_one_is_started_again_a_few_times(tmp_path: Path) -> None:
    with Team(1, tmp_path) as team:
        for _ in range(MAX_STARTS + 2):
            assert team.load(FRAIL) == {"candidates": {}, "failed": {}}
            assert team.ask("frail", "run") is None
            assert team.load(GOOD)["candidates"] == {"a": {}}
        assert team.take_failures() == ["frail: killed by SIGKILL during load"] * MAX_STARTS
        assert team.take_failures() == []
    assert FakeProcess.started == ["frail", "good"] + ["frail"] * (MAX_STARTS - 1)
    assert sorted(FakeProcess.ended) == sorted(FakeProcess.started)


def test_one_that_cannot_start_is_not_started_again(tmp_path: Path) -> None:
    with Team(1, tmp_path) as team:
        for _ in range(2):
            team.load(BROKEN)
        assert team.failures == ["broken: ImportError: no such library"]
    assert FakeProcess.started == ["broken"]


def test_a_command_that_fails_leaves_the_worker(tmp_path: Path) -> None:
    with Team(1, tmp_path) as team:
        team.load(GOOD)
        assert team.ask("good", "run", fail=True) is None
        assert team.failures == ["good: ValueError: no"]
        assert team.ask("good", "run") is not None
    assert FakeProcess.started == ["good"]


def test_all_are_ended_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Team(1, tmp_path) as team:
            team.load(GOOD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert FakeProcess.ended == ["good"]
