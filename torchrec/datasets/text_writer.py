"""Write CSV and TSV so that a reader sees the whole file or none of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as pa_csv

from torchrec.datasets._table_writer import TableWriter
from torchrec.datasets.files import suffixes_of


class TextWriter(TableWriter):
    r"""A CSV or TSV file that is written beside its place and moved there when it is whole.

    After an exception, Ctrl-C included, what was there before is untouched. Nulls are empty, strings
    stand in quotes.

    Args:
        path: where the file is to be: ``.csv`` or ``.tsv``, also with ``.gz`` or ``.zst``. Missing
            folders are made.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clicks.csv"
        >>> with TextWriter(path) as file:
        ...     file.write(pa.table({"user": ["ann", None], "click": [0, 1]}))
        >>> path.read_text()
        'user,click\n"ann",0\n,1\n'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._writer: pa_csv.CSVWriter | None = None
        self._stream: Any = None

    def write(self, table: pa.Table) -> None:
        """Append a table.

        Args:
            table: its columns are those of the first one.

        Raises:
            ValueError: a column holds lists, or else what has no place in text.
        """
        columns = {name: _plain(name, table.column(name), self.path) for name in table.column_names}
        super().write(pa.table(columns))

    def _open(self, schema: pa.Schema) -> None:
        format, compression = suffixes_of(str(self.path))
        self._stream = pa.output_stream(str(self._beside), compression=compression)
        delimiter = "\t" if format == "tsv" else ","
        # The writer quotes every name of a header.
        names = (_quoted(name, delimiter) for name in schema.names)
        self._stream.write(f"{delimiter.join(names)}\n".encode())
        options = pa_csv.WriteOptions(
            include_header=False, delimiter=delimiter, quoting_style="needed"
        )
        self._writer = pa_csv.CSVWriter(self._stream, schema, write_options=options)

    def _append(self, table: pa.Table) -> None:
        assert self._writer is not None
        self._writer.write_table(table)

    def _close(self, whole: bool) -> None:
        if whole and self._writer is not None:
            self._writer.close()
        if self._stream is not None:
            self._stream.close()


def _plain(name: str, column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Return a column as text can hold it."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise ValueError(
            f"Columns of text should hold one value a row. Received '{name}' of type {column.type} for "
            f"'{path}'; Parquet takes it."
        )
    return column


def _quoted(name: str, delimiter: str) -> str:
    special = any(character in name for character in (delimiter, '"', "\n", "\r"))
    return '"' + name.replace('"', '""') + '"' if special else name
