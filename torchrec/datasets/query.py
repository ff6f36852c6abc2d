"""Rows by SQL: tables joined, histories gathered, JSON read, once, into a Parquet file that readers take.

DuckDB does it, within bounded memory: what does not fit lies on disk for a while.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from torchrec.checks import did_you_mean
from torchrec.datasets.files import DataFile
from torchrec.datasets.parquet_writer import ParquetWriter
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_types import MisfitError

if TYPE_CHECKING:
    import duckdb

DATA, ROW = "data", "row"
_VERSION = "1"  # of what is written for a query; another one, another file
_MEMORY = "1GB"
_NAME = "rows.parquet"


def query_to_parquet(
    sql: str,
    tables: Mapping[str, TableSource | Sequence[DataFile]],
    folder: str | os.PathLike[str],
    *,
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
        progress: is told what is being done. Default: nobody is.

    Returns:
        The file.

    Raises:
        ValueError: the query is none, names what is not there, or gives no columns.

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
            _write(sql, tables, Path(beside), place, progress or _nobody)
    return DataFile(str(place), "parquet")


def _nobody(_: str) -> None:
    pass


def _digest(sql: str, tables: Mapping[str, TableSource | Sequence[DataFile]]) -> str:
    said: dict[str, object] = {"version": _VERSION, "sql": sql}
    for name, table in sorted(tables.items()):
        files = table.files if isinstance(table, TableSource) else table
        how = [repr(table.dialect), str(table.schema)] if isinstance(table, TableSource) else []
        said[name] = [[file.name, file.format, file.fingerprint(most=None)] for file in files] + how
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


def _write(
    sql: str,
    tables: Mapping[str, TableSource | Sequence[DataFile]],
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
        for name, table in tables.items():
            progress(f"reading {name}")
            _add_table(engine, name, table, beside)
        progress("running the query")
        try:
            found = engine.execute(f"describe {sql}").fetchall()
            names = [column[0] for column in found]
            ordered = f"select * exclude ({ROW}) from ({sql}) order by {ROW}"
            rows = ordered if ROW in names else sql
            whole = beside / _NAME
            engine.execute(f"copy ({rows}) to '{_quoted(whole)}' (format parquet)")
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
) -> None:
    """Make a view of a table; of text by a Parquet file, so that it is read as everywhere else."""
    if isinstance(table, TableSource):
        paths = [file.path for file in table.files]
        if table.files[0].format != "parquet":
            paths = [str(beside / f"{name}.parquet")]
            _copy_text(table, Path(paths[0]))
        read = f"read_parquet({_listed(paths)})"
    else:
        read = f"read_json({_listed([file.path for file in table])}, sample_size=-1)"
    if name == DATA and ROW in [
        column[0].lower() for column in engine.execute(f"describe select * from {read}").fetchall()
    ]:
        raise ValueError(
            f"Data of a query should have no column '{ROW}': it numbers their rows. Received one."
        )
    _require_distinct(name, table)
    number = f", row_number() over () - 1 as {ROW}" if name == DATA else ""
    engine.execute(f'create view "{name}" as select *{number} from {read}')


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


def _copy_text(source: TableSource, path: Path) -> None:
    """Write rows of text as Parquet, with types that all their values fit."""
    while True:
        names = source.names  # types may be known of further columns, which these files lack
        schema = pa.schema([source.schema.field(name) for name in names])
        try:
            with ParquetWriter(path, schema) as file:
                for table in source.scan(names):
                    file.write(table)
            return
        except MisfitError as misfit:
            if not misfit.wider:
                raise
            source = source.retyped(misfit.wider)


def _listed(paths: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{_quoted(path)}'" for path in paths) + "]"


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
