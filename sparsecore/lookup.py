"""Names that stand for Python objects: ``module:attribute``, and what a misspelt name may have meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from sparsecore.user_code import described

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def is_import_name(name: str) -> bool:
    """Whether a name has the form ``module:attribute``.

    Example:
        >>> is_import_name("my_package.scores:fisher"), is_import_name("2:4")
        (True, False)
    """
    return re.fullmatch(f"{_DOTTED}:{_DOTTED}", name) is not None


def import_by_name(name: str) -> Any:
    """Import what ``module:attribute`` names, with the current folder on the path.

    Args:
        name: Such as ``"my_module:my_function"``; dots lead into packages and classes.

    Returns:
        The object. Importing runs the module's code: take names only from those who may run code.

    Raises:
        ValueError: The name has another form, there is no such module or attribute, or its code raised.

    Example:
        >>> import_by_name("math:sqrt")(9)
        3.0
    """
    if not is_import_name(name):
        raise ValueError(f'expected "module:attribute", such as "my_module:my_function", got {name!r}')
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name}: {error}") from error
    except Exception as error:
        raise ValueError(f"cannot import {name}: {described(error)}") from error
    finally:
        sys.path.remove("")
    return found


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return ``", perhaps you meant A or B"``, or nothing if no known name is close.

    Example:
        >>> close_matches("wonda", ["wanda", "taylor"])
        ', perhaps you meant wanda'
    """
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f", perhaps you meant {' or '.join(found)}" if found else ""
