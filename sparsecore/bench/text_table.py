"""A table of text, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first columns are names, the others figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    def markdown(self) -> str:
        """The table without its title."""
        rule = ["---"] * self.names + ["---:"] * (len(self.headings) - self.names)
        lines = (self.headings, rule, *self.rows)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> Any:
        """A table for ``rich``."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if i < self.names else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def count_threads(threads: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{threads} thread{'s' if threads > 1 else ''}"
