"""A table in files: read in pieces, however large it is, without the rows that are not wanted."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING

from torchrec.checks import did_you_mean
from torchrec.datasets._chunks import Chunk, ChunkStart, Reader, Reading, Span
from torchrec.datasets.expression import Expression, parse_expression
from torchrec.datasets.files import DataFile, resolve_files
from torchrec.datasets.negatives import KeptNegatives
from torchrec.datasets.split import FractionSplit, Split
from torchrec.datasets.text_dialect import TextDialect

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from torchrec.datasets.drawn_negatives import DrawnNegatives
    from torchrec.datasets.features import TextType

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class TableSource:
    r"""Rows of Parquet, CSV or TSV files.

    Nothing is kept of what has been read, only columns that are asked for are read, and row groups or
    files may be shared between ranks.

    Args:
        files: what ``resolve_files`` found, or paths, folders and patterns for it.
        dialect: how CSV or TSV files are written. Default: with a header, commas or tabs, and quotes.
        drop: an expression, true for rows to leave out: ``"rating == 3"``. Default: none.
        split: the part of the rows to read, a ``FractionSplit`` or ``TimeSplit``. Default: all.
        schema: types that columns should have, such as those of data that a model was trained on.
            Default: those of the first file; of text, of its first lines.
        assumed: columns of text that features read numbers from; they are numbers (or integers) unless
            their first lines show true and false, dates or times. Default: none.
        may_be_empty: take files without a row, as a partition of what is to be predicted may be.
            Default False.

    Raises:
        ValueError: files are not there, not whole or hold no rows, types of a column differ between
            files, or the expression or the split names a column that is not there.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("user,rating\n7,5\n8,3\n9,1\n")
        ...     source = TableSource(path, drop="rating == 3")
        ...     [table.to_pydict() for table in source.scan(["user"])]
        [{'user': [7, 9]}]
    """

    def __init__(
        self,
        files: Sequence[DataFile] | Paths,
        *,
        dialect: TextDialect | None = None,
        drop: str | Expression | None = None,
        split: Split | None = None,
        schema: pa.Schema | None = None,
        assumed: Mapping[str, TextType] | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self.files = _resolved(files)
        self.dialect = dialect or TextDialect()
        self._reader = _reader(self.files, self.dialect, schema, assumed, may_be_empty)
        self.schema: pa.Schema = self._reader.schema
        self.drop = parse_expression(drop) if isinstance(drop, str) else drop
        self.split = split
        self._negatives: KeptNegatives | None = None
        self._drawn: DrawnNegatives | None = None
        if self.drop is not None:
            self.require(self.drop.columns, f"Expression `{self.drop.text}`")
        if self.split is not None:
            self.require(self.split.columns, "A split by time")

    def of(self, split: Split | None) -> TableSource:
        """Return another part of the same rows; files are not looked at again."""
        other = copy.copy(self)
        other.split = split
        if split is not None:
            other.require(split.columns, "A split by time")
        return other

    def with_negatives(self, negatives: KeptNegatives) -> TableSource:
        """Return the same rows without most of those that have label 0.

        Args:
            negatives: which are kept.
        """
        other = copy.copy(self)
        other._negatives = negatives
        other.require(negatives.columns, f"The label `{negatives.label}`")
        return other

    def with_drawn(self, drawn: DrawnNegatives) -> TableSource:
        """Return the same rows, with others behind each that did not happen.

        Args:
            drawn: what makes these, and the column that tells them.
        """
        other = copy.copy(self)
        other._drawn, other.schema = drawn, drawn.schema(self.schema)
        return other

    def retyped(self, types: Mapping[str, TextType]) -> TableSource:
        """Return the same rows, those of text files with other types of some columns.

        Args:
            types: by column, such as ``MisfitError.wider``.
        """
        other = self._read_by(self._reader.retyped(types))
        return other if self._drawn is None else other.with_drawn(self._drawn.retyped(types))

    def over(self, files: Sequence[DataFile] | Paths) -> TableSource:
        """Return the rows of other files, with the types that columns have here; all of them.

        Args:
            files: as for a new source.
        """
        files = _resolved(files)
        is_text = files[0].format != "parquet"
        if is_text == (self.files[0].format != "parquet"):
            other = self._read_by(self._reader.over(files))
        else:
            dialect = self.dialect if is_text else TextDialect()
            other = self._read_by(_reader(files, dialect, self.schema, None))
        other.files, other.split, other._negatives, other._drawn = files, None, None, None
        return other

    def _read_by(self, reader: Reader) -> TableSource:
        other = copy.copy(self)
        other._reader, other.schema = reader, reader.schema
        return other

    @property
    def notices(self) -> list[str]:
        """What was odd about the text that has been read so far, a sentence each."""
        return self._reader.notices

    @property
    def given(self) -> Set[str]:
        """Columns of text files whose type the caller gave."""
        return self._reader.given

    @property
    def names(self) -> list[str]:
        """Columns of the first file, and that which is made."""
        made = [] if self._drawn is None else [self._drawn.sampling.column]
        return [*self._reader.names, *made]

    @property
    def rows(self) -> int | None:
        """Number of rows that reading gives; None where only reading tells: of text, or if rows are dropped."""
        if self._reader.rows is None or not self._goes_by_number:
            return None
        made = 0 if self._drawn is None else self._drawn.sampling.per_positive
        return sum(map(self._count, self._reader.seen)) * (1 + made)

    def has_rows(self) -> bool:
        """Return whether reading gives any row; no more is read than tells it."""
        if not self._goes_by_number:
            return next(self.scan(self.schema.names[-1:]), None) is not None
        if any(map(self._count, self._reader.seen)):
            return True
        is_all = self._reader.rows is not None
        rest = () if is_all else self._reader.chunks([], Reading(), ChunkStart())
        return any(map(self._count, rest))

    @property
    def _goes_by_number(self) -> bool:
        """Whether the number of a row in its file decides, not what it holds."""
        by_chance = self.split is None or isinstance(self.split, FractionSplit)
        return by_chance and self.drop is None and self._negatives is None

    def _count(self, span: Span | Chunk) -> int:
        """Return how many rows of a span are read, where their numbers decide."""
        if isinstance(self.split, FractionSplit):
            return self.split.count(self.files[span.file].name, span.first_row, span.rows)
        return span.rows

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read everything once, in the order of the files.

        Args:
            columns: what to read. Default: all columns.

        Returns:
            Tables of some ten thousand rows each.

        Raises:
            ValueError: a column is not there, or a file cannot be read.
        """
        chosen = list(self.schema.names if columns is None else columns)
        for chunk in self.chunks(chosen, Reading()):
            table = self.decode(chunk, chosen)
            if table.num_rows:
                yield table

    def chunks(
        self,
        columns: Sequence[str],
        reading: Reading,
        start: ChunkStart | None = None,
        *,
        use_threads: bool = False,
    ) -> Iterator[Chunk]:
        """Read the rows in chunks, to be decoded in any thread.

        Args:
            columns: what will be decoded.
            reading: the order.
            start: of the chunk to begin with. Default: the first.
            use_threads: whether one chunk may be read by several threads. Default False.
        """
        self.require(columns, "The list of columns to read")
        needed = dict.fromkeys(columns)
        for reason in (self.drop, self.split, self._negatives, self._drawn):
            if reason is not None:
                needed |= dict.fromkeys(sorted(reason.columns))
        if self._drawn is not None:
            needed.pop(self._drawn.sampling.column, None)
        return self._reader.chunks(
            list(needed), reading, start or ChunkStart(), use_threads=use_threads
        )

    def decode(self, chunk: Chunk, columns: Sequence[str], epoch: int = 0) -> pa.Table:
        """Return the columns of a chunk, without rows that are dropped or in another part.

        Args:
            chunk: one of `chunks`.
            columns: which.
            epoch: that negatives are drawn for, if they are drawn anew in each. Default 0.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        table = chunk.decode()
        keep = None
        if self.drop is not None:
            keep = pc.invert(pc.fill_null(_truth(self.drop, table), False))
        if self.split is not None:
            chosen = pa.array(self.split.keep(table, self.files[chunk.file].name, chunk.first_row))
            keep = chosen if keep is None else pc.and_(keep, chosen)
        if self._negatives is not None:  # of the labels of rows that are left
            name, rows = self.files[chunk.file].name, table.num_rows
            by_chance = pa.array(self._negatives.by_chance(name, chunk.first_row, rows))
            if keep is not None:
                table, by_chance, keep = table.filter(keep), by_chance.filter(keep), None
            keep = pa.array(self._negatives.keep(table, by_chance.to_numpy(zero_copy_only=False)))
        if self._drawn is not None:
            numbers = np.arange(chunk.first_row, chunk.first_row + table.num_rows)
            if keep is not None:
                table, numbers = table.filter(keep), numbers[keep.to_numpy(zero_copy_only=False)]
            name = self.files[chunk.file].name
            return self._drawn.extend(table, name, numbers, epoch).select(list(columns))
        table = table.select(list(columns))
        return table if keep is None else table.filter(keep)

    def require(self, columns: Iterable[str], what: str) -> None:
        """Refuse columns that are not there.

        Args:
            columns: their names.
            what: who wants them, for the message.
        """
        for name in columns:
            if name not in self.schema.names:
                raise ValueError(
                    f"{what} should name columns of the data. Received '{name}'"
                    f"{did_you_mean(name, self.schema.names) or '.'}"
                )


def _resolved(files: Sequence[DataFile] | Paths) -> list[DataFile]:
    if isinstance(files, str | os.PathLike):
        return resolve_files(files)
    listed = list(files)
    found = [file for file in listed if isinstance(file, DataFile)]
    return found if found and len(found) == len(listed) else resolve_files(listed)  # type: ignore[arg-type]


def _reader(
    files: list[DataFile],
    dialect: TextDialect,
    schema: pa.Schema | None,
    assumed: Mapping[str, TextType] | None,
    may_be_empty: bool = False,
) -> Reader:
    if files[0].format == "parquet":
        for name in dialect.given:
            kind = "CSV and TSV files" + (" without a header" if name == "columns" else "")
            raise ValueError(
                f"`{name}` should be given only for {kind}. Received it for '{files[0].path}'."
            )
        from torchrec.datasets.parquet_reader import ParquetReader

        return ParquetReader(files, schema, may_be_empty)
    if files[0].format == "json":
        raise ValueError(
            f"JSON should be made Parquet by `query_to_parquet` first. Received '{files[0].path}'."
        )
    from torchrec.datasets.csv_reader import CsvReader

    return CsvReader(files, dialect, schema, assumed, may_be_empty)


def _truth(expression: Expression, table: pa.Table) -> pa.Array | pa.ChunkedArray:
    import pyarrow as pa

    value = expression.evaluate(table)
    if not pa.types.is_boolean(value.type):
        raise ValueError(
            f"Expression `{expression.text}` should be true or false. Received {value.type}."
        )
    return value
