"""What was odd about text while it was read: lines that were left out, and values that swallow lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchrec.datasets._blocks import Block
    from torchrec.datasets.files import DataFile

_LONG = 50  # lines of a record, from which on a quote may be none that encloses


class _Odd(NamedTuple):
    headers: int
    bad: int
    lines: int
    row: int


class Oddities:
    """What was odd about the blocks of some files; however often these are read, each counts once.

    Args:
        files: that are read.
    """

    def __init__(self, files: list[DataFile]) -> None:
        self._files = files
        self._found: dict[tuple[int, int], _Odd] = {}

    def add(self, number: int, block: Block) -> None:
        """Take a block of a file into account."""
        row, lines = block.longest
        if block.headers or block.bad or lines >= _LONG:
            odd = _Odd(block.headers, block.bad, lines, block.row + row)
            self._found[number, block.byte] = odd

    @property
    def notices(self) -> list[str]:
        """What a person should know, a sentence for each kind of each file."""
        told = []
        for number, file in enumerate(self._files):
            found = [odd for (one, _), odd in self._found.items() if one == number]
            headers, bad = sum(odd.headers for odd in found), sum(odd.bad for odd in found)
            if headers:
                told.append(
                    f"Lines of '{file.path}' that repeat its header: {headers:,}, left out."
                )
            if bad:
                told.append(
                    f"Lines of '{file.path}' with more or fewer fields than there are columns: {bad:,}, "
                    "skipped."
                )
            longest = max(found, key=lambda odd: odd.lines, default=None)
            if longest is not None and longest.lines >= _LONG:
                told.append(
                    f"'{file.path}': one value, in row {longest.row + 1:,}, spans {longest.lines:,} "
                    "lines. A quote that encloses nothing may be the cause."
                )
        return told
