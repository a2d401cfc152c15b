"""docs/methods.md says what the table of methods says, and its examples run as they stand there."""

from __future__ import annotations

import doctest
import re
import runpy
from pathlib import Path

import pytest

from sparsecore import methods

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "methods.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "methods_page.py"), run_name="__main__")
    assert capsys.readouterr().out == TEXT, "run python docs/methods_page.py > docs/methods.md"


def test_links_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = [re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#(.*?)\)", TEXT)) <= set(anchors)


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
def test_every_example_runs_alone(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers")
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    lines: list[str] = []
    example = doctest.DocTestParser().get_doctest(code, {}, "methods.md", "methods.md", 0)
    result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(example, out=lines.append)
    assert result.attempted
    assert not lines, "".join(lines)
