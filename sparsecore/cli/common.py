"""What all commands share: errors in one line, options, JSON, printing, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sparsecore.bench import progress
from sparsecore.errors import SparsecoreError

# Exit code of a run that was interrupted but kept what it had: 128 + SIGINT.
INTERRUPTED = 130
# For output that goes into a file or a pipe, where nothing tells a width.
PIPE_COLUMNS = 120


class OneLineErrors(click.Group):
    """A group whose errors are one line that names the way out, with exit code 2."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        options["standalone_mode"] = False
        try:
            sys.exit(super().main(arguments, *rest, **options) or 0)
        except click.exceptions.Abort:
            click.echo("stopped", err=True)
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            way_out = f"; see {context.command_path} --help" if context else ""
            _fail(error.format_message().rstrip(".") + way_out)
        except (SparsecoreError, OSError) as error:
            _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


class Finite(click.FloatRange):
    """A FloatRange that takes no NaN and no infinity, which compare as if they were in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value}", param, ctx)
        return number


class JsonFile(click.Path):
    """A file to write, or - for stdout; a missing folder is noticed before the work, not after."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        folder = Path(value).parent
        if not folder.is_dir():
            self.fail(f"folder {folder} does not exist", param, ctx)
        return super().convert(value, param, ctx)


json_option = click.option(
    "--json", "json_file", type=JsonFile(), help="Write the result as JSON to FILE; - is stdout."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads to compute with [default: torch's]."
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all randomness."
)


def write_json(result: Mapping[str, Any], json_file: str | None) -> bool:
    """Write the result if there is a file for it; return whether stdout is left for tables."""
    text = json.dumps(result, indent=2)
    if json_file == "-":
        click.echo(text)
    elif json_file:
        Path(json_file).write_text(f"{text}\n", encoding="utf-8")
    return json_file != "-"


def show(*parts: Any) -> None:
    """Print tables and text on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)


@contextmanager
def progress_on_stderr() -> Iterator[progress.Progress]:
    """Bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress.lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, share: float) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=1.0)
            bars.update(tasks[step], completed=share)

        yield report


def stop_incomplete() -> NoReturn:
    """End a command whose report was written but is not complete."""
    click.echo("stopped: the report holds what was measured until then", err=True)
    raise SystemExit(INTERRUPTED)
