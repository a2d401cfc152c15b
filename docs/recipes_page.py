"""Writes recipes.md from the schema of recipes, the table of methods and the examples.

``python docs/recipes_page.py > docs/recipes.md``; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sparsecore.bench.text_table import Table
from sparsecore.methods import REQUIRED, literal
from sparsecore.train.recipe.schema import Named, Recipe, StrategyEntry
from sparsecore.train.strategies import (
    RecipeOption,
    Stage,
    Strategy,
    recipe_methods,
    recipe_options,
    strategy_class,
)

EXAMPLES = Path(__file__).parents[1] / "examples" / "recipes"

INTRODUCTION = """# Recipes

A recipe is a YAML file that says what is trained, and which compression methods work on it from which epoch to which.
`sparsecore compress recipe.yaml` runs it (extra `recipes`): it trains, compresses, compiles, measures and saves.
Written by `docs/recipes_page.py` from the schema, the table of [methods](methods.md) and
[the examples](../examples/recipes).

    sparsecore compress recipe.yaml --dry-run     # checks it, and tries every strategy on a copy of the model
    sparsecore compress recipe.yaml               # runs it; --output FOLDER, --json FILE, --threads N
    sparsecore compress recipe.yaml --resume      # goes on where a run was stopped
    torchrun --nproc-per-node 2 -m sparsecore compress recipe.yaml

What is wrong with a recipe is said in one line with file, line and column, exit code 2, before anything is trained or
written: unknown keys, values of a wrong type, strategies that cannot meet, names that do not exist in the model,
targets out of reach, a metric that is no number.
"""

AFTER_EXAMPLE = """
Functions are named as `"module:function"`; modules are found in the current folder and beside the recipe. With
arguments: `{name: "digits:train_data", split: 1}`. Numbers and words are those of YAML 1.2: `2:4` and `no` are text,
`1e-3` is a number.
"""

TIME = """## Epochs

A strategy begins before the epoch `start` and ends before the epoch `end`, both counted from 0; `epochs` is the end of
all training. Methods that work at once do so before `start`, and zeros stay zero from then on. Of what happens between
two epochs, teachers are copied first; then strategies end, then others begin, in the order of this table. What a later
row builds on has to be over when it begins, and two strategies of a row cannot work in the same epoch.
"""

STAGES = {
    Stage.TEACHER: "the loss; with anything else",
    Stage.LAYERS: "layers; cuts and replacements go into `report.json`, see below",
    Stage.CHANNELS: "channels and heads, cut out; the optimizer keeps the state of what stays",
    Stage.ZEROS: "zeros",
    Stage.VALUES: "values: few per weight or few bits; to the last epoch, one of them",
    Stage.RESULT: "int8 when all training is over; not with the row above",
}

REST = """## What a run leaves

In the output folder, which must hold no other run:

| file | holds |
| --- | --- |
| `model.safetensors` | the model, compiled for this machine unless `compile: false` |
| `report.*` (json, md, svg) | after each strategy: metric, parameters, non-zeros, multiply-adds, bytes, time of a run |
| `checkpoints/` | the last two |

```python
from sparsecore.train.compressor import load_result

model = load_result("digits-combined", digits.model)
```

`sc.load("digits-combined/model.safetensors", digits.model)` does so too where nothing but cuts of channels has
changed the architecture.

A run that was stopped, at any step and in any way, goes on with `--resume` to the same weights, to the last bit, on the
same machine with the same number of threads. A checkpoint holds the model, the optimizer's and scheduler's state,
random numbers, the place in the data and what every strategy needs; safetensors and JSON, with a checksum. One that is
damaged is skipped for the one before. One of another recipe, model, number of samples or of processes is refused.

Under torchrun each process sees its part of every batch and gradients are added up over all; BatchNorm's statistics
are those of a process's part, averaged. Cuts are decided by the first process; masks and weights are compared by their
hash after every change and every epoch, and a difference is an error. Only the first process writes.

## In Python

```python
compressor = sc.Compressor(model, "recipe.yaml", train_data=dataset, metric=accuracy, output="run")
compressed = compressor.run()  # or run(resume=True)
print(compressed.report)
fast = compressed.fast
```

The model is changed in place. What is given here takes the place of what the recipe names; the recipe may be a dict.
"""


def page() -> str:
    """Return the text of recipes.md."""
    example = (EXAMPLES / "combined.yaml").read_text(encoding="utf-8").rstrip()
    others = ",\n".join(f"[{path.stem}](../examples/recipes/{path.name})" for path in sorted(EXAMPLES.glob("*.yaml")))
    parts = [
        INTRODUCTION,
        "## An example\n",
        f"```yaml\n{example}\n```\n",
        f"[digits.py](../examples/recipes/digits.py) has its functions. All examples:\n{others}.",
        AFTER_EXAMPLE,
        "## Keys\n",
        _keys(Recipe) + "\n",
        "Of each of `strategies`:\n",
        _keys(StrategyEntry) + "\n",
        TIME,
        _stages() + "\n",
        "## Methods and their options\n",
        "What the options mean stands under the methods' names.\n",
        _methods() + "\n",
        "Beyond these, in recipes alone:\n",
        _further() + "\n",
        REST,
    ]
    return "\n".join(parts)


def _keys(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_shown(field.default)}`"
        rows.append((f"`{name}`", _kind(field.annotation, field.metadata), default, _cell(field.description or "")))
    return Table("", ("key", "value", "default", "meaning"), rows, names=4).markdown()


def _kind(annotation: Any, metadata: Iterable[Any]) -> str:
    text = str(annotation)
    if any("BeforeValidator" in str(entry) for entry in metadata) or "Call" in text or annotation is Named:
        return "name"
    if "StrategyEntry" in text:
        return "list"
    if "dict" in text:
        return "true, false or options"
    return "text" if "str" in text else "integer"


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return str(value.model_dump()["name"])
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _stages() -> str:
    rows = [
        (what, ", ".join(method.name for method in recipe_methods() if strategy_class(method).stage is stage))
        for stage, what in STAGES.items()
    ]
    return Table("", ("changes", "methods"), rows, names=2).markdown()


def _methods() -> str:
    rows = []
    for method in recipe_methods():
        kind = strategy_class(method)
        options = ", ".join(_option(option) for option in recipe_options(method, kind))
        rows.append((f"[{method.name}](methods.md#{_anchor(method.name)})", _when(kind), options))
    return Table("", ("method", "works", "options, with their defaults"), rows, names=3).markdown()


def _when(kind: type[Strategy]) -> str:
    if kind.must_last:
        return "from `start` to the last epoch"
    if kind.spans:
        return "from `start` to `end`"
    return "when all training is over" if kind.stage is Stage.RESULT else "at `start`"


def _option(option: RecipeOption) -> str:
    return f"`{option.name}` " + ("(required)" if option.default is REQUIRED else f"(`{literal(option.default)}`)")


def _further() -> str:
    """Options that a strategy has beyond its method's."""
    users: dict[RecipeOption, list[str]] = {}
    for method in recipe_methods():
        kind = strategy_class(method)
        names = {*kind.borrowed, *(option.name for option in kind.own)}
        for option in recipe_options(method, kind):
            if option.name in names:
                users.setdefault(option, []).append(method.name)
    cells = [(", ".join(names), f"`{option.name}`", _cell(option.description)) for option, names in users.items()]
    return Table("", ("of", "option", "meaning"), cells, names=3).markdown()


def _anchor(heading: str) -> str:
    return "".join(char for char in heading if char.isalnum() or char in "-_")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
