"""Write Parquet so that a reader sees the whole file or none of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec.datasets._table_writer import TableWriter


class ParquetWriter(TableWriter):
    """A Parquet file that is written beside its place and moved there when it is whole.

    After an exception, Ctrl-C included, what was there before is untouched. Arrow's own schema is
    left out of the file: columns read back as plain strings and lists, whatever encoding they were
    written from.

    Args:
        path: where the file is to be. Missing folders are made.
        schema: columns and their types; by default those of the first table.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "clicks.parquet"
        >>> with ParquetWriter(path) as file:
        ...     file.write(pa.table({"click": [0, 1]}))
        ...     path.exists()
        False
        >>> pq.read_table(path)["click"].to_pylist()
        [0, 1]
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema | None = None) -> None:
        super().__init__(path, schema)
        self._writer: pq.ParquetWriter | None = None
        self._metadata: dict[str, str] = {}

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Add to the file's key-value metadata."""
        self._metadata.update(metadata)

    def _open(self, schema: pa.Schema) -> None:
        # A relative name with a colon would be taken for an address.
        path = os.path.join(".", self._beside)
        self._writer = pq.ParquetWriter(path, schema, store_schema=False, write_page_checksum=True)

    def _append(self, table: pa.Table) -> None:
        """Write rows as one row group."""
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=table.num_rows)

    def _close(self, whole: bool) -> None:
        if self._writer is None:  # it could not be opened
            return
        if whole and self._metadata:
            self._writer.add_key_value_metadata(self._metadata)
        self._writer.close()
