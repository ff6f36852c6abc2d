"""What the commands print with: tables and lines on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPE_WIDTH = 200  # without a terminal, nothing is cut off


def console() -> Console:
    """Return a console on what standard output is now; long lines are the reader's to wrap."""
    made = Console(highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(highlight=False, soft_wrap=True, width=_PIPE_WIDTH)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> Table:
    """Return a table: the first column to the left, the others to the right if they are numbers.

    In a table without numbers the last column is prose, and wraps.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for position, name in enumerate(head):
        right, prose = numbers and position > 0, not numbers and position == len(head) - 1
        drawn.add_column(name, justify="right" if right else "left", no_wrap=not prose)
    for row in rows:
        drawn.add_row(*map(escape, row))
    return drawn
