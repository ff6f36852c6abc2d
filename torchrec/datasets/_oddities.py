"""What was odd about text while it was read: lines that were left out, and values that swallow lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchrec.datasets.files import DataFile

_KEY = "rowwise.notices"

LONG = 50
"""Lines of a record, from which on a quote may be none that encloses."""


class Oddity(NamedTuple):
    """What was odd about some text.

    Attributes:
        headers: lines that repeated the header, and are left out.
        bad: records with more or fewer fields than there are columns, left out as well.
        row: number of the record, in the file, that spans the most lines.
        lines: how many these are.
    """

    headers: int
    bad: int
    row: int
    lines: int


def notices_of(files: Sequence[DataFile], found: Mapping[tuple[int, int], Oddity]) -> list[str]:
    """Return what a person should know of files, a sentence for each kind of oddity of each file.

    Args:
        files: that have been read.
        found: what was odd, by the number of the file and the byte where the text starts.
    """
    notices: list[str] = []
    for number in sorted({number for number, _ in found}):
        path = files[number].path
        of_file = [odd for (one, _), odd in found.items() if one == number]
        headers, bad = sum(odd.headers for odd in of_file), sum(odd.bad for odd in of_file)
        if headers:
            notices.append(f"Lines of '{path}' that repeat its header: {headers:,}, left out.")
        if bad:
            notices.append(
                f"Lines of '{path}' with more or fewer fields than there are columns: {bad:,}, skipped."
            )
        longest = max(of_file, key=lambda odd: odd.lines)
        if longest.lines >= LONG:
            notices.append(
                f"'{path}': one value, in row {longest.row + 1:,}, spans {longest.lines:,} lines. "
                "A quote that encloses nothing may be the cause."
            )
    return notices


def described(notices: Sequence[str]) -> dict[str, str]:
    """Return what a Parquet file says, in its key-value metadata, of the text that it was made of."""
    return {_KEY: json.dumps(list(notices))} if notices else {}


def told_by(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Return the notices that a Parquet file carries."""
    told: list[str] = json.loads((metadata or {}).get(_KEY.encode(), b"[]"))
    return told
