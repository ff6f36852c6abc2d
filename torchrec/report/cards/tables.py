"""The embedding tables at the end of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchrec.report.card import Card, CardFile, View, folded, table_html
from torchrec.report.scale import UNKNOWN, memory, short
from torchrec.runs import TableFacts

_SHOWN = 12  # the rest unfolds


@dataclass(frozen=True)
class _Column:
    key: str
    name: str
    write: Callable[[float], str]


_COLUMNS = (
    _Column("rows", "rows", lambda n: f"{n:,.0f}"),
    _Column("dim", "dim", short),
    _Column("bytes", "memory", memory),
    _Column("ids_seen", "ids seen", lambda n: f"{n:,.0f}"),
    _Column("occupancy", "occupancy", lambda share: f"{share:.1%}"),
    _Column("out_of_range", "out of range", lambda n: f"{n:,.0f}"),
    _Column("hashed", "hashed", lambda n: f"{n:,.0f}"),
    _Column("norm_mean", "mean norm", short),
    _Column("norm_max", "max norm", short),
    _Column("dead_rows", "dead rows", lambda n: f"{n:,.0f}"),
)


def _draw(view: View) -> list[Card]:
    tables = view.run.tables
    if not tables:
        return []
    columns = [column for column in _COLUMNS if any(column.key in t.values for t in tables)]
    largest_first = sorted(tables, key=lambda table: -(table.values.get("bytes") or 0.0))
    rows = [(table.name, [_cell(column, table) for column in columns]) for table in largest_first]
    head = ["table", *(column.name for column in columns)]
    body = table_html(head, rows[:_SHOWN])
    if rows[_SHOWN:]:
        body += folded(f"{len(rows) - _SHOWN} more", table_html(head, rows[_SHOWN:]))
    size = memory(sum(table.values.get("bytes") or 0.0 for table in tables))
    about = (
        f"{len(tables)} in all, {size}; the largest first. Ids out of range and hashed are counted over "
        "all training passes, each time they come."
    )
    return [Card("Embedding tables", about, body, wide=True)]


def _cell(column: _Column, table: TableFacts) -> str:
    value = table.values.get(column.key)
    return column.write(value) if value is not None and math.isfinite(value) else UNKNOWN


CARDS = CardFile("tables", 10, _draw)
