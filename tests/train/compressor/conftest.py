"""A tiny net and its data; runs that measure no longer than they have to."""

from __future__ import annotations

import pytest

from sparsecore.train.compressor import report, result


@pytest.fixture(autouse=True)
def _short_timings_and_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "_MIN_TIME_S", 0.0)
    monkeypatch.setattr(report, "_draw", lambda rows, path: None)
