"""A file of a table that a reader sees whole or not at all."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa

from torchrec.files import naming

if TYPE_CHECKING:
    from typing_extensions import Self


class TableWriter(ABC):
    """Writes a file beside its place, and moves it there when it is whole.

    After an exception, Ctrl-C included, what was there before is untouched.

    Args:
        path: where the file is to be. Missing folders are made.
        schema: columns and their types; by default those of the first table.
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema | None = None) -> None:
        self.path = Path(path)
        self.rows = 0
        self._beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._schema = schema
        self._begun = False

    def __enter__(self) -> Self:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "")
            if self._schema is not None:
                self._begin(self._schema)
        return self

    def write(self, table: pa.Table) -> None:
        """Append a table.

        Args:
            table: its columns are those of the schema; types that differ, as those of strings that
                come now plain and now dictionary-encoded, are cast.
        """
        with naming(self.path):
            if not self._begun:
                self._begin(table.schema)
            if table.num_rows:
                self._append(table if table.schema == self._schema else table.cast(self._schema))
                self.rows += table.num_rows

    def _begin(self, schema: pa.Schema) -> None:
        self._schema, self._begun = schema, True
        self._open(schema)

    @abstractmethod
    def _open(self, schema: pa.Schema) -> None:
        """Open ``self._beside``."""

    @abstractmethod
    def _append(self, table: pa.Table) -> None:
        """Write rows."""

    @abstractmethod
    def _close(self, whole: bool) -> None:
        """Close the file; ``whole`` says whether it will be kept."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._begun:
                if kind is None:
                    raise ValueError(
                        f"'{self.path}' should get at least one table, or a schema. Received none."
                    )
            elif kind is not None:
                with suppress(OSError):  # the disk may be full: the first error is the one to tell
                    self._close(whole=False)
            else:
                with naming(self.path):
                    self._close(whole=True)
                    os.replace(self._beside, self.path)
        finally:
            with suppress(OSError):  # a name that is too long is not there either
                self._beside.unlink(missing_ok=True)
