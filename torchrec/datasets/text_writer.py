"""Write CSV and TSV so that a reader sees the whole file or none of it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyarrow import csv as pa_csv

from torchrec._files import naming
from torchrec.datasets.files import suffixes_of


class TextWriter:
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
        self.path = Path(path)
        self.rows = 0
        self._beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._schema: pa.Schema | None = None
        self._writer: pa_csv.CSVWriter | None = None
        self._stream: Any = None

    def __enter__(self) -> TextWriter:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "")
        return self

    def write(self, table: pa.Table) -> None:
        """Append a table.

        Args:
            table: its columns are those of the first one.

        Raises:
            ValueError: a column holds lists, or else what has no place in text.
        """
        table = pa.table(
            {name: _plain(name, table.column(name), self.path) for name in table.column_names}
        )
        with naming(self.path):
            writer = self._writer or self._open(table.schema)
            writer.write_table(table if table.schema == self._schema else table.cast(self._schema))
        self.rows += table.num_rows

    def _open(self, schema: pa.Schema) -> pa_csv.CSVWriter:
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
        self._schema = schema
        return self._writer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._writer is None:
                if kind is None:
                    raise ValueError(f"'{self.path}' should get at least one table. Received none.")
            elif kind is not None:
                with suppress(OSError):  # the disk may be full: the first error is the one to tell
                    self._stream.close()
            else:
                with naming(self.path):
                    self._writer.close()
                    self._stream.close()
                    os.replace(self._beside, self.path)
        finally:
            with suppress(OSError):  # a name that is too long is not there either
                self._beside.unlink(missing_ok=True)


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
