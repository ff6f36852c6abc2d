"""What the commands print with: tables and lines on standard output.

Whatever stands in the name of a file, a column or a key is shown and steers nothing: text is made
`printable` here, and by `error_stream` for what goes to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rowwise.cli.text import printable

_PIPE_WIDTH = 200  # without a terminal, nothing is cut off


class _Console(Console):
    """A console on which text is `printable`, but for line breaks before and behind it."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text with its style; all strings, those in tables too, go this way."""
        line = text.strip("\n")
        before, _, behind = text.partition(line) if line else (text, "", "")
        return super().render_str(f"{before}{printable(line)}{behind}", **options)


def console() -> Console:
    """Return a console on what standard output is now; long lines are the reader's to wrap."""
    quiet = not is_first_rank()
    made = _Console(highlight=False, soft_wrap=True, quiet=quiet)
    if made.is_terminal:
        return made
    return _Console(highlight=False, soft_wrap=True, width=_PIPE_WIDTH, quiet=quiet)


def is_first_rank() -> bool:
    """Return whether this process is the one that speaks: the first, of those that torchrun has started."""
    return int(os.environ.get("RANK", "0")) == 0


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> Table:
    """Return a table: the first column to the left, the others to the right if they are numbers.

    In a table without numbers the last column is prose, and wraps.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for position, name in enumerate(head):
        right, prose = numbers and position > 0, not numbers and position == len(head) - 1
        drawn.add_column(escape(name), justify="right" if right else "left", no_wrap=not prose)
    for row in rows:
        drawn.add_row(*(escape(printable(cell)) for cell in row))
    return drawn
