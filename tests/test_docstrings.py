"""Docstrings: they are read right, and their examples run."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsecore
from sparsecore import docstrings, methods

# What examples may use besides the names of their own module.
NAMES = {"torch": torch, "nn": nn}

TEXT = """Do something.

    More of it.

    Args:
        first: One line.
        second (int): Several lines, ``{"a": 1}``:
            and a colon: here.

            A paragraph.
        **rest: Not an argument of its own.

    Returns:
        What :func:`~sparsecore.prune.prune` returns.

    Example:
        A caption:

        >>> 1 + 1
        2
        >>> 2 + 2
        4

        Another:

        >>> 3
        3

    Reference:
        Somebody, A paper, 2020.
    """


def test_sections() -> None:
    assert docstrings.section(TEXT, "Reference") == "Somebody, A paper, 2020."
    assert docstrings.section(TEXT, "Raises") == ""
    assert docstrings.section("", "Args") == ""


def test_arguments() -> None:
    assert docstrings.arguments(TEXT) == {
        "first": "One line.",
        "second": 'Several lines, `{"a": 1}`: and a colon: here. A paragraph.',
        "rest": "Not an argument of its own.",
    }
    assert docstrings.arguments("Nothing to say.") == {}


def test_examples_are_paragraphs_of_code() -> None:
    assert docstrings.examples(TEXT) == [">>> 1 + 1\n2\n>>> 2 + 2\n4", ">>> 3\n3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":func:`prune`", "`prune()`"),
        (":meth:`Masks.attach`", "`attach()`"),
        (":class:`~sparsecore.prune.Masks`", "`Masks`"),
        ("``x`` and `y`", "`x` and `y`"),
    ],
)
def test_plain(text: str, expected: str) -> None:
    assert docstrings.plain(text) == expected


def modules_with_examples() -> list[str]:
    """Names of the package's modules in whose text there is an example; nothing is imported."""
    root = Path(sparsecore.__path__[0])
    paths = [path for path in sorted(root.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    parts = [path.relative_to(root.parent).with_suffix("").parts for path in paths]
    return [".".join(part for part in path if part != "__init__") for path in parts]


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))  # an example registers a method
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(loaded, extraglobs=NAMES):
        if "from transformers" in (example.docstring or ""):
            pytest.importorskip("transformers")
        runner.run(example, out=lines.append)
    assert runner.summarize(verbose=False).attempted
    assert not lines, "".join(lines)
