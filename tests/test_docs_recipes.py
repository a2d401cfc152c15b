"""docs/recipes.md says what the schema says, and the examples are recipes that fit their model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("yaml")

from sparsecore.train.compressor import Compressor
from sparsecore.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "docs" / "recipes_page.py"), run_name="__main__")
    assert capsys.readouterr().out == TEXT, "run python docs/recipes_page.py > docs/recipes.md"


def test_links_lead_somewhere() -> None:
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w-]", "", heading) for heading in re.findall(r"^### (.*)$", methods, re.MULTILINE)}
    for target in re.findall(r"\]\((.*?)\)", TEXT):
        file, _, anchor = target.partition("#")
        assert (ROOT / "docs" / file).exists(), target
        assert not anchor or anchor in anchors, target


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5
    assert {plan[0].name for path in EXAMPLES for plan in read_recipe(path).plans} >= {
        "l1-filters",
        "filters-to-target",
        "distillation",
        "qat",
        "gradual",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_fits_its_model(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch_pruning")
    monkeypatch.chdir(tmp_path)
    events = Compressor(None, path).dry_run()
    assert len(events) >= 2 * len(read_recipe(path).plans) - 1
    assert not list(tmp_path.iterdir())
