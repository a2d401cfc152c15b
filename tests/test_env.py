"""The cache folder on each platform."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecore import env


def test_chosen_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", str(tmp_path / "here"))
    assert env.cache_dir() == tmp_path / "here"
    assert not env.cache_dir().exists()
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", "~/here")
    assert env.cache_dir() == Path.home() / "here"


@pytest.mark.parametrize(
    ("platform", "variable", "fallback"),
    [
        ("linux", "XDG_CACHE_HOME", Path.home() / ".cache"),
        ("win32", "LOCALAPPDATA", Path.home() / "AppData" / "Local"),
        ("darwin", None, Path.home() / "Library" / "Caches"),
    ],
)
def test_platform_folder(
    platform: str,
    variable: str | None,
    fallback: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(env.sys, "platform", platform)
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", "")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert env.cache_dir() == fallback / "sparsecore"
    if variable is not None:
        monkeypatch.setenv(variable, "relative")
        assert env.cache_dir() == fallback / "sparsecore"
        monkeypatch.setenv(variable, str(tmp_path))
        assert env.cache_dir() == tmp_path / "sparsecore"
