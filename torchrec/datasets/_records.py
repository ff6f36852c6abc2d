"""Which line ends of text end a record, where quotes may enclose line ends, and may as well mean inches."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Positions = np.ndarray[Any, np.dtype[np.intp]]

_QUOTE, _LINE = ord('"'), ord("\n")
_CLOSED = re.compile(rb'"[^"]*(?:""[^"]*)*"(?!")')
_NUMBER = re.compile(rb"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*")
_ENOUGH = 4  # delimiters in their places, by which lines between quotes are told to be records
_MOST_LINES = 1000


class RecordForm(NamedTuple):
    """How records are written.

    Attributes:
        delimiter: between fields.
        columns: how many fields a record has.
        header: the first line, where it names the columns; it is skipped where it comes again, as in
            files that were put one behind the other.
        has_quotes: whether a quote may enclose a field.
        skips_bad: whether records that have more or fewer fields are left out.
        encoding: that the text has to be recoded from; None: it is UTF-8.
    """

    delimiter: bytes
    columns: int
    header: bytes = b""
    has_quotes: bool = True
    skips_bad: bool = False
    encoding: str | None = None


class Records(NamedTuple):
    """Text as records.

    Attributes:
        ends: positions of the line ends that end a record.
        literal: fields that begin with a quote which does not enclose them: where they start and end.
    """

    ends: Positions
    literal: list[tuple[int, int]]


def find_records(data: bytes, form: RecordForm, whole: bool = False) -> Records:
    r"""Find the ends of records in text that starts with one.

    A quote at the start of a field encloses what follows, up to a quote at the end of a field; any
    other quote is a character like others. So is one that would enclose lines which are records by
    themselves: a title that begins with a quote, and somewhere below one that ends with it.

    Args:
        data: whole records, but for the last.
        form: how they are written.
        whole: whether the last is whole as well, so that a quote that nothing closes encloses nothing.
            Default False.

    Example:
        >>> find_records(b'1,24" wide\n2,"two\nlines"\n', RecordForm(b",", 2)).ends
        array([10, 24])
    """
    text = np.frombuffer(data, np.uint8)
    lines = np.flatnonzero(text == _LINE)
    if not form.has_quotes or b'"' not in data:
        return Records(lines, [])
    quotes = np.flatnonzero(text == _QUOTE)
    if _all_enclose(text, quotes, ord(form.delimiter)):
        inside = np.searchsorted(quotes, lines) % 2 == 1
        if not inside.any():
            return Records(lines, [])
    return _one_by_one(data, lines, form, whole)


def _all_enclose(text: np.ndarray[Any, Any], quotes: Positions, delimiter: int) -> bool:
    """Say whether quotes begin and end fields, two by two, but for those that stand twice."""
    ends = np.zeros(256, np.bool_)
    ends[[delimiter, _LINE, ord("\r")]] = True
    opening, closing = quotes[::2], quotes[1::2]
    starts = ends[text[np.maximum(opening - 1, 0)]] | (opening == 0)
    starts[1:] |= opening[1:] == closing[: len(opening) - 1] + 1
    stops = ends[text[np.minimum(closing + 1, len(text) - 1)]] | (closing == len(text) - 1)
    stops[: len(opening) - 1] |= opening[1:] == closing[: len(opening) - 1] + 1
    return bool(starts.all() and stops.all())


def _one_by_one(data: bytes, lines: Positions, form: RecordForm, whole: bool) -> Records:
    opening, field_end = _patterns(form.delimiter)
    enclosed = np.zeros(len(lines), np.bool_)
    literal: list[tuple[int, int]] = []
    found = opening.search(data)
    while found:
        start = found.start()
        closed = _CLOSED.match(data, start)
        end = closed.end() if closed else len(data)
        has_lines = data.find(b"\n", start, end) >= 0
        if closed and field_end.match(data, end):
            encloses = not (has_lines and _are_records(data, start, end, form))
        elif (
            closed
        ):  # "a"b, which is read as ab where there is no other way to have the delimiter in it
            encloses = not has_lines and data.find(form.delimiter, start, end) >= 0
        else:
            encloses = not (whole or _are_records(data, start, end, form))
        if encloses:
            enclosed[np.searchsorted(lines, start) : np.searchsorted(lines, end)] = has_lines
        else:
            stop = field_end.search(data, start)
            end = stop.start() if stop else len(data)
            literal.append((start, end))
        found = opening.search(data, end)
    return Records(lines[~enclosed], literal)


@lru_cache(16)
def _patterns(delimiter: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return how a field opens with a quote, and how a field ends."""
    of = re.escape(delimiter)
    return re.compile(rb'(?<![^%b\r\n])"' % of), re.compile(rb" *(?:[%b\r\n]|\Z)" % of)


def _are_records(data: bytes, start: int, end: int, form: RecordForm) -> bool:
    """Say whether the lines between two places are whole records, whatever quotes are in them.

    They are if most of them have as many fields as a record, with numbers where the line has some in
    which the quote is.
    """
    first = data.rfind(b"\n", 0, start) + 1
    last = data.find(b"\n", end)
    lines = data[first : last if last >= 0 else data.rfind(b"\n") + 1].split(b"\n", _MOST_LINES)
    rows = [line.split(form.delimiter) for line in lines[:_MOST_LINES] if line]
    if not rows or len(rows[0]) != form.columns or (len(rows) - 1) * (form.columns - 1) < _ENOUGH:
        return False
    numbers = [place for place, field in enumerate(rows[0]) if _NUMBER.fullmatch(field)]
    alike = [
        len(row) == form.columns and all(_NUMBER.fullmatch(row[place]) for place in numbers)
        for row in rows
    ]
    return sum(alike) >= 0.8 * len(rows)


def written_plainly(data: bytes, records: Records) -> bytes:
    """Return text in which quotes at the start of a field enclose it: others stand twice, in quotes."""
    if not records.literal:
        return data
    pieces, at = [], 0
    for start, end in records.literal:
        pieces += [data[at:start], b'"', data[start:end].replace(b'"', b'""'), b'"']
        at = end
    return b"".join([*pieces, data[at:]])


def count_records(data: bytes, records: Records) -> int:
    """Count the records; as to the parser, empty lines are none.

    Splits go by the number of a row, so it must not depend on how a file is cut to blocks.
    """
    ends = np.append(records.ends, len(data))
    sizes = np.diff(ends, prepend=-1) - 1
    single = np.frombuffer(data, np.uint8)[ends[sizes == 1] - 1]
    return int(np.count_nonzero(sizes)) - int(np.count_nonzero(single == ord("\r")))


def longest_record(data: bytes, records: Records) -> tuple[int, int]:
    r"""Return the number of the record that spans the most lines, and how many these are.

    Example:
        >>> data = b'1,2\n3,"a\nb\nc"\n5,6\n'
        >>> longest_record(data, find_records(data, RecordForm(b",", 2)))
        (1, 3)
    """
    if len(records.ends) == 0 or data.count(b"\n") == len(records.ends):
        return 0, min(1, len(records.ends))
    lines = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE)
    spans = np.diff(np.searchsorted(lines, records.ends), prepend=-1)
    longest = int(spans.argmax())
    return longest, int(spans[longest])


def without_headers(data: bytes, header: bytes) -> tuple[bytes, int]:
    r"""Return text without lines that repeat the header, and how many they were.

    Example:
        >>> without_headers(b"1,2\na,b\n3,4\n", b"a,b")
        (b'1,2\n3,4\n', 1)
    """
    if not header or header not in data:
        return data, 0
    return re.subn(rb"(?m)^%b\r?(?:\n|\Z)" % re.escape(header), b"", data)
