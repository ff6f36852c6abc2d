"""Text files as bytes: opened at any place, and cut at ends of records into blocks that any thread may parse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from torchrec.datasets._chunks import CHUNK_BYTES, unreadable
from torchrec.datasets._records import (
    Dialect,
    count_records,
    find_records,
    without_headers,
    written_plainly,
)
from torchrec.datasets.files import DataFile

LONGEST_RECORD = 1 << 26
"""Most bytes of a record; a file with more in one is taken for none of text."""


def open_text(file: DataFile, byte: int = 0) -> Any:
    """Open a file at a byte of what it holds, decompressed; of compressed data what is before it has to be read."""
    if file.compression is None:
        stream = open(file.path, "rb")  # noqa: SIM115
        stream.seek(byte)
        return stream
    stream = pa.input_stream(file.path, compression=file.compression)
    while byte > 0:
        byte -= len(stream.read(min(byte, CHUNK_BYTES))) or byte
    return stream


# What the parser is told to stand between fields, where files have several characters.
SEPARATOR = "\x1f"


class Block(NamedTuple):
    """Whole records of a file, as the parser takes them.

    Attributes:
        byte: of the file, where the first of them starts.
        row: its number.
        rows: how many they are.
        data: their text.
        headers: lines that repeated the header, and are left out.
    """

    byte: int
    row: int
    rows: int
    data: bytes
    headers: int = 0


def blocks(file: DataFile, byte: int, row: int, size: int, dialect: Dialect) -> Iterator[Block]:
    """Cut a file into blocks, from a place where a record starts.

    Args:
        file: of text.
        byte: where the first record starts.
        row: its number in the file.
        size: of a block, about, in bytes.
        dialect: how records are written.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with open_text(file, byte) as stream:
            rest, wanted, ended = b"", size, False
            while not ended:
                more = stream.read(wanted - len(rest))
                ended = not more
                rest = rest + more if rest else more
                if len(rest) < wanted and not ended:
                    continue
                # Where a block ends depends on where it starts alone, so that reading can go on there.
                end = len(rest) if ended else _end_of_records(rest, size, dialect)
                if end == 0 and len(rest) > LONGEST_RECORD:
                    raise pa.ArrowInvalid(f"a line of more than {LONGEST_RECORD} bytes")
                wanted = size if end else wanted + size
                data, rest = rest[:end], rest[end:]
                if data:
                    block = _block(byte, row, data, dialect)
                    if block.data:
                        yield block
                    byte, row = byte + len(data), row + block.rows
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _block(byte: int, row: int, data: bytes, dialect: Dialect) -> Block:
    data, headers = without_headers(data, dialect.header)
    records = find_records(data, dialect, whole=True)
    rows = count_records(data, records)
    data = written_plainly(data, records)
    if len(dialect.delimiter) > 1:
        data = data.replace(dialect.delimiter, SEPARATOR.encode())
    return Block(byte, row, rows, data, headers)


def _end_of_records(data: bytes, size: int, dialect: Dialect) -> int:
    """Return where the last whole record of a block ends that starts with a record; 0 if none does."""
    last = data.rfind(b"\n")
    if last < 0 or data.find(b'"') < 0:
        return last + 1
    ends = find_records(data, dialect).ends
    if len(ends):
        return int(ends[-1]) + 1
    # One enormous value.
    return last + 1 if len(data) > 4 * size else 0
