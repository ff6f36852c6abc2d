"""What goes to standard error while a command runs: its error line, warnings, logs, tracebacks."""

from __future__ import annotations

import io
from typing import TextIO

from rowwise.cli.text import printable


class PrintableStream(io.TextIOBase):
    """A stream on another one that writes text as `printable` lines.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; tabs and line breaks stay."""
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def flush(self) -> None:
        """Flush the stream beneath."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Tell whether the stream beneath is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the number of the file beneath."""
        return self._stream.fileno()
