"""English that every Python brings along: docstrings and comments of the standard library, by module."""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

# One file in this many is for validation, chosen by the hash of its name.
VALIDATION_SHARE = 20
# Installed packages are not the standard library, and what lib2to3 is tested with is not text.
_LEFT_OUT = ("site-packages", "dist-packages", "data")
_SHORTEST = 20


def stdlib_text() -> tuple[str, str]:
    """Collect docstrings and comments, each paragraph once, split by module.

    Returns:
        Text for training and text for validation, of different modules; the same for the same Python.
    """
    seen: set[str] = set()
    texts: dict[bool, list[str]] = {True: [], False: []}
    for name, source in _sources():
        is_validation = int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0
        fresh = [text for text in _texts(source) if len(text) >= _SHORTEST and text not in seen]
        seen.update(fresh)
        texts[is_validation] += dict.fromkeys(fresh)
    return "\n\n".join(texts[False]), "\n\n".join(texts[True])


def _sources() -> Iterator[tuple[str, str]]:
    """Yield every module's path in the library, and its source, in the order of the paths."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.as_posix()):
        name = path.relative_to(root).as_posix()
        if any(part in _LEFT_OUT for part in Path(name).parts):
            continue
        try:
            with tokenize.open(path) as file:
                yield name, file.read()
        except (SyntaxError, UnicodeDecodeError):  # tests of the parser
            continue


def _texts(source: str) -> Iterator[str]:
    """Yield the docstrings, then the comments, neighbouring lines of comment as one text."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError):  # tests of the parser
        return
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=True)
            if docstring:
                yield inspect.cleandoc(docstring)
    lines: list[str] = []
    previous = -1
    for token in tokens:
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != previous + 1:
            yield "\n".join(lines)
            lines = []
        previous = token.start[0]
        lines.append(token.string.lstrip("#! ").rstrip())
    yield "\n".join(lines)
