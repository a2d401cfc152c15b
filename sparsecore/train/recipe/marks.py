"""YAML with the place of every key and value, so that errors can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sparsecore.errors import RecipeError, require_extra

#: Keys and indices that lead to a value.
Path = tuple[str | int, ...]

# Scalars as YAML 1.2's core schema has them. YAML 1.1, PyYAML's own, reads 2:4 as 124, 1e-3 as text and "no" as false.
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


@dataclass(frozen=True)
class Document:
    """A recipe as it was read.

    Attributes:
        content: Plain dicts, lists and scalars.
        source: Where it is from, for errors.
        values: Line and column of each value, counted from 1; empty if it is from no text.
        keys: The same of each key.
    """

    content: Any
    source: str = "recipe"
    values: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    keys: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    def error(self, path: Sequence[str | int], message: str, *, at_key: bool = False) -> RecipeError:
        """Return an error that names the place of a value, or of what is around it if there is no such value.

        Args:
            path: Keys and indices that lead there.
            message: What is wrong.
            at_key: Whether the key is wrong, not its value.
        """
        marks = self.keys if at_key else self.values
        where = tuple(path)
        while where and where not in marks:
            where, marks = where[:-1], self.values
        name = ".".join(map(str, path))
        place = ":".join(map(str, (self.source, *marks.get(where, ()))))
        return RecipeError(": ".join(filter(None, (place, name, message))))


def parse(text: str, source: str) -> Document:
    """Read YAML.

    Args:
        text: The text.
        source: Its file, for errors.

    Raises:
        RecipeError: It is no YAML, a key occurs twice or is no text, or there are aliases.
        MissingExtraError: PyYAML is not installed.

    Example:
        >>> document = parse("strategies:\\n- name: n:m\\n  pattern: 2:4\\n", "recipe.yaml")
        >>> document.content
        {'strategies': [{'name': 'n:m', 'pattern': '2:4'}]}
        >>> str(document.error(("strategies", 0, "pattern"), "does not fit"))
        'recipe.yaml:3:12: strategies.0.pattern: does not fit'
    """
    yaml = require_extra("yaml", "recipes")
    values: dict[Path, tuple[int, int]] = {}
    keys: dict[Path, tuple[int, int]] = {}
    try:
        loader = _loader_class()(text)
        node = loader.get_single_node()
        document = Document(None, source, values, keys)
        content = _read(loader, node, (), document, values, keys) if node else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and (tabbed := _first_tabbed_line(text.splitlines()[: mark.line + 1])):
            raise RecipeError(
                f"{source}:{tabbed}:1: the line is indented with tabs; YAML takes spaces alone"
            ) from error
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = "found a tab; YAML takes spaces alone" if r"'\t'" in str(error.problem) else error.problem
        raise RecipeError(f"{place}: {problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: {' '.join(str(error).split())}") from error
    return Document(content, source, values, keys)


def _read(
    loader: Any,
    node: Any,
    path: Path,
    document: Document,
    values: dict[Path, tuple[int, int]],
    keys: dict[Path, tuple[int, int]],
) -> Any:
    """Return the value of a node, and note where it and all inside it stand."""
    values[path] = _place(node)
    if getattr(node, "was_read", False):
        raise document.error(path, "refers to another part of the file; write it out")
    node.was_read = node.id != "scalar"
    if node.id == "scalar":
        return loader.construct_object(node)
    if node.id == "sequence":
        return [_read(loader, child, (*path, index), document, values, keys) for index, child in enumerate(node.value)]
    content: dict[str, Any] = {}
    for key_node, child in node.value:
        key = loader.construct_object(key_node) if key_node.id == "scalar" else None
        where = (*path, str(key))
        first = keys.setdefault(where, _place(key_node))
        if not isinstance(key, str):
            raise document.error(where, "expected a name as key", at_key=True)
        if key in content:
            keys[where] = _place(key_node)
            raise document.error(where, f"occurs twice; the first is in line {first[0]}", at_key=True)
        content[key] = _read(loader, child, where, document, values, keys)
    return content


def _first_tabbed_line(lines: Sequence[str]) -> int:
    """Return the number of the first line with a tab in its indentation, or 0."""
    return next((number for number, line in enumerate(lines, 1) if re.match(r"\s*\t\s*\S", line)), 0)


def _place(node: Any) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


@cache
def _loader_class() -> Any:
    """PyYAML's safe loader with YAML 1.2's scalars."""
    yaml = require_extra("yaml", "recipes")
    loader: Any = type("RecipeLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    for kind, pattern in _SCALARS.items():
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), None)
    return loader
