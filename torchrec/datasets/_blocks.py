"""Text files as bytes: opened at any place, and cut at ends of records into blocks that any thread may parse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from torchrec.datasets._chunks import CHUNK_BYTES, unreadable
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


class Block(NamedTuple):
    """Whole records of a file, as bytes: at which byte and which row the first is, and how many rows."""

    byte: int
    row: int
    rows: int
    data: bytes


def blocks(file: DataFile, byte: int, row: int, size: int) -> Iterator[Block]:
    """Cut a file into blocks, from a place where a record starts.

    Args:
        file: of text.
        byte: where the first record starts.
        row: its number in the file.
        size: of a block, about, in bytes.

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
                end = len(rest) if ended else _end_of_records(rest, size)
                if end == 0 and len(rest) > LONGEST_RECORD:
                    raise pa.ArrowInvalid(f"a line of more than {LONGEST_RECORD} bytes")
                wanted = size if end else wanted + size
                data, rest = rest[:end], rest[end:]
                if data:
                    rows = _count_records(data)
                    yield Block(byte, row, rows, data)
                    byte, row = byte + len(data), row + rows
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _end_of_records(data: bytes, size: int) -> int:
    """Return where the last whole record of a block ends that starts with a record; 0 if none does.

    A line end between quotes is part of a value: behind it, quotes have been opened and not closed.
    """
    last = data.rfind(b"\n")
    if last < 0 or data.find(b'"') < 0:
        return last + 1
    ends = _record_ends(data)
    if len(ends):
        return int(ends[-1]) + 1
    # Quotes that mean nothing, or one enormous value.
    return last + 1 if len(data) > 4 * size else 0


def _record_ends(data: bytes) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return where the line ends are that end a record."""
    text = np.frombuffer(data, np.uint8)
    lines = np.flatnonzero(text == ord("\n"))
    if b'"' not in data:
        return lines
    quotes = np.searchsorted(np.flatnonzero(text == ord('"')), lines)
    ends: np.ndarray[Any, np.dtype[np.intp]] = lines[quotes % 2 == 0]
    return ends


def _count_records(data: bytes) -> int:
    """Count the records of a block; as to the parser, empty lines are none.

    Splits go by the number of a row, so it must not depend on how a file is cut to blocks.
    """
    ends = np.append(_record_ends(data), len(data))
    sizes = np.diff(ends, prepend=-1) - 1
    single = np.frombuffer(data, np.uint8)[ends[sizes == 1] - 1]
    return int(np.count_nonzero(sizes)) - int(np.count_nonzero(single == ord("\r")))
