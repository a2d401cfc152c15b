"""Objects by the name "module:attribute"."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsecore.lookup import close_matches, import_by_name, is_import_name


@pytest.mark.parametrize("name", ["module:function", "a.b.c:Class.method", "_a1:_b2", "módulo:función"])
def test_names_that_lead_somewhere(name: str) -> None:
    assert is_import_name(name)


@pytest.mark.parametrize(
    "name", ["2:4", "module", "module:", ":function", "a..b:c", ".a:b", "a:b:c", "a b:c", "a:b\n", ""]
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_import_name(name)
    with pytest.raises(ValueError, match="expected"):
        import_by_name(name)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="cannot import no_such_module_anywhere:f: No module named"):
        import_by_name("no_such_module_anywhere:f")
    with pytest.raises(ValueError, match="cannot import math:no_such_function: module 'math' has no attribute"):
        import_by_name("math:no_such_function")


def test_attributes_of_classes() -> None:
    assert import_by_name("pathlib:Path.cwd")() == Path.cwd()


def test_the_current_folder_is_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_the_current_folder.py").write_text("answer = 42\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert import_by_name("module_of_the_current_folder:answer") == 42
    assert sys.path == before


def test_close_matches() -> None:
    assert close_matches("magnitud", ["wanda", "magnitude"]) == ", perhaps you meant magnitude"
    assert close_matches("zzz", ["wanda", "magnitude"]) == ""
