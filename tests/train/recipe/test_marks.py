"""YAML: values as YAML 1.2 has them, and the place of each."""

from __future__ import annotations

import pytest

pytest.importorskip("yaml")

from sparsecore.errors import RecipeError
from sparsecore.train.recipe.marks import parse


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "a: 2:4\nb: 1e-3\nc: no\nd: 010\ne: -7\nf: .inf\ng: true\nh:\ni: '3'\nj: 1.\nk: 0.5\nl: [n:m, 1]"
    assert parse(text, "x").content == {
        "a": "2:4", "b": 0.001, "c": "no", "d": "010", "e": -7, "f": float("inf"), "g": True, "h": None, "i": "3",
        "j": 1.0, "k": 0.5, "l": ["n:m", 1],
    }  # fmt: skip


def test_every_key_and_value_has_its_place() -> None:
    document = parse("a: 1\nb:\n  - c: 2\n    dd:   {e: 3}\n", "r.yaml")
    assert str(document.error(("b", 0, "dd", "e"), "no")) == "r.yaml:4:15: b.0.dd.e: no"
    assert str(document.error(("b", 0, "dd"), "no", at_key=True)) == "r.yaml:4:5: b.0.dd: no"
    assert str(document.error(("b", 0, "missing"), "no")) == "r.yaml:3:5: b.0.missing: no"
    assert str(document.error((), "no")) == "r.yaml:1:1: no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "r.yaml:2:1: a: occurs twice; the first is in line 1"),
        ("a: [1", "r.yaml:1:6: expected"),
        ("a: 1\n\tb: 2", "r.yaml:2:1: the line is indented with tabs"),
        ("a: 1\n2: 3", "r.yaml:2:1: 2: expected a name as key"),
        ("a: &x [1]\nb: *x", "r.yaml:1:4: b: refers to another part of the file"),
        ("a: &x [*x]", "r.yaml:1:4: a.0: refers to another part of the file"),
        ("a: !!python/object:os.system x", "r.yaml:1:4: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: but found another document"),
        ("a: \x00", "r.yaml: unacceptable character"),
        ("a:\n  b: 1\n\tc: 2\n", "r.yaml:3:1: the line is indented with tabs; YAML takes spaces alone"),
        ("a: 1\nb:\tc: 3\n", "r.yaml:2:3: found a tab; YAML takes spaces alone"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse(text, "r.yaml")
    assert str(error.value).startswith(message)
