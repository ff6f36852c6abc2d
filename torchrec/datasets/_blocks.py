"""Text files as UTF-8: opened at any place, and cut at ends of records into blocks that any thread may parse."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import csv as pa_csv

from torchrec.datasets._chunks import CHUNK_BYTES, ChunkStart, unreadable
from torchrec.datasets._oddities import LONG, Oddity
from torchrec.datasets._records import (
    RecordForm,
    count_records,
    find_records,
    longest_record,
    without_headers,
    written_plainly,
)
from torchrec.datasets.files import DataFile

LONGEST_RECORD = 1 << 26
"""Most bytes of a record; a file with more in one is taken for none of text."""


def open_text(file: DataFile, byte: int = 0, encoding: str | None = None) -> Any:
    """Open a file at a byte of its text in UTF-8, decompressed.

    Of what is compressed, or in another encoding, all that is before it has to be read.

    Args:
        file: of text.
        byte: where to begin.
        encoding: that it has to be recoded from. Default: none, it is UTF-8.
    """
    if file.compression is None:
        stream: Any = open(file.path, "rb")  # noqa: SIM115
        if encoding is None:
            stream.seek(byte)
            return stream
    else:
        stream = pa.input_stream(file.path, compression=file.compression)
    if encoding is not None:
        stream = _Recoded(stream, encoding)
    while byte > 0:
        byte -= len(stream.read(min(byte, CHUNK_BYTES))) or byte
    return stream


class _Recoded:
    """A stream of text in some encoding, read as UTF-8.

    Args:
        stream: of bytes.
        encoding: of the text in it.
    """

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def __enter__(self) -> _Recoded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """Return the next bytes: so many, unless the text ends."""
        while len(self._ready) < size and not self._ended:
            more = self._stream.read(size)
            self._ended = not more
            self._ready += self._decoder.decode(more, final=self._ended).encode()
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


# What the parser is told to stand between fields, where files have several characters.
SEPARATOR = "\x1f"


class Block(NamedTuple):
    """Whole records of a file, as the parser takes them.

    Attributes:
        byte: of the file, where the first of them starts.
        row: its number.
        rows: how many they are.
        data: their text.
        options: by which the parser reads it.
        oddity: what was odd about it; None if nothing was.
    """

    byte: int
    row: int
    rows: int
    data: bytes
    options: pa_csv.ParseOptions
    oddity: Oddity | None = None


def blocks(file: DataFile, start: ChunkStart, size: int, form: RecordForm) -> Iterator[Block]:
    """Cut a file into blocks, from a place where a record starts.

    Args:
        file: of text.
        start: the byte at which the first record starts, and its number in the file.
        size: of a block, about, in bytes.
        form: how records are written.

    Raises:
        ValueError: the file cannot be read.
    """
    byte, row = start.byte, start.row
    try:
        with open_text(file, byte, form.encoding) as stream:
            rest, wanted, ended = b"", size, False
            while not ended:
                more = stream.read(wanted - len(rest))
                ended = not more
                rest = rest + more if rest else more
                if len(rest) < wanted and not ended:
                    continue
                # Where a block ends depends on where it starts alone, so that reading can go on there.
                end = len(rest) if ended else _end_of_records(rest, size, form)
                if end == 0 and len(rest) > LONGEST_RECORD:
                    raise pa.ArrowInvalid(f"a line of more than {LONGEST_RECORD} bytes")
                wanted = size if end else wanted + size
                data, rest = rest[:end], rest[end:]
                if data:
                    block = _block(byte, row, data, form)
                    yield block
                    byte, row = byte + len(data), row + block.rows
    except UnicodeDecodeError as error:
        raise wrongly_encoded(file, error) from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def wrongly_encoded(file: DataFile, error: UnicodeDecodeError) -> ValueError:
    """Return the error to raise for text that is not in the encoding that was declared."""
    return ValueError(
        f"'{file.path}' should be text in the encoding '{error.encoding}'. Received "
        f"{error.object[error.start : error.end]!r}: {error.reason}."
    )


def _block(byte: int, row: int, data: bytes, form: RecordForm) -> Block:
    quoted = form.has_quotes and b'"' in data
    options = _parse_options(form, quoted)
    data, headers = without_headers(data, form.header)
    records = find_records(data, form, whole=True)
    rows = count_records(data, records)
    longest, lines = 0, 1
    if quoted:  # else each line is a record
        longest, lines = longest_record(data, records)
        data = written_plainly(data, records)
    if len(form.delimiter) > 1:
        data = data.replace(form.delimiter, SEPARATOR.encode())
    bad = 0
    if form.skips_bad and rows:
        data, bad = _without_bad(data, form, quoted)
    oddity = None
    if headers or bad or lines >= LONG:
        oddity = Oddity(headers, bad, row + longest, lines)
    return Block(byte, row, rows - bad, data, options, oddity)


def _parse_options(form: RecordForm, quoted: bool, **options: Any) -> pa_csv.ParseOptions:
    """Return how the parser is to read a block, in which quotes enclose fields or not."""
    several = len(form.delimiter) > 1
    return pa_csv.ParseOptions(
        delimiter=SEPARATOR if several else form.delimiter.decode(),
        quote_char='"' if form.has_quotes else False,
        newlines_in_values=quoted,
        **options,
    )


def _without_bad(data: bytes, form: RecordForm, quoted: bool) -> tuple[bytes, int]:
    """Return a block without the records that have more or fewer fields, as the parser counts them."""
    bad: list[int] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        bad.append(row.number - 1)
        return "skip"

    pa_csv.read_csv(
        pa.py_buffer(data),
        pa_csv.ReadOptions(
            use_threads=False,  # the parser tells numbers of rows to one thread only
            block_size=len(data) + 1,
            column_names=[str(column) for column in range(form.columns)],
        ),
        _parse_options(form, quoted, invalid_row_handler=skip),
        pa_csv.ConvertOptions(include_columns=["0"], column_types={"0": pa.binary()}),
    )
    if not bad:
        return data, 0
    ends = [-1, *find_records(data, form, whole=True).ends, len(data) - 1]
    records = [data[a + 1 : b + 1] for a, b in pairwise(ends) if data[a + 1 : b + 1].strip(b"\r\n")]
    for row in reversed(bad):
        del records[row]
    return b"".join(records), len(bad)


def _end_of_records(data: bytes, size: int, form: RecordForm) -> int:
    """Return where the last whole record of a block ends that starts with a record; 0 if none does."""
    last = data.rfind(b"\n")
    if last < 0 or data.find(b'"') < 0:
        return last + 1
    ends = find_records(data, form).ends
    if len(ends):
        return int(ends[-1]) + 1
    # One enormous value.
    return last + 1 if len(data) > 4 * size else 0
