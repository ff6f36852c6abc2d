"""Columns of further tables beside each row, by columns that both have: SQL that joins them, for `query_to_parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchrec.datasets.query import DATA, sql_name


def join_query(keys: Mapping[str, Sequence[str]]) -> str:
    """Return the query that gives the rows of ``data`` in their order, with the columns of other tables.

    A row for whose values a table has no row gets nulls. A table should have no two for the same.

    Args:
        keys: by table, the columns that it shares with ``data``.

    Example:
        >>> import duckdb, pyarrow as pa
        >>> data = pa.table({"shop": [2, 9], "row": [0, 1]})
        >>> shops = pa.table({"shop": [1, 2], "city": ["Bern", "Rome"]})
        >>> duckdb.sql(join_query({"shops": ["shop"]}) + " order by row").fetchall()
        [(2, 0, 'Rome'), (9, 1, None)]
    """
    columns, joins = [f"{DATA}.*"], []
    for table, names in keys.items():
        named = ", ".join(map(sql_name, names))
        columns.append(f"{sql_name(table)}.* exclude ({named})")
        joins.append(f"left join {sql_name(table)} using ({named})")
    return f"select {', '.join(columns)} from {DATA} {' '.join(joins)}"
