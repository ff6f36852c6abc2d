"""Write Parquet so that a reader sees the whole file or none of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec._files import naming


class ParquetWriter:
    """A Parquet file that is written beside its place and moved there when it is whole.

    After an exception, Ctrl-C included, what was there before is untouched. Arrow's own schema is
    left out of the file: columns read back as plain strings and lists, whatever encoding they were
    written from.

    Args:
        path: where the file is to be. Missing folders are made.
        schema: columns and their types; by default those of the first table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clicks.parquet"
        >>> with ParquetWriter(path) as file:
        ...     file.write(pa.table({"click": [0, 1]}))
        ...     path.exists()
        False
        >>> pq.read_table(path)["click"].to_pylist()
        [0, 1]
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema | None = None) -> None:
        self.path = Path(path)
        self.rows = 0
        self._beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._metadata: dict[str, str] = {}

    def __enter__(self) -> ParquetWriter:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "")
            if self._schema is not None:
                self._open(self._schema)
        return self

    def write(self, table: pa.Table) -> None:
        """Append a table as one row group.

        Args:
            table: its columns are those of the schema; types that differ, as those of strings that
                come now plain and now dictionary-encoded, are cast.
        """
        with naming(self.path):
            writer = self._writer or self._open(table.schema)
            if table.num_rows:
                if table.schema != writer.schema:
                    table = table.cast(writer.schema)
                writer.write_table(table, row_group_size=table.num_rows)
                self.rows += table.num_rows

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Add to the file's key-value metadata."""
        self._metadata.update(metadata)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        self._writer = pq.ParquetWriter(self._beside, schema, store_schema=False)
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
                    raise ValueError(
                        f"'{self.path}' should get at least one table, or a schema. Received none."
                    )
            elif kind is not None:
                with suppress(OSError):  # the disk may be full: the first error is the one to tell
                    self._writer.close()
            else:
                with naming(self.path):
                    if self._metadata:
                        self._writer.add_key_value_metadata(self._metadata)
                    self._writer.close()
                    os.replace(self._beside, self.path)
        finally:
            with suppress(OSError):  # a name that is too long is not there either
                self._beside.unlink(missing_ok=True)
