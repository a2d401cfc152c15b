"""``sparsecore methods``: what there is to compress a model with, and with which options."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sparsecore.bench import tables
from sparsecore.bench.text_table import Table
from sparsecore.cli.common import json_option, show, write_json
from sparsecore.methods import REQUIRED, Method, find_method, literal
from sparsecore.methods import methods as list_methods


@click.command()
@click.argument("name", required=False)
@click.option("--kind", help="Only methods of this kind, such as pruning.")
@json_option
def methods(name: str | None, kind: str | None, json_file: str | None) -> None:
    """List every compression method, or the options of the one called NAME."""
    try:
        if name is not None and kind is not None:
            raise ValueError("expected NAME or --kind, got both")
        chosen = list_methods(kind) if name is None else (find_method(name),)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if write_json({"methods": [method.to_dict() for method in chosen]}, json_file):
        if name is None:
            show(_overview(chosen).rich(), "`sparsecore methods NAME` shows the options of a method.")
        else:
            _show_details(chosen[0])


def _overview(chosen: Sequence[Method]) -> Table:
    rows = [(row.name, row.kind, ", ".join(row.needs) or "nothing", row.summary, row.reference) for row in chosen]
    return Table("Methods", ("method", "kind", "needs", "summary", "reference"), rows, names=5)


def _show_details(method: Method) -> None:
    facts = {
        "summary": method.summary,
        "kind": method.kind,
        "needs": ", ".join(method.needs) or "nothing",
        "reference": method.reference,
        "code": method.entry,
        "inputs": ", ".join(method.inputs),
        "sets": ", ".join(method.settings) or None,
    }
    rows = [
        (option.name, "required" if option.default is REQUIRED else literal(option.default), option.description)
        for option in method.options
    ]
    show(
        f"{method.name}\n",
        tables.facts(facts),
        Table("\nOptions", ("option", "default", "meaning"), rows, names=3).rich(),
        f"Example\n\n{method.example}",
    )
