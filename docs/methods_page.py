"""Writes methods.md from the table of methods and the docstrings behind it.

``python docs/methods_page.py > docs/methods.md``; a test compares the two, and runs every example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import getdoc

from sparsecore import docstrings
from sparsecore.bench.text_table import Table
from sparsecore.lookup import import_by_name
from sparsecore.methods import NEEDS, REQUIRED, Method, Option, literal, methods, read_options, register

INTRODUCTION = """# Methods

Every compression method by its name, as `sparsecore methods` lists them. Written by `docs/methods_page.py` from
`sparsecore/methods/table.py` and the docstrings behind it.

A method gets its options from `bind()`, and its inputs when it runs. Options of a wrong name are refused at once.
"""

EXAMPLE = """>>> from torch import nn
>>> from sparsecore.methods import find_method
>>> prune = find_method("n:m").bind(pattern="4:16")
>>> prune(nn.Linear(64, 32)).sparsity()
0.75"""

OWN = """A criterion of one's own is one function: it gets the name of a weight and a copy of it, with its `grad`, and
returns scores of its shape, low ones to go. `prune(criterion=...)` takes the function, or its name
`"my_module:my_function"`, which serves recipes and the command line too; the current folder is on the path. A whole
method of one's own is a row:
"""


def page() -> str:
    """Return the text of methods.md."""
    parts = [INTRODUCTION, _code(EXAMPLE), *_overview(), *_sections(), *_options(), *_own()]
    return "\n".join(parts)


def _overview() -> Iterator[str]:
    rows = [
        (f"[{method.name}](#{_anchor(method.name)})", method.kind, _listed(method.needs), *_cells(method))
        for method in methods()
    ]
    yield Table("", ("method", "kind", "needs", "what it does", "reference"), rows, names=5).markdown() + "\n"
    yield Table("", ("need", "meaning"), list(NEEDS.items()), names=2).markdown() + "\n"


def _cells(method: Method) -> tuple[str, str]:
    return _escape(method.summary), _escape(method.reference)


def _sections() -> Iterator[str]:
    for kind in dict.fromkeys(method.kind for method in methods()):
        yield f"## {kind.capitalize()}\n"
        for method in methods(kind):
            settings = ", ".join(f"`{setting}`" for setting in method.settings)
            entry = f"`{_call(method.entry)}`"
            if method.options:
                entry = f"[{entry}](#{_anchor(_call(method.entry))})"
            yield f"### {method.name}\n\n{method.summary}.\n"
            yield f"- Code: {entry}" + (f" with {settings}" if settings else "")
            yield f"- Inputs: {', '.join(f'`{name}`' for name in method.inputs)}"
            yield f"- Options: {', '.join(map(_option, method.options)) or 'none'}"
            yield f"- Needs: {_listed(method.needs)}\n- Reference: {method.reference}\n"
            yield _code(method.example)


def _option(option: Option) -> str:
    return f"`{option.name}` " + ("(required)" if option.default is REQUIRED else f"(`{literal(option.default)}`)")


def _options() -> Iterator[str]:
    """The options of every function and class behind the methods, once."""
    used: dict[str, set[str]] = {}
    for method in methods():
        for source in (method.entry, *method.parts.values()):
            used.setdefault(source, set()).update(option.name for option in method.options)
    yield "## Options\n"
    for source, names in used.items():
        rows = [
            (f"`{option.name}`", f"`{_escape(option.type)}`", _default(option), _escape(option.description))
            for option in read_options(import_by_name(source))
            if option.name in names
        ]
        if not rows:
            continue
        yield f"### {_call(source)}\n"
        yield Table("", ("option", "type", "default", "meaning"), rows, names=4).markdown() + "\n"


def _own() -> Iterator[str]:
    (code,) = docstrings.examples(getdoc(register) or "")
    yield f"## A method of one's own\n\n{OWN}"
    yield _code(f">>> from sparsecore.methods import Method, find_method, register\n{code}")


def _call(source: str) -> str:
    return f"{source.replace(':', '.')}()"


def _default(option: Option) -> str:
    return "required" if option.default is REQUIRED else f"`{literal(option.default)}`"


def _listed(needs: Sequence[str]) -> str:
    return ", ".join(needs) or "nothing"


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


def _anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading: small letters, digits, hyphens and underscores."""
    return "".join(char for char in heading.lower().replace(" ", "-") if char.isalnum() or char in "-_")


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
