"""The rows that an experiment reads: those of its files, or what its query makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchrec.datasets.features import AnyFeature, TextType, number_columns, text_columns
from torchrec.datasets.files import DataFile, resolve_files
from torchrec.datasets.histories import EARLIER, History, history_query
from torchrec.datasets.query import DATA, query_to_parquet
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.datasets.text_types import schema_of
from torchrec.datasets.transform.columns import TIMES, kind_of, stored
from torchrec.experiment.rows import TableSection
from torchrec.experiment.schema import DataSection

_FOLDER = ".data"


def cache_folder(output: str | os.PathLike[str]) -> Path:
    """Return where the results of queries are kept for a run: beside it.

    Example:
        >>> cache_folder("runs/first").as_posix()
        'runs/.data'
    """
    return Path(output).parent / _FOLDER


def is_queried(data: DataSection, files: Sequence[DataFile]) -> bool:
    """Say whether files are read through a query: one that was given, or that which reads JSON or histories."""
    return data.query is not None or bool(data.histories) or files[0].format == "json"


def queried(
    data: DataSection,
    files: Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None = None,
    features: Mapping[str, AnyFeature] | None = None,
) -> DataFile:
    """Return the Parquet file of what the query of an experiment gives for some files, with its histories.

    Those are gathered of the files and of `data.train`, unless the rows have a column of the name.

    Args:
        data: the query, its tables, histories, and how text is written.
        files: the rows of ``data`` in the query.
        folder: where the file is kept.
        progress: is told what is being done. Default: nobody is.
        features: say what columns of text hold that are theirs, where `data.types` does not. Default: none.

    Raises:
        ValueError: files or the query are not as they should be; of a further table, names it.
    """
    text = _Text(data, features or {})
    if data.query is None and files[0].format != "json":
        rows = text.table(files)
    else:
        rows = TableSource(
            [_by_query(data, text.table(files), folder, progress)], may_be_empty=True
        )
    if not data.histories:
        assert isinstance(rows, TableSource)
        return rows.files[0]
    return _with_histories(data, text, rows, files, folder, progress)


class _Text:
    """How the rows of an experiment are written where they are text, and what their columns hold."""

    def __init__(self, data: DataSection, features: Mapping[str, AnyFeature]) -> None:
        self.features = features
        self._dialect = data.dialect
        self._types: dict[str, TextType] = dict.fromkeys(text_columns(features), "string")
        self._types |= data.types
        self._numbers = number_columns(features)

    def table(self, files: Sequence[DataFile]) -> TableSource | Sequence[DataFile]:
        return _table(files, self._dialect, self._types, self._numbers)


def _with_histories(
    data: DataSection,
    text: _Text,
    rows: TableSource | Sequence[DataFile],
    files: Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> DataFile:
    """Return a file of rows with what their users did before."""
    assert isinstance(rows, TableSource)
    histories = {
        name: History(**section.model_dump())
        for name, section in data.histories.items()
        if name not in rows.names
    }
    for name, history in histories.items():
        for column in (history.item, history.user, history.time):
            rows.require([column], f"`data.histories.{name}`")
        _require_times(name, history.time, rows)
    tables: dict[str, TableSource | Sequence[DataFile]] = {DATA: rows}
    try:
        trained = resolve_files(data.train, data.format)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"`data.histories` should find the events of `data.train`, unless the rows have the columns "
            f"{', '.join(data.histories)}. {error}"
        ) from error
    own = {os.path.realpath(file.path) for file in files}  # whose events are there already
    earlier = [file for file in trained if os.path.realpath(file.path) not in own]
    if earlier and histories:
        without = data.model_copy(update={"histories": {}})
        if is_queried(without, earlier):
            earlier = [queried(without, earlier, folder, progress, text.features)]
        before = text.table(earlier)
        assert isinstance(before, TableSource)  # JSON has been through a query
        for name, history in histories.items():
            _require_times(name, history.time, before)
            _require_alike(name, history.time, rows, before)
        tables[EARLIER] = before
    sql = history_query(histories, EARLIER in tables) if histories else f"select * from {DATA}"
    return query_to_parquet(sql, tables, folder, progress=progress)


def _require_times(name: str, column: str, rows: TableSource) -> None:
    """Refuse text, which is not in the order of time: '10' is before '9', and '01/02/2026' before '31/12/2025'."""
    if column not in rows.names:
        return
    type = rows.schema.field(column).type
    if kind_of(type) not in ("integers", "numbers", "zoned times", "local times", "nulls"):
        raise ValueError(
            f"`data.histories.{name}.time` should be a column of numbers, dates or timestamps. Received '{column}' of "
            f"{stored(type)} in '{rows.files[0].path}': `data.query` can make times of text, as in `select data.* "
            f'replace (strptime("{column}", \'%d.%m.%Y\') as "{column}") from data`.'
        )


def _require_alike(name: str, column: str, rows: TableSource, before: TableSource) -> None:
    """Refuse numbers beside dates, and times with a zone beside others: nothing tells which came first."""
    if column not in before.names:
        return
    types = [source.schema.field(column).type for source in (rows, before)]
    kinds = {kind_of(type) for type in types} - {"nulls"}
    if not kinds.isdisjoint(TIMES) and len(kinds) > 1:
        raise ValueError(
            f"`data.histories.{name}.time` should be of one kind in all files. Received '{column}' of "
            f"{stored(types[0])} in '{rows.files[0].path}' and of {stored(types[1])} in '{before.files[0].path}'."
        )


def _by_query(
    data: DataSection,
    rows: TableSource | Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> DataFile:
    tables: dict[str, TableSource | Sequence[DataFile]] = {DATA: rows}
    if DATA in data.tables:
        raise ValueError(
            f"`data.tables` should not name a table '{DATA}': the data have that name."
        )
    tables |= {name: _side_table(name, section) for name, section in data.tables.items()}
    return query_to_parquet(
        data.query or f"select * from {DATA}", tables, folder, progress=progress
    )


def _table(
    files: Sequence[DataFile],
    dialect: TextDialect,
    types: Mapping[str, TextType],
    numbers: Mapping[str, TextType],
) -> TableSource | Sequence[DataFile]:
    if files[0].format == "json":
        return files
    if files[0].format == "parquet":
        return TableSource(files, may_be_empty=True)
    return TableSource(
        files, dialect=dialect, schema=schema_of(types), assumed=numbers, may_be_empty=True
    )


def _side_table(name: str, section: TableSection) -> TableSource | Sequence[DataFile]:
    try:
        dialect = TextDialect(section.columns, section.delimiter, encoding=section.encoding)
        return _table(resolve_files(section.files, section.format), dialect, {}, {})
    except ValueError as error:
        raise ValueError(f"`data.tables.{name}`: {error}") from error
