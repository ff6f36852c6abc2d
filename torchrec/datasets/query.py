"""Rows made Parquet once, for readers to take: by SQL (tables joined, histories gathered, JSON read), or text as it is.

DuckDB does what is SQL, within bounded memory: what does not fit lies on disk for a while.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec.checks import did_you_mean
from torchrec.datasets._chunks import Reading
from torchrec.datasets._oddities import described
from torchrec.datasets.files import DataFile
from torchrec.datasets.parquet_writer import ParquetWriter
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_types import MisfitError

if TYPE_CHECKING:
    import duckdb

DATA, ROW = "data", "row"
_VERSION = "3"  # of what is written for a query; another one, another file
_MEMORY = "1GB"
_NAME = "rows.parquet"


def query_to_parquet(
    sql: str,
    tables: Mapping[str, TableSource | Sequence[DataFile]],
    folder: str | os.PathLike[str],
    *,
    unique: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> DataFile:
    r"""Write the rows that a query gives to a Parquet file, unless they lie there already.

    The file is named by a digest of the query, the bytes of all files and how they are read: the same
    rows are made once. Rows are in the order of ``row``, a column of numbers that the table ``data``
    has beside its own (the order of its files, and of the rows in them), where the query gives it; it is
    left out of the file. Otherwise they are in the order in which the query, on one thread, gives them:
    say ``order by`` where that matters.

    Args:
        sql: a query over the tables by their names, as DuckDB understands it.
        tables: by name; ``data`` is the one whose rows are numbered. JSON as files: one object a line,
            or a list of them.
        folder: where the file is to be, in a folder of its own.
        unique: columns by table, of which no two of its rows may have the same values. Default: none.
        progress: is told what is being done. Default: nobody is.

    Returns:
        The file.

    Raises:
        ValueError: the query is none, names what is not there, or gives no columns; rows are not unique.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clicks, shops = Path(folder, "clicks.csv"), Path(folder, "shops.csv")
        ...     _ = clicks.write_text("shop,click\n2,1\n1,0\n3,1\n")
        ...     _ = shops.write_text("shop,city\n1,Bern\n2,Rome\n")
        ...     tables = {"data": TableSource(clicks), "shops": TableSource(shops)}
        ...     query = "select data.*, city from data left join shops using (shop)"
        ...     file = query_to_parquet(query, tables, folder)
        ...     next(TableSource([file]).scan()).to_pydict()
        {'shop': [2, 1, 3], 'click': [1, 0, 1], 'city': ['Rome', 'Bern', None]}
    """
    place = Path(folder, _digest(sql, tables)) / _NAME
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as beside:
            _write(sql, tables, unique or {}, Path(beside), place, progress or _nobody)
    return DataFile(str(place), "parquet")


def text_to_parquet(
    source: TableSource,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[str], None] | None = None,
) -> list[DataFile]:
    r"""Write the rows of text files to Parquet files, unless they lie there already.

    There is a file for each, with its rows in their order and its name, so that a split by chance is that of
    the text. They lie in a folder that is named by a digest of the bytes of all files and how they are read.
    Types are those that all values of all files fit.

    Args:
        source: the text.
        folder: where theirs is to be.
        progress: is told what is being done. Default: nobody is.

    Returns:
        The files, in the order of the text.

    Raises:
        ValueError: text does not fit the types that were given, or is none.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "clicks.csv")
        ...     _ = path.write_text("shop,click\n2,1\n1.5,0\n")
        ...     files = text_to_parquet(TableSource(path), folder)
        ...     files[0].name, next(TableSource(files).scan()).to_pydict()
        ('clicks', {'shop': [2.0, 1.5], 'click': [1, 0]})
    """
    place = Path(folder, _digest("", {DATA: source}))
    parts = [Path(str(number), f"{file.name}.parquet") for number, file in enumerate(source.files)]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as beside:
            _copy_text(source, [Path(beside, "whole", part) for part in parts], progress or _nobody)
            with suppress(OSError):  # another process was faster: its files are the same
                os.rename(Path(beside, "whole"), place)
    return [DataFile(str(place / part), "parquet") for part in parts]


def _nobody(_: str) -> None:
    pass


def _digest(sql: str, tables: Mapping[str, TableSource | Sequence[DataFile]]) -> str:
    said: dict[str, object] = {}
    for name, table in sorted(tables.items()):
        files = table.files if isinstance(table, TableSource) else table
        how = [repr(table.dialect), str(table.schema)] if isinstance(table, TableSource) else []
        said[name] = [[file.name, file.format, file.fingerprint(most=None)] for file in files] + how
    return hashlib.blake2b(json.dumps([_VERSION, sql, said]).encode(), digest_size=12).hexdigest()


def _write(
    sql: str,
    tables: Mapping[str, TableSource | Sequence[DataFile]],
    unique: Mapping[str, Sequence[str]],
    beside: Path,
    place: Path,
    progress: Callable[[str], None],
) -> None:
    duckdb = _engine()
    settings: dict[str, Any] = {
        "threads": 1,  # so that rows come in one order
        "memory_limit": _MEMORY,
        "temp_directory": str(beside / "spilled"),
        "preserve_insertion_order": True,
        "autoinstall_known_extensions": False,  # nothing is fetched
    }
    with duckdb.connect(config=settings) as engine:
        notices: list[str] = []
        for number, (name, table) in enumerate(tables.items()):
            progress(f"reading {name}")
            notices += _add_table(engine, name, table, beside / str(number))
        for name, columns in unique.items():
            _require_unique(engine, name, columns)
        progress("running the query")
        try:
            found = engine.execute(f"describe {sql}").fetchall()
            names = [column[0] for column in found]
            ordered = f"select * exclude ({ROW}) from ({sql}) order by {ROW}"
            rows = ordered if ROW in names else sql
            whole = beside / _NAME
            told = ", ".join(
                f"'{key}': '{_quoted(text)}'" for key, text in described(notices).items()
            )
            also = f", kv_metadata {{{told}}}" if told else ""
            engine.execute(f"copy ({rows}) to '{_quoted(whole)}' (format parquet{also})")
            if unique:
                _require_as_many(engine, whole)
        except duckdb.Error as error:
            raise ValueError(_refused(sql, tables, error)) from error
    os.replace(whole, place)


def _engine() -> Any:
    try:
        import duckdb
    except ImportError:
        raise ValueError(
            "DuckDB should be installed for queries and JSON: pip install 'rowwise[query]'."
        ) from None
    return duckdb


def _add_table(
    engine: duckdb.DuckDBPyConnection,
    name: str,
    table: TableSource | Sequence[DataFile],
    beside: Path,
) -> list[str]:
    """Make a view of a table; of text by a Parquet file, so that it is read as everywhere else.

    Returns:
        What was odd about it.
    """
    notices: list[str] = []
    if isinstance(table, TableSource):
        paths = [file.path for file in table.files]
        if table.files[0].format != "parquet":
            copies = [beside / f"{number}.parquet" for number in range(len(paths))]
            notices, paths = _copy_text(table, copies, _nobody), list(map(str, copies))
        else:
            notices = table.notices
            _require_alike(table)
        # What folders are called is no column; of several files a column has the type that all fit.
        read = f"read_parquet({_listed(paths)}, hive_partitioning=false, union_by_name={len(paths) > 1})"
    else:
        paths = [file.path for file in table]
        read = f"read_json({_listed(paths)}, sample_size=-1, hive_partitioning=false)"
    if name == DATA and ROW in [
        column[0].lower() for column in engine.execute(f"describe select * from {read}").fetchall()
    ]:
        raise ValueError(
            f"Data of a query should have no column '{ROW}': it numbers their rows. Received one."
        )
    _require_distinct(name, table)
    number = f", row_number() over () - 1 as {ROW}" if name == DATA else ""
    engine.execute(f"create view {sql_name(name)} as select *{number} from {read}")
    return notices


def _require_alike(table: TableSource) -> None:
    """Refuse Parquet files of which one lacks a column: SQL would take it for missing values."""
    names = set(table.names)
    for file in table.files:
        lacking = names.symmetric_difference(pq.read_schema(file.path).names)
        if lacking:
            raise ValueError(
                f"Files of a query should have the same columns. Received '{min(lacking)}' in one of "
                f"'{table.files[0].path}' and '{file.path}' alone."
            )


def _require_unique(engine: duckdb.DuckDBPyConnection, name: str, columns: Sequence[str]) -> None:
    """Refuse a table with two rows for the same values: whoever has them would become two rows as well."""
    keys = ", ".join(map(sql_name, columns))
    known = " and ".join(f"{sql_name(column)} is not null" for column in columns)
    counted = f"select count(*) as n, {keys} from {sql_name(name)} where {known} group by {keys}"
    most = engine.execute(f"{counted} having n > 1 order by n desc, {keys} limit 1").fetchone()
    if most is not None:
        count, *values = most
        raise ValueError(
            f"Table '{name}' should have one row for each {', '.join(columns)}. Received {count} for "
            f"{', '.join(map(str, values))}."
        )


def _require_as_many(engine: duckdb.DuckDBPyConnection, whole: Path) -> None:
    """Refuse a join that made two rows of one: numbers may be one to it that differ where they are counted."""
    counts = f"select (select count(*) from {DATA}), (select count(*) from read_parquet(?))"
    before, after = engine.execute(counts, [_literal(str(whole))]).fetchall()[0]
    if before != after:
        raise ValueError(
            f"A join should give each row once: `{DATA}` has {before} rows. Received {after}: keys that are "
            "integers on both sides, or text, are told apart."
        )


def sql_name(column: str) -> str:
    """Return the name of a column as SQL has it.

    Example:
        >>> sql_name('24" wide')
        '"24"" wide"'
    """
    escaped = column.replace('"', '""')
    return f'"{escaped}"'


def _require_distinct(name: str, table: TableSource | Sequence[DataFile]) -> None:
    """Refuse columns that are one to SQL: it would give the second another name, and nobody would know."""
    if not isinstance(table, TableSource):
        return
    seen: dict[str, str] = {}
    for column in table.names:
        first = seen.setdefault(column.lower(), column)
        if first != column:
            raise ValueError(
                f"Columns of a query should differ by more than capitals. Received '{first}' and '{column}' in "
                f"table '{name}'."
            )


def _copy_text(
    source: TableSource, paths: Sequence[Path], progress: Callable[[str], None]
) -> list[str]:
    """Write each file of text as Parquet, with types that the values of all fit; return what was odd."""
    while True:
        names = source.names  # types may be known of further columns, which these files lack
        schema = pa.schema([source.schema.field(name) for name in names])
        chunks = source.chunks(names, Reading())
        try:
            chunk = next(chunks, None)
            for number, path in enumerate(paths):
                progress(f"reading {source.files[number].path}")
                with ParquetWriter(path, schema) as file:
                    while chunk is not None and chunk.file == number:
                        file.write(source.decode(chunk, names))
                        chunk = next(chunks, None)
                    if number == len(paths) - 1:  # by now all of it has been read
                        file.describe(described(source.notices))
            return source.notices
        except MisfitError as misfit:
            if not misfit.wider:
                raise
            source = source.retyped(misfit.wider)


def _listed(paths: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{_quoted(_literal(path))}'" for path in paths) + "]"


def _literal(path: str) -> str:
    """Return the pattern that a path alone matches: DuckDB takes paths for patterns."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def _quoted(path: str | Path) -> str:
    return str(path).replace("'", "''")


def _refused(
    sql: str, tables: Mapping[str, TableSource | Sequence[DataFile]], error: Exception
) -> str:
    first = str(error).strip().splitlines()[0]
    name = first.partition("Table with name ")[2].partition(" ")[0]
    near = did_you_mean(name, list(tables)) if name else ""
    return (
        f"A query should be one that DuckDB runs over the tables {', '.join(tables)}. Received "
        f"{' '.join(sql.split())[:200]!r}: {first}{near or ''}"
    )
