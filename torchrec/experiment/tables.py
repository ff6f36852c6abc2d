"""The rows that an experiment reads: those of its files, or Parquet that is made of them once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchrec.datasets.features import AnyFeature, TextType, number_columns, text_columns
from torchrec.datasets.files import DataFile, resolve_files
from torchrec.datasets.histories import EARLIER, History, history_query
from torchrec.datasets.joins import join_query
from torchrec.datasets.query import DATA, ROW, query_to_parquet, text_to_parquet
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.datasets.text_types import schema_of
from torchrec.datasets.transform.columns import TIMES, kind_of, stored
from torchrec.experiment._messages import check_column
from torchrec.experiment.rows import TableSection
from torchrec.experiment.schema import DataSection

if TYPE_CHECKING:
    import pyarrow as pa

_FOLDER = ".data"


def cache_folder(output: str | os.PathLike[str]) -> Path:
    """Return where Parquet is kept that was made for a run: beside it.

    Example:
        >>> cache_folder("runs/first").as_posix()
        'runs/.data'
    """
    return Path(output).parent / _FOLDER


def files_of(data: DataSection) -> list[DataFile]:
    """Return the files that a section reads, those of further tables among them.

    Args:
        data: the section.

    Raises:
        ValueError: a pattern finds nothing, or a file is not what it should be.
    """
    tables = [(table.files, table.format) for table in data.tables.values()]
    tables += [([table], "auto") for table in data.join if table not in data.tables]
    rows = [(paths, data.format) for paths in (data.train, data.valid, data.test)]
    return [
        file for paths, form in (*rows, *tables) if paths for file in resolve_files(paths, form)
    ]


def is_made(data: DataSection, files: Sequence[DataFile]) -> bool:
    """Say whether Parquet is made of files: by SQL, of JSON, or of text that is to be parsed once."""
    by_sql = data.query is not None or bool(data.join) or bool(data.histories)
    return by_sql or files[0].format == "json" or (data.cache and files[0].format != "parquet")


def made(
    data: DataSection,
    files: Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None = None,
    features: Mapping[str, AnyFeature] | None = None,
) -> list[DataFile]:
    """Return the Parquet files of what the query of an experiment gives for some files, with its histories.

    Those are gathered of the files and of `data.train`, unless the rows have a column of the name. Where
    nothing is asked for but a cache, they are the text as it is.

    Args:
        data: the query or joins, their tables, histories, and how text is written.
        files: the rows of ``data`` in the query.
        folder: where what is made is kept.
        progress: is told what is being done. Default: nobody is.
        features: say what columns of text hold that are theirs, where `data.types` does not. Default: none.

    Raises:
        ValueError: files or the query are not as they should be; of a further table, names it.
    """
    text = _Text(data, features or {})
    rows = text.table(files)
    if data.join:
        file = _joined(data, text, _as_rows(rows, folder, progress), folder, progress)
        rows = TableSource([file], may_be_empty=True)
    elif data.query is not None or files[0].format == "json":
        rows = TableSource([_by_query(data, text, rows, folder, progress)], may_be_empty=True)
    assert isinstance(rows, TableSource)
    if data.histories:
        return [_with_histories(data, text, rows, files, folder, progress)]
    if rows.files[0].format == "parquet":
        return list(rows.files)
    return text_to_parquet(rows, folder, progress=progress)


def strings_of(schema: pa.Schema) -> dict[str, TextType]:
    """Return the columns of strings, as `data.types` has them: ids of few rows of text may look like numbers."""
    kinds = {field.name: kind_of(field.type) for field in schema}
    return {name: "string" for name, kind in kinds.items() if kind == "strings"}


class _Text:
    """How the rows of an experiment are written where they are text, and what their columns hold."""

    def __init__(self, data: DataSection, features: Mapping[str, AnyFeature]) -> None:
        self.features = features
        self._dialect = data.dialect
        self._types: dict[str, TextType] = dict.fromkeys(text_columns(features), "string")
        self._types |= data.types
        self._numbers = number_columns(features)

    def table(self, files: Sequence[DataFile]) -> TableSource | Sequence[DataFile]:
        return self._table(files, self._dialect)

    def side_table(self, name: str, section: TableSection) -> TableSource | Sequence[DataFile]:
        try:
            dialect = TextDialect(section.columns, section.delimiter, encoding=section.encoding)
            return self._table(resolve_files(section.files, section.format), dialect)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from error

    def _table(
        self, files: Sequence[DataFile], dialect: TextDialect
    ) -> TableSource | Sequence[DataFile]:
        if files[0].format == "json":
            return files
        if files[0].format == "parquet":
            return TableSource(files, may_be_empty=True)
        schema = schema_of(self._types)
        return TableSource(
            files, dialect=dialect, schema=schema, assumed=self._numbers, may_be_empty=True
        )


def _with_histories(
    data: DataSection,
    text: _Text,
    rows: TableSource,
    files: Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> DataFile:
    """Return a file of rows with what their users did before."""
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
        without = data.model_copy(update={"histories": {}, "cache": False})
        if is_made(without, earlier):
            earlier = made(without, earlier, folder, progress, text.features)
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
    text: _Text,
    rows: TableSource | Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> DataFile:
    tables: dict[str, TableSource | Sequence[DataFile]] = {DATA: rows}
    _require_names([DATA, *data.tables])
    for name, section in data.tables.items():
        tables[name] = text.side_table(f"data.tables.{name}", section)
    return query_to_parquet(
        data.query or f"select * from {DATA}", tables, folder, progress=progress
    )


def _joined(
    data: DataSection,
    text: _Text,
    rows: TableSource,
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> DataFile:
    """Return a file of rows with the columns of further tables."""
    tables: dict[str, TableSource | Sequence[DataFile]] = {DATA: rows}
    known = {name: (rows.schema.field(name).type, rows.files[0].path) for name in rows.names}
    taken = {name.lower(): path for name, (_, path) in known.items()} | {ROW: rows.files[0].path}
    _require_names([DATA, *data.join])
    for name, keys in data.join.items():
        section = data.tables.get(name) or TableSection(files=[name])
        what = f"data.tables.{name}" if name in data.tables else "data.join"
        table = _as_rows(text.side_table(what, section), folder, progress)
        path = table.files[0].path
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"`data.join` of '{name}' should name columns that differ. Received {keys}."
            )
        for key in keys:
            check_column("data.join", key, list(known))
            check_column("data.join", key, table.names)
            _require_one_kind(key, known[key], (table.schema.field(key).type, path))
        for column in table.names:
            if column not in keys and column.lower() in taken:
                raise ValueError(
                    f"Columns that `data.join` brings should be new ones, unless rows are joined by them. Received "
                    f"'{column}' of '{path}', which '{taken[column.lower()]}' has as well."
                )
        known |= {name: (table.schema.field(name).type, path) for name in table.names}
        taken |= {name.lower(): path for name in table.names}
        tables[name] = table
    query = join_query(data.join)
    return query_to_parquet(query, tables, folder, unique=data.join, progress=progress)


def _require_names(tables: Sequence[str]) -> None:
    """Refuse two tables of one name, to SQL, which knows no capitals; the first is that of the data."""
    seen: set[str] = set()
    for name in tables:
        if name.lower() == DATA and seen:
            raise ValueError(
                f"`data.tables` should not name a table '{name}': the data have that name."
            )
        if name.lower() in seen:
            raise ValueError(
                f"Names of tables should differ by more than capitals. Received '{name}'."
            )
        seen.add(name.lower())


def _require_one_kind(key: str, *sides: tuple[pa.DataType, str]) -> None:
    """Refuse to join text and numbers, or times of two kinds: nothing would match, or something by chance."""
    kinds = {kind_of(type) for type, _ in sides} - {"nulls"}
    if len(kinds) > 1 and kinds != {"integers", "numbers"}:
        found = " and of ".join(f"{stored(type)} in '{path}'" for type, path in sides)
        raise ValueError(
            f"`data.join` should go by columns of one kind. Received '{key}' of {found}: `data.types` says what "
            "columns of text hold."
        )


def _as_rows(
    table: TableSource | Sequence[DataFile],
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] | None,
) -> TableSource:
    """Return a table whose columns are known; JSON is made Parquet for it."""
    if isinstance(table, TableSource):
        return table
    file = query_to_parquet(f"select * from {DATA}", {DATA: table}, folder, progress=progress)
    return TableSource([file], may_be_empty=True)
