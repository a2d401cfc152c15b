from __future__ import annotations

import io
import re

import pytest

from sparsecore.bench.progress import lines, silent, stage


def test_a_line_per_finished_step() -> None:
    stream = io.StringIO()
    report = lines(stream)
    with stage(report, "first") as share:
        share(0.5)
        assert stream.getvalue() == ""
    report("a note", 1.0)
    with stage(report, "second"):
        pass
    assert re.fullmatch(r"  first  \d+\.\d s\n  a note\n  second  \d+\.\d s\n", stream.getvalue())


def test_a_stage_ends_once_and_only_when_it_succeeds() -> None:
    calls: list[tuple[str, float]] = []
    with stage(lambda step, share: calls.append((step, share)), "work") as share:
        share(0.25)
        share(1.0)
    assert calls == [("work", 0.0), ("work", 0.25), ("work", 1.0)]

    calls.clear()
    with (
        pytest.raises(RuntimeError),
        stage(lambda step, share: calls.append((step, share)), "work"),
    ):
        raise RuntimeError
    assert calls == [("work", 0.0)]


def test_silent_takes_the_same_calls() -> None:
    with stage(silent, "work") as share:
        share(0.5)
