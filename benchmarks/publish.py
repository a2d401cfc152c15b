"""How a script gives its report: printed as Markdown, and written where its arguments say."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_file_options(parser: ArgumentParser) -> None:
    """Add ``--json`` and ``--markdown``."""
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)


def publish(report: Mapping[str, Any], text: str, arguments: Namespace) -> None:
    """Print the text; write the report and the text to the files that were asked for."""
    print(text)
    write_files(report, text, arguments)


def write_files(report: Mapping[str, Any], text: str, arguments: Namespace) -> None:
    """Write the report and the text to the files that were asked for."""
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(text)
