"""Every compression method by its name: what it needs, what its options are, and how to call it."""

from __future__ import annotations

from sparsecore.lookup import close_matches
from sparsecore.methods.method import NEEDS, REQUIRED, Method, Option, literal, read_options
from sparsecore.methods.table import TABLE

__all__ = ["NEEDS", "REQUIRED", "Method", "Option", "find_method", "literal", "methods", "read_options", "register"]

_METHODS = {method.name: method for method in TABLE}


def methods(kind: str | None = None) -> tuple[Method, ...]:
    """List the methods, in the order of the table.

    Args:
        kind: Only methods of this kind.

    Raises:
        ValueError: There is no method of this kind.

    Example:
        >>> [method.name for method in methods("pruning")][:2]
        ['magnitude', 'criterion']
    """
    found = tuple(method for method in _METHODS.values() if kind in (None, method.kind))
    if not found:
        kinds = list(dict.fromkeys(method.kind for method in _METHODS.values()))
        raise ValueError(f"no method is of kind {kind!r}{close_matches(str(kind), kinds)}; kinds: {', '.join(kinds)}")
    return found


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: No method is called so.

    Example:
        >>> find_method("gradual").entry
        'sparsecore.prune:GradualPruner'
    """
    if name not in _METHODS:
        raise ValueError(f"no method is called {name!r}{close_matches(name, _METHODS)}; known: {', '.join(_METHODS)}")
    return _METHODS[name]


def register(method: Method) -> None:
    """Add a method of one's own to the table of this process.

    Args:
        method: A row with a new name. A criterion of one's own is a function ``(name, weight) -> scores``, fixed as
            the criterion of ``prune()``, itself or by its name ``"module:function"``.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from torch import nn
        >>> def variance(name, weight):
        ...     return (weight - weight.mean()).square()
        >>> register(Method("variance", "pruning", "Far from the mean", "own", "sparsecore.prune:prune",
        ...                 fixed={"criterion": variance}))
        >>> find_method("variance").bind(sparsity=0.5)(nn.Linear(8, 4)).sparsity()
        0.5
    """
    if method.name in _METHODS:
        raise ValueError(f"a method is called {method.name!r} already; choose another name")
    _METHODS[method.name] = method
