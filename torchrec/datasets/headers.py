"""The first line of a text file: names of columns, what stands between them, and whether it is one."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from torchrec.datasets._blocks import LONGEST_RECORD, open_text
from torchrec.datasets._chunks import unreadable
from torchrec.datasets.data_error import DataError
from torchrec.datasets.files import DataFile, Format

_HEADER_BYTES = 1 << 16  # read at once in search of the end of a header
_NUMBER = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?\s*")


def delimiter_of(format: Format) -> str:
    """Return what stands between the columns of files of a format, if nothing else is said."""
    return "\t" if format == "tsv" else ","


def looks_like_data(names: Sequence[str]) -> bool:
    """Say whether the first line of a file may be no header: numbers are among its names."""
    return any(_NUMBER.fullmatch(name) for name in names)


def not_utf8(data: bytes) -> str:
    """Say which byte of a text file is no UTF-8, and how to convert a file that has it.

    Args:
        data: some of the file, with such a byte.

    Example:
        >>> not_utf8("Café".encode("iso-8859-1"))
        "byte 0xe9 ('é' in ISO-8859-1): convert the file, as by `iconv -f ISO-8859-1 -t UTF-8`"
        >>> not_utf8("Café".encode("utf-16"))
        'UTF-16: convert the file, as by `iconv -f UTF-16 -t UTF-8`'
    """
    received = encoding = "UTF-16"
    if b"\0" not in data:
        escaped = data.decode(errors="surrogateescape")
        byte = next(ord(one) & 0xFF for one in escaped if "\udc80" <= one <= "\udcff")
        # Bytes that ISO-8859-1 leaves to control characters are letters and signs to Windows.
        encoding = "ISO-8859-1" if byte >= 0xA0 else "WINDOWS-1252"
        received = f"byte {byte:#x} ('{bytes([byte]).decode(encoding, 'replace')}' in {encoding})"
    return f"{received}: convert the file, as by `iconv -f {encoding} -t UTF-8`"


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


def read_header(file: DataFile) -> tuple[str, int]:
    """Return the first line, and its length in bytes."""
    try:
        with open_text(file) as stream:
            line = _first_line(stream)
        return line.decode("utf-8-sig").rstrip("\r\n"), len(line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The header of '{file.path}' should be UTF-8. Received {not_utf8(line)}."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def split_header(line: str, file: DataFile, delimiter: str) -> list[str]:
    """Return the names in a first line."""
    if len(delimiter) > 1:
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
