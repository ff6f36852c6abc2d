"""How text files are laid out, found out from their names and first lines: delimiter, and names of columns."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import pyarrow as pa

from torchrec.datasets._blocks import open_text
from torchrec.datasets._chunks import unreadable
from torchrec.datasets.files import DataFile, suffixes_of
from torchrec.datasets.headers import delimiter_of
from torchrec.datasets.prepare.criteo import COLUMNS as CRITEO
from torchrec.datasets.text_dialect import recoded_from

_FIRST_BYTES, _FIRST_ROWS = 1 << 16, 50
_FIT = 0.9  # of these, as many as should have as many fields as the first: titles hold anything
_DELIMITERS = ("::", "\t", ";", "|", ",")
_VALUE = re.compile(r"\s*[-+]?[0-9.]*[0-9][0-9.,:/TZ eE+-]*\s*")  # a number, a date, a time
_HEX = re.compile(r"[0-9a-f]{8}|")

Rows = Sequence[Sequence[str]]


class Layout(NamedTuple):
    """How a text file is laid out.

    Attributes:
        delimiter: between columns; None if it is that of the format.
        columns: names of the columns where no header names them.
        notice: what was assumed, in a sentence; "" if nothing was.
    """

    delimiter: str | None
    columns: list[str] | None
    notice: str = ""


class _Known(NamedTuple):
    what: str
    name: re.Pattern[str]
    delimiter: str
    columns: list[str]


_RATINGS = ["user_id", "item_id", "rating", "timestamp"]
_KNOWN = [
    _Known("MovieLens 100K", re.compile(r"u\.data|u[1-5ab]\.(base|test)"), "\t", _RATINGS),
    _Known("MovieLens", re.compile(r"ratings\.dat"), "::", _RATINGS),
]


def find_layout(
    file: DataFile,
    delimiter: str | None = None,
    columns: Sequence[str] | None = None,
    read: Collection[str] = (),
    encoding: str = "utf-8",
) -> Layout:
    r"""Find out how a text file is laid out, as far as nothing is given.

    Ratings of MovieLens and rows of Criteo are known. In other files the delimiter is that which makes
    as many columns of each of the first lines, and they have no header if the first line has a number or a date
    above others, and a name above none; their columns are then c1, c2 and so on.

    Args:
        file: of text.
        delimiter: between columns. Default: found out.
        columns: names, if there is no header. Default: found out whether there is.
        read: names of columns that will be read: a first line that has them all is a header.
        encoding: of the characters. Default ``"utf-8"``.

    Raises:
        ValueError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "u.data")
        ...     _ = path.write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
        ...     layout = find_layout(DataFile(str(path), "csv"))
        >>> layout.delimiter, layout.columns
        ('\t', ['user_id', 'item_id', 'rating', 'timestamp'])
    """
    name, text = os.path.basename(file.path), _first_lines(file, recoded_from(encoding))
    chosen = delimiter or _delimiter(file, text, None if columns is None else len(columns))
    found = None if delimiter or chosen == delimiter_of(file.format) else chosen
    rows = _rows(text, chosen)
    if columns is not None or not rows or (read and set(read) <= set(rows[0])):
        return Layout(found, None if columns is None else list(columns))
    if not _lacks_header(rows):
        return Layout(found, None)
    for known in _KNOWN:
        if known.name.fullmatch(name) and (chosen, len(rows[0])) == (known.delimiter, 4):
            names = known.columns
            notice = (
                f"'{name}' is read as ratings of {known.what}: its columns are {', '.join(names)}."
            )
            return Layout(found, names, notice)
    if chosen == "\t" and all(map(_is_criteo, rows)):
        notice = f"'{name}' is read as Criteo's: its columns are label, int_1 to int_13, cat_1 to cat_26."
        return Layout(found, list(CRITEO), notice)
    names = [f"c{i}" for i in range(1, len(rows[0]) + 1)]
    notice = (
        f"'{name}' seems to have no header: its columns are named by position, {names[0]} to {names[-1]}. "
        "Others are given with `--columns a,b,c`."
    )
    return Layout(found, names, notice)


def _first_lines(file: DataFile, encoding: str | None) -> str:
    """Return the first lines, whole."""
    try:
        with open_text(file, encoding=encoding) as stream:
            start: bytes = stream.read(_FIRST_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
    if len(start) == _FIRST_BYTES:
        start = start[: start.rfind(b"\n") + 1] or start
    return start.decode("utf-8-sig", "replace")


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """Return the fields of the first lines."""
    lines = text.splitlines()[:_FIRST_ROWS]
    if len(delimiter) > 1:
        return [line.split(delimiter) for line in lines if line]
    try:
        return [
            row for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter) if row
        ]
    except csv.Error:  # a quote that nothing closes
        return [line.split(delimiter) for line in lines if line]


def _delimiter(file: DataFile, text: str, columns: int | None) -> str:
    """Return what makes as many fields of each line: most of them, or as many as there should be."""
    usual = delimiter_of(file.format)
    candidates = [usual, *(one for one in _DELIMITERS if one != usual)]
    if columns is None:
        fields = {one: _fields(_rows(text, one)) for one in candidates}
        if max(fields.values()) == 1 and suffixes_of(file.path)[0] is None:
            fields[" "] = _fields(_rows(text, " "))
        return max(fields, key=fields.__getitem__)
    fitting = [one for one in candidates if len((_rows(text, one) or [[]])[0]) == columns]
    return fitting[0] if fitting else usual


def _fields(rows: Rows) -> int:
    """Return how many fields the lines have; 1 if they differ in that."""
    if not rows:
        return 1
    same = sum(len(row) == len(rows[0]) for row in rows)
    return len(rows[0]) if same >= _FIT * len(rows) else 1


def _lacks_header(rows: Rows) -> bool:
    first, *others = rows
    above_values = [
        _VALUE.fullmatch(cell) is not None
        for cell, below in zip(first, zip(*others, strict=False), strict=False)
        if cell.strip() and any(map(str.strip, below)) and all(map(_is_value, below))
    ]
    if above_values:
        return all(above_values)
    return not others and any(map(_VALUE.fullmatch, first))


def _is_value(cell: str) -> bool:
    return not cell.strip() or _VALUE.fullmatch(cell) is not None


def _is_criteo(row: Sequence[str]) -> bool:
    label, numbers, ids = row[0], row[1:14], row[14:]
    if len(row) != len(CRITEO) or label not in ("0", "1"):
        return False
    return all(map(_is_value, numbers)) and all(map(_HEX.fullmatch, ids))
