"""What the commands print with: tables and lines on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Return a console on what standard output is now; long lines are the reader's to wrap."""
    return Console(highlight=False, soft_wrap=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table: names to the left, numbers to the right."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for position, name in enumerate(head):
        drawn.add_column(name, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn
