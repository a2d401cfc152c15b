"""A row of the table of methods: it says where the code is, and reads the options off that code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any

from sparsecore import docstrings
from sparsecore.lookup import close_matches, import_by_name, is_import_name

#: What a method may need besides the model, and what that means.
NEEDS = {
    "data": "batches of inputs",
    "labels": "the right answers to these inputs",
    "loss": "gradients of a loss on these inputs (with labels, if the loss takes them)",
    "training steps": "a training loop, in which it takes part",
}

#: Default of an option that has none.
REQUIRED = inspect.Parameter.empty

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Option:
    """One setting of a method.

    Attributes:
        name: The keyword argument.
        type: Its annotation.
        default: Its value when left out; REQUIRED if it must be given.
        description: From the docstring, one line.
    """

    name: str
    type: str
    default: Any
    description: str

    def to_dict(self) -> dict[str, Any]:
        """Return the option ready for JSON; one that must be given has no default."""
        row: dict[str, Any] = {"name": self.name, "type": self.type}
        if self.default is not REQUIRED:
            row["default"] = _to_json(self.default)
        return row | {"description": self.description}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: What it is called, in small letters.
        kind: ``"pruning"``, ``"quantization"``, ...
        summary: One line.
        reference: Paper, venue and year, or ``"own"``.
        entry: Where the code is, ``"module:attribute"``, imported when it is needed.
        inputs: Arguments of the entry that are objects of a run (model, optimizer, batches), not settings.
        needs: What it needs besides the model, of NEEDS.
        fixed: Arguments of the entry that make it this method.
        parts: Arguments of the entry that are built from options of their own: ``{"criterion": "module:Class"}``.
        unused: Arguments of the entry that do nothing in this method.
        defaults: Other defaults than the entry's; REQUIRED for an option that must be given.

    Raises:
        ValueError: A name, the entry or a need has a form that it cannot have.

    Example:
        >>> method = Method("curve", "schedule", "Sparsity at a step", "own", "sparsecore.prune:cubic_sparsity",
        ...                 inputs=("step",), fixed={"begin": 0})
        >>> [option.name for option in method.options]
        ['end', 'initial', 'final']
        >>> method.bind(end=10, initial=0.0, final=0.9)(step=10)
        0.9
    """

    name: str
    kind: str
    summary: str
    reference: str
    entry: str
    inputs: tuple[str, ...] = ("model",)
    needs: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or self.name != "".join(self.name.lower().split()):
            raise ValueError(f"expected a name in small letters without spaces, got {self.name!r}")
        if not is_import_name(self.entry):
            raise ValueError(f'{self.name}: expected an entry "module:attribute", got {self.entry!r}')
        unknown = [need for need in self.needs if need not in NEEDS]
        if unknown:
            raise ValueError(f"{self.name}: expected needs of {', '.join(NEEDS)}, got {', '.join(map(repr, unknown))}")

    def resolve(self) -> Callable[..., Any]:
        """Import the entry.

        Raises:
            ValueError: It cannot be imported, or not called.
        """
        entry = import_by_name(self.entry)
        if not callable(entry):
            raise ValueError(f"{self.name}: expected {self.entry} to be callable, got {type(entry).__name__}")
        return entry

    @property
    def options(self) -> tuple[Option, ...]:
        """The settings, in the order of the entry's arguments, then those of its parts."""
        taken = {*self.inputs, *self.fixed, *self.parts, *self.unused}
        own = [option for option in read_options(self.resolve(), self.defaults) if option.name not in taken]
        return (*own, *(option for part in self.parts.values() for option in read_options(import_by_name(part))))

    @property
    def settings(self) -> tuple[str, ...]:
        """What the method sets itself, as in a call: ``criterion="magnitude"``, ``criterion=SparseGPT(...)``."""
        return (
            *(f"{name}={literal(value)}" for name, value in self.fixed.items()),
            *(f"{name}={part.partition(':')[2]}(...)" for name, part in self.parts.items()),
        )

    @property
    def example(self) -> str:
        """The first doctest about this method, with its imports; "" if there is none.

        From the docstring of the entry, of its class if it is a method of one, or of a part.
        """
        parameters = inspect.signature(self.resolve()).parameters
        settings = {**self.fixed, **self.defaults}
        mentioned = [
            *(f"{name}={_start(value)}" for name, value in settings.items() if value != parameters[name].default),
            *(f"{name}={part.partition(':')[2]}(" for name, part in self.parts.items()),
        ]
        owner = self.entry.rpartition(".")[0]
        owners = (owner,) if ":" in owner else ()
        for source in (self.entry, *owners, *self.parts.values()):
            for code in docstrings.examples(inspect.getdoc(import_by_name(source)) or ""):
                if all(setting in code for setting in mentioned):
                    return _with_imports(code, source)
        return ""

    def bind(self, **options: Any) -> partial[Any]:
        """Give a method its options; calling the result with its inputs runs it.

        Args:
            **options: Of :attr:`options`, by name.

        Returns:
            A call of the entry that lacks the inputs only.

        Raises:
            ValueError: The method has no such option, or one that must be given is missing.

        Example:
            >>> from torch import nn
            >>> from sparsecore.methods import find_method
            >>> prune = find_method("blocks").bind(sparsity=0.75, pattern="8x1")
            >>> prune(nn.Linear(64, 32)).sparsity()
            0.75
        """
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                raise ValueError(self._not_an_option(name, list(known)))
        missing = [name for name, option in known.items() if option.default is REQUIRED and name not in options]
        if missing:
            raise ValueError(f"{self.name}: expected a value for {', '.join(missing)}")
        defaults = {name: value for name, value in self.defaults.items() if value is not REQUIRED}
        for argument, part in self.parts.items():
            build = import_by_name(part)
            own = {option.name: options.pop(option.name) for option in read_options(build) if option.name in options}
            options[argument] = build(**own)
        return partial(self.resolve(), **{**self.fixed, **defaults, **options})

    def to_dict(self) -> dict[str, Any]:
        """Return the row with its options and its example, ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "reference": self.reference,
            "needs": list(self.needs),
            "entry": self.entry,
            "inputs": list(self.inputs),
            "fixed": {name: _to_json(value) for name, value in self.fixed.items()},
            "parts": dict(self.parts),
            "options": [option.to_dict() for option in self.options],
            "example": self.example,
        }

    def _not_an_option(self, name: str, known: list[str]) -> str:
        if name in self.fixed:
            return f"{self.name} sets {name}={literal(self.fixed[name])} itself; leave it out"
        if name in self.parts:
            return f"{self.name} builds {name} itself, from its other options; leave it out"
        if name in self.unused:
            return f"{self.name} has no use for {name}; leave it out"
        if name in self.inputs:
            return f"{self.name}: {name} is no option but an input; give it to what bind() returns"
        return f"{self.name} has no option {name!r}{close_matches(name, known)}; it has {', '.join(known)}"


def read_options(entry: Callable[..., Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> list[Option]:
    """Read the options of a function or class off its signature and docstring.

    Args:
        entry: The function or class.
        defaults: Other defaults than those of the signature.

    Example:
        >>> from sparsecore.quantize import Percentile
        >>> read_options(Percentile)
        [Option(name='percent', type='float', default=99.99, description='above 50; 100 is the same as MinMax.')]
    """
    described = docstrings.arguments(inspect.getdoc(entry) or "")
    return [
        Option(name, _annotation(parameter), defaults.get(name, parameter.default), described.get(name, ""))
        for name, parameter in inspect.signature(entry).parameters.items()
        if parameter.kind not in _VARIADIC
    ]


def _with_imports(code: str, source: str) -> str:
    """Put imports before an example of ``module:attribute`` so that it runs alone."""
    module, _, attribute = source.partition(":")
    public = getattr(import_module(module), "__all__", ())
    names = sorted({attribute.split(".")[0], *(name for name in public if re.search(rf"\b{name}\b", code))})
    from_module = f">>> from {module} import "
    imports = (">>> import torch", ">>> from torch import nn", from_module + ", ".join(names))
    rest = (line for line in code.splitlines() if line not in imports and not line.startswith(from_module))
    return "\n".join([*imports, *rest])


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _start(value: Any) -> str:
    """How a setting begins in code; one of one's own may be anything."""
    return "" if value is REQUIRED else literal(value)


def literal(value: Any) -> str:
    """Write a value as one would in Python.

    Example:
        >>> literal("2:4"), literal(None)
        ('"2:4"', 'None')
    """
    return json.dumps(value) if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _to_json(value: Any) -> Any:
    """Return a value as it is if JSON has it, else as text."""
    if isinstance(value, tuple):
        return [_to_json(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else literal(value)
