"""What users did before each row, against a loop over all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.histories import History, history_query
from torchrec.datasets.query import query_to_parquet
from torchrec.datasets.source import TableSource

pytestmark = pytest.mark.once

Row = dict[str, Any]


def log(rows: int, seed: int) -> list[Row]:
    """Return rows with many of one time, and some without user, item or time."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        user, item, at = (int(random.integers(most)) for most in (6, 30, 40))
        row = {"user": user or None, "odd \"item'": item or None, "at": at or None}
        made.append({**row, "click": int(random.integers(2))})
    return made


def history_of(row: Row, events: list[Row], last: int) -> list[int] | None:
    """Return what the user did before, by looking at every event."""
    if row["user"] is None or row["at"] is None:
        return None
    mine = [e for e in events if e["user"] == row["user"] and e["odd \"item'"] is not None]
    before = [e for e in mine if e["at"] is not None and e["at"] < row["at"]]
    before.sort(key=lambda event: event["at"])  # stable: of one time in the order of the rows
    return [event["odd \"item'"] for event in before][-last:] or None


@pytest.mark.parametrize("earlier", [False, True], ids=["alone", "after others"])
def test_the_last_items_before_each_row(tmp_path: Path, earlier: bool) -> None:
    rows, before = log(300, 0), log(100, 1) if earlier else []
    tables = {"data": rows, **({"earlier": before} if earlier else {})}
    for name, table in tables.items():
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{name}.parquet")
    histories = {
        "all": History("odd \"item'", "user", "at"),
        "clicked": History("odd \"item'", "user", "at", last=3, where="click = 1"),
    }
    sql = history_query(histories, with_earlier=earlier)
    sources = {name: TableSource(tmp_path / f"{name}.parquet") for name in tables}
    (found,) = TableSource([query_to_parquet(sql, sources, tmp_path / "made")]).scan()
    events = [*before, *rows]
    clicks = [event for event in events if event["click"]]
    expected = [
        {**row, "all": history_of(row, events, 50), "clicked": history_of(row, clicks, 3)}
        for row in rows
    ]
    assert found.to_pylist() == expected
    assert any(row["clicked"] and len(row["clicked"]) == 3 for row in expected)
