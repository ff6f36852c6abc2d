"""The first line of a text file: names of columns, what stands between them, and whether it is one."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from torchrec.datasets._blocks import LONGEST_RECORD, open_text, wrongly_encoded
from torchrec.datasets._chunks import unreadable
from torchrec.datasets.data_error import DataError
from torchrec.datasets.files import DataFile, Format
from torchrec.datasets.text_dialect import Quote

_HEADER_BYTES = 1 << 16  # read at once in search of the end of a header
_ENCODING_BYTES = 1 << 22
_NOT_WINDOWS = frozenset(b"\x81\x8d\x8f\x90\x9d")
_NUMBER = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?\s*")


def delimiter_of(format: Format) -> str:
    """Return what stands between the columns of files of a format, if nothing else is said."""
    return "\t" if format == "tsv" else ","


def looks_like_data(names: Sequence[str]) -> bool:
    """Say whether the first line of a file may be no header: numbers are among its names."""
    return any(_NUMBER.fullmatch(name) for name in names)


def not_utf8(data: bytes) -> str:
    """Say which byte of a text file is no UTF-8, and what it would be in the encoding that is likely.

    Args:
        data: some of the file, with such a byte.

    Example:
        >>> not_utf8("Café".encode("iso-8859-1"))
        "byte 0xe9 ('é' in cp1252)"
        >>> not_utf8("Café".encode("utf-16"))
        'utf-16'
    """
    encoding = encoding_of(data)
    if encoding.startswith("utf-16"):
        return encoding
    escaped = data.decode(errors="surrogateescape")
    byte = next(ord(one) & 0xFF for one in escaped if "\udc80" <= one <= "\udcff")
    return f"byte {byte:#x} ('{bytes([byte]).decode(encoding, 'replace')}' in {encoding})"


def encoding_of(data: bytes) -> str:
    """Return the encoding that some of a text file is likely to be in.

    UTF-16 is told by its mark, or by the zeros between Latin letters. What is no UTF-8 either is taken
    for that of Windows in Western Europe, which has all characters of ISO-8859-1: a guess.

    Example:
        >>> [encoding_of("id,Café".encode(name)) for name in ("utf-8", "latin-1", "utf-16", "utf-16-le")]
        ['utf-8', 'cp1252', 'utf-16', 'utf-16-le']
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if data.count(0) > len(data) / 8:
        return "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    try:
        data.decode()
    except UnicodeDecodeError:
        # Bytes that stand for nothing there are control characters in ISO-8859-1.
        return "latin-1" if set(data) & _NOT_WINDOWS else "cp1252"
    return "utf-8"


def find_encoding(file: DataFile, most: int = 1 << 26) -> str:
    """Return the encoding that a text file is likely to be in.

    Args:
        file: of text.
        most: bytes to look at, from the start. Default 64 MiB.

    Raises:
        ValueError: the file cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_text(file) as stream:
            data = stream.read(_ENCODING_BYTES)
            # Whole lines: the piece may end within a character.
            found = encoding_of(data[: data.rfind(b"\n") + 1] or data)
            while found == "utf-8" and data and most > 0:
                decoder.decode(data)
                most -= len(data)
                data = stream.read(_ENCODING_BYTES)
            return found
    except UnicodeDecodeError:
        return encoding_of(data)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def check_header(names: list[str], file: DataFile, delimiter: str) -> None:
    """Refuse a first line that is no header, or has its columns separated by something else."""
    for other in ";\t|,":
        if len(names) == 1 and other != delimiter and other in names[0]:
            raise DataError(
                f"Columns of '{file.path}' should be separated by {json.dumps(delimiter)}. Received a "
                f"header with {json.dumps(other)} instead; a trained model wants files as its training "
                "data.",
                {"delimiter": json.dumps(other)},
            )
    if len(set(names)) < len(names) and looks_like_data(names):
        raise DataError(
            f"Data file '{file.path}' should begin with the names of its columns. Received "
            f"'{delimiter.join(names)[:100]}': files without such a line should have them named.",
            {"columns": ""},
        )


def read_header(file: DataFile, encoding: str | None = None) -> tuple[str, int]:
    """Return the first line, and its length in bytes of UTF-8.

    Args:
        file: of text.
        encoding: that it has to be recoded from. Default: none, it is UTF-8.
    """
    try:
        with open_text(file, encoding=encoding) as stream:
            line = _first_line(stream)
        return line.decode("utf-8-sig").rstrip("\r\n"), len(line)
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise wrongly_encoded(file, error) from error
        raise DataError(
            f"The header of '{file.path}' should be UTF-8. Received {not_utf8(line)}.",
            {"encoding": encoding_of(line)},
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def split_header(line: str, file: DataFile, delimiter: str, quote: Quote = '"') -> list[str]:
    """Return the names in a first line."""
    if len(delimiter) > 1 or quote == "none":
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:  # such as line ends of old, or a column name of a page
        received = "lines that end in a carriage return" if "\r" in line else f"none: {error}"
        raise ValueError(
            f"The header of '{file.path}' should be a line of names that ends in a line feed. "
            f"Received {received}."
        ) from error


def _first_line(stream: Any) -> bytes:
    line = b""
    while b"\n" not in line and len(line) <= LONGEST_RECORD:
        more = stream.read(_HEADER_BYTES)
        if not more:
            return line
        line += more
    return line[: line.find(b"\n") + 1]
