"""Every compression method by its name: one table, which the command line, the documentation and recipes read.

A row says where the code is; options, their defaults and descriptions are read off its signature and docstring.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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
        unused: Arguments of the entry that do nothing in this method.
        defaults: Other defaults than the entry's; REQUIRED for an option that must be given.

    Raises:
        ValueError: A name, the entry or a need has a form that it cannot have.

    Example:
        >>> method = find_method("n:m")
        >>> method.needs, method.fixed["criterion"], method.defaults
        ((), 'magnitude', {'pattern': '2:4'})
    """

    name: str
    kind: str
    summary: str
    reference: str
    entry: str
    inputs: tuple[str, ...] = ("model",)
    needs: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
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
        """The settings, in the order of the entry's arguments."""
        entry = self.resolve()
        taken = {*self.inputs, *self.fixed, *self.unused}
        described = docstrings.arguments(inspect.getdoc(entry) or "")
        return tuple(
            Option(
                parameter.name,
                _annotation(parameter),
                self.defaults.get(parameter.name, parameter.default),
                described.get(parameter.name, ""),
            )
            for parameter in inspect.signature(entry).parameters.values()
            if parameter.name not in taken and parameter.kind not in _VARIADIC
        )

    @property
    def example(self) -> str:
        """The first doctest of the entry's docstring that is about this method, with its imports; "" if none is."""
        entry = self.resolve()
        parameters = inspect.signature(entry).parameters
        mentioned = [
            f"{name}={'' if value is REQUIRED else literal(value)}"
            for name, value in {**self.fixed, **self.defaults}.items()
            if value != parameters[name].default
        ]
        for code in docstrings.examples(inspect.getdoc(entry) or ""):
            if all(setting in code for setting in mentioned):
                module, _, attribute = self.entry.partition(":")
                imports = (">>> import torch", ">>> from torch import nn", f">>> from {module} import {attribute}")
                return "\n".join([*imports, *(line for line in code.splitlines() if line not in imports)])
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
            >>> prune = find_method("blocks").bind(sparsity=0.75, pattern="8x1")
            >>> prune(nn.Linear(64, 32)).sparsity()
            0.75
        """
        known = {option.name: option for option in self.options}
        for name in options.keys() - known.keys():
            raise ValueError(self._not_an_option(name, list(known)))
        missing = [name for name, option in known.items() if option.default is REQUIRED and name not in options]
        if missing:
            raise ValueError(f"{self.name}: expected a value for {', '.join(missing)}")
        defaults = {name: value for name, value in self.defaults.items() if value is not REQUIRED}
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
            "options": [option.to_dict() for option in self.options],
            "example": self.example,
        }

    def _not_an_option(self, name: str, known: list[str]) -> str:
        if name in self.fixed:
            return f"{self.name} sets {name}={literal(self.fixed[name])} itself; leave it out"
        if name in self.unused:
            return f"{self.name} has no use for {name}; leave it out"
        if name in self.inputs:
            return f"{self.name}: {name} is no option but an input; give it to what bind() returns"
        return f"{self.name} has no option {name!r}{close_matches(name, known)}; it has {', '.join(known)}"


def methods(kind: str | None = None) -> tuple[Method, ...]:
    """List the methods, in the order of the table.

    Args:
        kind: Only methods of this kind.

    Raises:
        ValueError: There is no method of this kind.

    Example:
        >>> [method.name for method in methods("quantization")]
        ['int8-dynamic', 'int8-static']
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


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


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


_ZHU_GUPTA = "Zhu & Gupta, To prune, or not to prune: exploring the efficacy of pruning, arXiv 1710.01878, 2017"
_NARANG = (
    "Narang et al., Block-Sparse Recurrent Neural Networks, arXiv 1711.02782, 2017, where a block's largest weight "
    "counts, not the mean"
)
_JACOB = (
    "Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, "
    "CVPR 2018"
)

_TABLE = (
    Method(
        "magnitude",
        "pruning",
        "Zero the weights of smallest magnitude: per layer, over the whole model, or a share for each layer",
        "Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
    ),
    Method(
        "criterion",
        "pruning",
        "Zero the weights of lowest score, by a function of one's own (name, weight) -> scores",
        "own",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        defaults={"criterion": REQUIRED},
    ),
    Method(
        "n:m",
        "pruning",
        "Keep the N largest of every M neighbouring inputs: 2:4, 4:16, 8:16",
        "Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378, 2021",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
        unused=("sparsity", "scope"),
        defaults={"pattern": "2:4"},
    ),
    Method(
        "blocks",
        "pruning",
        "Zero whole blocks of neighbouring weights, those of smallest mean magnitude",
        _NARANG,
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
        defaults={"pattern": "4x1"},
    ),
    Method(
        "gradual",
        "pruning",
        "Raise the sparsity along a cubic curve while the model trains",
        _ZHU_GUPTA,
        "sparsecore.prune:GradualPruner",
        inputs=("model", "optimizer", "masks"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "int8-dynamic",
        "quantization",
        "int8 weights per output channel, activations scaled row by row as they come",
        _JACOB,
        "sparsecore.quantize:quantize",
        inputs=("model", "batches"),
        fixed={"activations": "dynamic"},
        unused=("observer",),
    ),
    Method(
        "int8-static",
        "quantization",
        "int8 weights per output channel, activations in ranges from calibration: min-max, percentile or least error",
        _JACOB,
        "sparsecore.quantize:quantize",
        inputs=("model", "batches"),
        needs=("data",),
        fixed={"activations": "static"},
    ),
)

_METHODS = {method.name: method for method in _TABLE}
