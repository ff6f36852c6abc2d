"""What a user did before each row, from the rows of an event log: SQL that gathers it, for `query_to_parquet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchrec.datasets.query import DATA, ROW, sql_name

EARLIER = "earlier"
"""The table of events that came before, which are no rows themselves."""

_FIRST = 2**62  # below all numbers of rows


@dataclass(frozen=True)
class History:
    """A column of lists: for each row the last items of its user before it, oldest first.

    Args:
        item: the column whose values are listed.
        user: the column of users.
        time: the column of times, or whatever rises with time. Rows of one time do not know of one
            another: nothing tells which came first.
        last: how many items at most.
        where: which rows are events, as SQL over their columns. Default: all.
    """

    item: str
    user: str
    time: str
    last: int = 50
    where: str = "true"


def history_query(histories: Mapping[str, History], with_earlier: bool = False) -> str:
    """Return the query that gives the rows of ``data`` in their order, with a column for each history.

    A row without user or time has none, nor has one whose user did nothing before: null.

    Args:
        histories: by the name of the column.
        with_earlier: whether there is a table ``earlier`` of the same columns, whose rows are events as
            well. Default False.

    Example:
        >>> import duckdb, pyarrow as pa
        >>> log = {"user": [7, 7, 8, 7], "item": ["a", "b", "c", "d"], "at": [1, 2, 2, 2], "row": [0, 1, 2, 3]}
        >>> data = pa.table(log)
        >>> found = duckdb.sql(history_query({"seen": History("item", "user", "at")})).fetchall()
        >>> [row[-1] for row in found]
        [None, ['a'], None, ['a']]
    """
    asked = f"select *, true as _asked from {DATA}"
    if with_earlier:
        before = (
            f"select *, row_number() over () - {_FIRST} as {ROW}, false as _asked from {EARLIER}"
        )
        asked = f"{asked} union all by name {before}"
    parts, columns, joins = [f"with _rows as ({asked})"], [], []
    for number, (name, history) in enumerate(histories.items()):
        item, user, time = map(sql_name, (history.item, history.user, history.time))
        known = f"{user} is not null and {time} is not null"
        is_event = f"({history.where}) and {item} is not null and {known}"
        events, lists, counts = (f"_{kind}_{number}" for kind in ("events", "lists", "counts"))
        parts += [
            f"{events} as (select {user} as u, {item} as i, row_number() over (partition by {user} "
            f"order by {time}, {ROW}) as n from _rows where {is_event})",
            f"{lists} as (select u, n, list(i) over (partition by u order by n rows between "
            f"{history.last - 1} preceding and current row) as items from {events})",
            # Up to its own time, without those of that very time.
            f"{counts} as (select {ROW}, {user} as u, count(*) filter (where {is_event}) over "
            f"(partition by {user} order by {time}) - count(*) filter (where {is_event}) over "
            f"(partition by {user}, {time}) as n from _rows where {known})",
        ]
        columns.append(f"{lists}.items as {sql_name(name)}")
        joins.append(
            f"left join {counts} on _rows.{ROW} = {counts}.{ROW} "
            f"left join {lists} on {counts}.u = {lists}.u and {counts}.n = {lists}.n"
        )
    chosen = f"select _rows.* exclude (_asked), {', '.join(columns)} from _rows"
    return f"{', '.join(parts)} {chosen} {' '.join(joins)} where _asked"
