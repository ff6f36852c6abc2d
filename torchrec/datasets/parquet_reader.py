"""Reading Parquet: only the columns that are needed, a piece of a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import closing
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec.datasets._chunks import Chunk, ChunkStart, Reading, Span, unreadable
from torchrec.datasets._oddities import told_by
from torchrec.datasets._types import conform, joined, plain, require_columns, require_same_types

if TYPE_CHECKING:
    from torchrec.datasets.features import TextType
    from torchrec.datasets.files import DataFile

# Bytes of a column that are fetched at once: row groups of any size are read in bounded memory.
_BUFFER = 1 << 18


class _RowGroup(NamedTuple):
    """A row group: a place where reading can start.

    Attributes:
        file: number of its file.
        number: which row group of the file.
        first_row: number of its first row in the file.
        rows: number of its rows.
    """

    file: int
    number: int
    first_row: int
    rows: int


class ParquetReader:
    """Reads the Parquet files of a data set.

    Args:
        files: the files.
        schema: types that the columns should have. Default: those of the first file; for columns
            without a type there, since it has nothing but nulls, those of the first file with one.
            Integers that another file has as floating-point numbers, as pandas does for nulls, are these.
        may_be_empty: take files without a row. Default False.

    Attributes:
        schema: names and types of the columns.
        notices: what was odd about the text that files were made of; others that are not as they should
            be are refused.
    """

    given: Set[str] = frozenset()
    """Columns whose type the caller gave: the files have them all."""

    def __init__(
        self, files: list[DataFile], schema: pa.Schema | None = None, may_be_empty: bool = False
    ) -> None:
        self.files = files
        self.notices: list[str] = []
        self._names: list[list[str]] = []
        self._groups: list[_RowGroup] = []
        first = f"'{files[0].path}'" if schema is None else "the data that it goes with"
        for number, file in enumerate(files):
            with _open(file) as opened:
                found = opened.schema_arrow
                if number == 0:
                    self.schema = schema or pa.schema([(f.name, plain(f.type)) for f in found])
                    self._as_dictionary = _repetitive(opened)
                    origins = dict.fromkeys(self.schema.names, first)
                require_same_types(self.schema, origins, found, file.path)
                self._learn_types(found, origins, file)
                self._names.append(found.names)
                self.notices += told_by(opened.metadata.metadata)
                rows = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            starts = accumulate(rows, initial=0)
            self._groups += [
                _RowGroup(number, g, s, r)
                for g, (s, r) in enumerate(zip(starts, rows, strict=False))
            ]
        if self.rows == 0 and not may_be_empty:
            raise ValueError(
                f"Data files ('{files[0].path}', ...) should hold rows. Received none."
            )

    def _learn_types(self, found: pa.Schema, origins: dict[str, str], file: DataFile) -> None:
        """Take over what a file knows of the types of columns: where there were nulls only, or integers."""
        for index, field in enumerate(self.schema):
            other = found.get_field_index(field.name)
            if other >= 0:
                type = joined(field.type, found.field(other).type)
                if type != field.type:
                    self.schema = self.schema.set(index, field.with_type(type))
                    origins[field.name] = f"'{file.path}'"

    @property
    def names(self) -> list[str]:
        """Columns of the files."""
        return list(self.schema.names)

    @cached_property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(group.rows for group in self._groups)

    @property
    def seen(self) -> list[Span]:
        """Where rows are."""
        return [Span(group.file, group.first_row, group.rows) for group in self._groups]

    def retyped(self, types: Mapping[str, TextType]) -> ParquetReader:
        """Return this reader: the files say what their columns hold."""
        return self

    def over(self, files: list[DataFile]) -> ParquetReader:
        """Return a reader of other files whose columns have the types that they have here."""
        return ParquetReader(files, self.schema)

    def chunks(
        self, columns: list[str], reading: Reading, start: ChunkStart, *, use_threads: bool = False
    ) -> Iterator[Chunk]:
        """Read the rows in order.

        Args:
            columns: what to read.
            reading: the order.
            start: where to begin.
            use_threads: whether columns are decoded in parallel. Default False.
        """
        types = {name: self._delivered(name) for name in columns}
        dictionaries = [name for name in columns if pa.types.is_dictionary(types[name])]
        groups = [self._groups[unit] for unit in reading.order(len(self._groups))]
        row = start.row
        with closing(_OpenFiles(dictionaries)) as files:
            for unit in range(start.unit, len(groups)):
                group = groups[unit]
                file = self.files[group.file]
                require_columns(self._names[group.file], columns, file.path)
                # Pieces always start at the same rows, wherever reading begins.
                for at, batch in _read(files, file, group, columns, reading, use_threads):
                    low = max(row - at, 0)
                    if low < batch.num_rows:
                        piece = pa.Table.from_batches([batch.slice(low)])
                        yield Chunk(
                            ChunkStart(unit, at + low),
                            group.file,
                            group.first_row + at + low,
                            piece.num_rows,
                            partial(conform, piece, types, file.path),
                        )
                row = 0

    def _delivered(self, name: str) -> pa.DataType:
        require_columns(self.schema.names, [name], self.files[0].path)
        type = self.schema.field(name).type
        return pa.dictionary(pa.int32(), type) if name in self._as_dictionary else type


def _read(
    files: _OpenFiles,
    file: DataFile,
    group: _RowGroup,
    columns: list[str],
    reading: Reading,
    use_threads: bool,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Read a row group: the rows of a chunk at a time, and where they start."""
    at = 0
    try:
        opened = files.get(file)
        if opened.metadata.num_row_groups <= group.number:
            raise pa.ArrowInvalid("fewer row groups than before; did the file change?")
        for batch in opened.iter_batches(
            reading.chunk_rows, row_groups=[group.number], columns=columns, use_threads=use_threads
        ):
            yield at, batch
            at += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from error


class _OpenFiles:
    """The files that were read last, kept open: an end may describe thousands of row groups.

    Args:
        dictionaries: columns to read as dictionaries.
        most: how many files to keep open.
    """

    def __init__(self, dictionaries: list[str], most: int = 32) -> None:
        self._dictionaries = dictionaries
        self._most = most
        self._opened: dict[str, pq.ParquetFile] = {}

    def get(self, file: DataFile) -> pq.ParquetFile:
        """Return a file, opened."""
        opened = self._opened.pop(file.path, None) or _open(file, self._dictionaries)
        self._opened[file.path] = opened
        if len(self._opened) > self._most:
            self._opened.pop(next(iter(self._opened))).close()
        return opened

    def close(self) -> None:
        """Close all files."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()


def _open(file: DataFile, dictionaries: list[str] | None = None) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            file.path,
            read_dictionary=dictionaries,
            buffer_size=_BUFFER,
            pre_buffer=False,
            page_checksum_verification=True,  # of pages that have one; others are read as they are
        )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _repetitive(file: pq.ParquetFile) -> set[str]:
    """Name the columns of text that are stored as dictionaries, and so are best read as such.

    Where distinct values are many, writers give a dictionary up and store plain text, which takes
    more than four bytes a value; numbers into a dictionary take less than three.
    """
    found: set[str] = set()
    if file.num_row_groups == 0:
        return found
    group = file.metadata.row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        name = column.path_in_schema
        place = file.schema_arrow.get_field_index(name)
        if place >= 0 and pa.types.is_string(plain(file.schema_arrow.field(place).type)):
            small = column.total_uncompressed_size < 4 * max(1, column.num_values)
            if column.has_dictionary_page and small:
                found.add(name)
    return found
