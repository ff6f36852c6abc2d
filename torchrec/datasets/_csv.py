"""Reading CSV and TSV: a stream of bytes, cut at ends of records into blocks that any thread may parse."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from torchrec.datasets._chunks import CHUNK_BYTES, Chunk, Position, Reading, unreadable
from torchrec.datasets._types import conform, require_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchrec.datasets.files import DataFile

# What stands for a missing value, in columns of text too. "NA" is not among them: it is a country.
_MISSING = ["", "NULL", "null", "NaN", "nan", "\\N", "N/A", "n/a", "#N/A"]
_SMALLEST_BLOCK = 1 << 16
_LONGEST_RECORD = 1 << 26
_INFERENCE_BLOCKS = 16  # for a column that is empty at first
_ROW_OF_ERROR = re.compile(r"Row #(\d+)")


class Block(NamedTuple):
    """Whole records of a file, as bytes: at which byte and which row the first is, and how many rows."""

    byte: int
    row: int
    rows: int
    data: bytes


class CsvReader:
    """Reads the CSV or TSV files of a data set.

    Types are those of the first block that holds values, and hold for all blocks of all files.

    Args:
        files: the files.
        columns: names of the columns, if the files have no header. Default: there is a header.
        schema: types that columns should have. Default: inferred.
    """

    rows = None  # not known before everything is read

    def __init__(
        self,
        files: list[DataFile],
        columns: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        self.files = files
        self._headerless = None if columns is None else list(columns)
        self._names = [self._read_names(file) for file in files]
        for file, names in zip(files, self._names, strict=True):
            require_columns(names, names, file.path)
        self._delimiter = "\t" if files[0].format == "tsv" else ","
        inferred = self._infer_types()
        if schema is not None:
            inferred |= {field.name: field.type for field in schema}
        self.schema = pa.schema(list(inferred.items()))

    def chunks(
        self, columns: list[str], reading: Reading, start: Position, *, use_threads: bool = False
    ) -> Iterator[Chunk]:
        """Read the blocks that are this rank's, in order: every ``world_size``-th.

        Args:
            columns: what to read.
            reading: order and share.
            start: where to begin.
            use_threads: without effect: blocks are parsed by whoever decodes them.
        """
        require_columns(self.schema.names, columns, self.files[0].path)
        types = {name: self.schema.field(name).type for name in columns}
        order = reading.order(len(self.files))
        size = self._block_size(reading.world_size)
        chunk = start.chunk
        for unit in range(start.unit, len(order)):
            number = order[unit]
            require_columns(self._names[number], columns, self.files[number].path)
            at = start if unit == start.unit else Position()
            for block in self._blocks(number, at.byte, at.row, size):
                if chunk % reading.world_size == reading.rank:
                    yield Chunk(
                        Position(unit, block.row, block.byte, chunk),
                        number,
                        block.row,
                        block.rows,
                        partial(self._parse, number, block, types),
                    )
                chunk += 1

    def _block_size(self, world_size: int) -> int:
        """Return the size of blocks: smaller ones where ranks share few of them."""
        if world_size == 1:
            return CHUNK_BYTES
        total = sum(os.path.getsize(file.path) for file in self.files)
        return max(_SMALLEST_BLOCK, min(CHUNK_BYTES, total // (8 * world_size)))

    def _blocks(self, number: int, byte: int, row: int, size: int) -> Iterator[Block]:
        """Cut a file into blocks of about ``size`` bytes, from a place where a record starts."""
        file = self.files[number]
        try:
            if byte == 0 and self._headerless is None:
                with _open(file) as stream:
                    byte = len(_first_line(stream))
            with _open(file) as stream:
                _go_to(stream, file, byte)
                rest, wanted, ended = b"", size, False
                while not ended:
                    more = stream.read(wanted - len(rest))
                    ended = not more
                    rest = rest + more if rest else more
                    if len(rest) < wanted and not ended:
                        continue
                    # Where a block ends depends on where it starts alone, so that reading can go on there.
                    end = len(rest) if ended else _end_of_records(rest)
                    if end == 0 and len(rest) > _LONGEST_RECORD:
                        raise pa.ArrowInvalid(f"a line of more than {_LONGEST_RECORD} bytes")
                    wanted = size if end else wanted + size
                    data, rest = rest[:end], rest[end:]
                    if data:
                        rows = _count_records(data)
                        yield Block(byte, row, rows, data)
                        byte, row = byte + len(data), row + rows
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from error

    def _parse(self, number: int, block: Block, types: dict[str, pa.DataType]) -> pa.Table:
        """Parse a block to a table of the given types, or of all columns with types inferred if there are none."""
        file = self.files[number]
        names = self._names[number]
        try:
            table = pa_csv.read_csv(
                pa.py_buffer(block.data),
                pa_csv.ReadOptions(
                    use_threads=False, block_size=len(block.data) + 1, column_names=names
                ),
                pa_csv.ParseOptions(
                    delimiter=self._delimiter, newlines_in_values=b'"' in block.data
                ),
                pa_csv.ConvertOptions(
                    null_values=_MISSING,
                    strings_can_be_null=True,
                    column_types=types,
                    include_columns=list(types),
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._refused(file, names, block, error) from error
        return table.combine_chunks() if not types else conform(table, types, file.path)

    def _refused(
        self, file: DataFile, names: list[str], block: Block, error: Exception
    ) -> ValueError:
        reason = str(error)
        row = _ROW_OF_ERROR.search(reason)
        line = block.row + (int(row[1]) if row else 1) + (self._headerless is None)
        where = f"line {line}" if row else f"line {line} or after"
        reason = _ROW_OF_ERROR.sub("", reason).removeprefix("CSV parse error: ").lstrip(": ")
        column = re.match(r"In CSV column #(\d+): (: )?", reason)
        if column:
            reason = f"in column '{names[int(column[1])]}', {reason[column.end() :]}"
        hint = "; types are those of the first lines, unless a schema is given" if column else ""
        if "invalid UTF8" in reason:
            hint = ", and be UTF-8"
        return ValueError(
            f"'{file.path}', {where}, should fit the columns and their types{hint}. "
            f"Received: {reason.strip().splitlines()[0][:300]}"
        )

    def _read_names(self, file: DataFile) -> list[str]:
        if self._headerless is not None:
            return self._headerless
        try:
            with _open(file) as stream:
                line = _first_line(stream).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The header of '{file.path}' should be UTF-8. Received other bytes."
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from error
        delimiter = "\t" if file.format == "tsv" else ","
        try:
            return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
        except csv.Error as error:  # such as line ends of old, or a column name of a page
            raise ValueError(
                f"The header of '{file.path}' should be a line of names that ends in a line feed. "
                f"Received: {error}."
            ) from error

    def _infer_types(self) -> dict[str, pa.DataType]:
        """Return types that the first blocks suggest, more of them for a column that holds nothing at first."""
        types: dict[str, pa.DataType] = {}
        seen = 0
        for number in range(len(self.files)):
            for block in self._blocks(number, 0, 0, CHUNK_BYTES):
                table = self._parse(number, block, {})
                seen += table.num_rows
                for name in table.column_names:
                    if pa.types.is_null(types.get(name, pa.null())):
                        types[name] = self._refine(number, block, table, name)
                known = not any(pa.types.is_null(type) for type in types.values())
                if seen and (known or block.byte > _INFERENCE_BLOCKS * CHUNK_BYTES):
                    return types
            if seen:
                return types
        raise ValueError(
            f"Data files ('{self.files[0].path}', ...) should hold rows. Received a header only."
        )

    def _refine(self, number: int, block: Block, table: pa.Table, name: str) -> pa.DataType:
        """Return the type of a column; one of large integers is not one of floats, and bytes are no text."""
        inferred = table.schema.field(name).type
        if pa.types.is_float64(inferred):
            text = self._parse(number, block, {name: pa.string()}).column(name).drop_null()
            if pc.all(pc.match_substring_regex(text, r"^\s*[0-9]+\s*$")).as_py():
                return pa.uint64()
        if pa.types.is_binary(inferred):
            self._parse(number, block, {name: pa.string()})  # says where
        return inferred


def _open(file: DataFile) -> Any:
    """Open a file at the first byte of what it holds, decompressed."""
    if file.compression is None:
        return open(file.path, "rb")
    return pa.input_stream(file.path, compression=file.compression)


def _first_line(stream: Any) -> bytes:
    line = b""
    while b"\n" not in line and len(line) <= _LONGEST_RECORD:
        more = stream.read(_SMALLEST_BLOCK)
        if not more:
            return line
        line += more
    return line[: line.find(b"\n") + 1]


def _go_to(stream: Any, file: DataFile, byte: int) -> None:
    """Go on from the first byte to another; of compressed data everything before it has to be read."""
    if file.compression is None:
        stream.seek(byte)
    while file.compression is not None and byte > 0:
        byte -= len(stream.read(min(byte, CHUNK_BYTES))) or byte


def _end_of_records(data: bytes) -> int:
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
    return last + 1 if len(data) > 4 * CHUNK_BYTES else 0


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
