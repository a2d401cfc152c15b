"""Reading Google-style docstrings, so that what they say is written once."""

from __future__ import annotations

import re
from inspect import cleandoc

_HEADING = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)(?: \([^)]*\))?: ", re.MULTILINE)
_ROLE = re.compile(r":(\w+):`~?(?:[\w.]+\.)?(\w+)`")


def section(docstring: str, heading: str) -> str:
    """Return the text below a heading such as ``Args``, without its indentation; "" if there is none.

    Example:
        >>> section("Add.\\n\\nReturns:\\n    The sum.", "Returns")
        'The sum.'
    """
    parts = _HEADING.split(cleandoc(docstring))
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name == heading:
            return cleandoc(text)
    return ""


def arguments(docstring: str) -> dict[str, str]:
    """Return what the section ``Args`` says of each argument, in one line and without Sphinx's markup.

    Example:
        >>> arguments("Add.\\n\\nArgs:\\n    a: The first\\n        number.\\n    b: The other, see :func:`add`.")
        {'a': 'The first number.', 'b': 'The other, see `add()`.'}
    """
    parts = _ARGUMENT.split(section(docstring, "Args"))
    return {name: plain(" ".join(text.split())) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def examples(docstring: str) -> list[str]:
    """Return the doctests of the section ``Example``, one for each paragraph of code.

    Example:
        >>> examples("Add.\\n\\nExample:\\n    >>> add(1, 2)\\n    3\\n\\n    Or:\\n\\n    >>> add(1)\\n    1")
        ['>>> add(1, 2)\\n3', '>>> add(1)\\n1']
    """
    return [paragraph for paragraph in section(docstring, "Example").split("\n\n") if paragraph.startswith(">>>")]


def plain(text: str) -> str:
    """Return text with Sphinx's roles and double backticks as Markdown's single ones.

    Example:
        >>> plain("``x`` of :class:`~sparsecore.prune.Masks` or :meth:`step`")
        '`x` of `Masks` or `step()`'
    """
    called = _ROLE.sub(lambda role: f"`{role[2]}{'()' if role[1] in ('func', 'meth') else ''}`", text)
    return called.replace("``", "`")
