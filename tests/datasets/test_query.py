"""Queries against the same joins, histories and filters in plain Python."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.files import resolve_files
from torchrec.datasets.query import query_to_parquet
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect

pytestmark = pytest.mark.once
Rows = list[dict[str, Any]]


def drawn(count: int) -> Rows:
    generator = random.Random(0)
    return [
        {"user": generator.randrange(20), "shop": generator.randrange(12), "n": number}
        for number in range(count)
    ]


@pytest.fixture
def log(tmp_path: Path) -> Rows:
    """Rows in three files: of text, uneven."""
    rows = drawn(700)
    for name, part in (("a", rows[:500]), ("b", rows[500:501]), ("c", rows[501:])):
        lines = [",".join(part[0]), *(",".join(map(str, row.values())) for row in part)]
        (tmp_path / f"log_{name}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "shops.csv").write_text(
        "shop;city\n" + "".join(f"{i};c{i % 3}\n" for i in range(9))
    )
    return rows


def tables(folder: Path) -> dict[str, TableSource]:
    shops = TableSource(folder / "shops.csv", dialect=TextDialect(delimiter=";"))
    return {"data": TableSource(folder / "log_*.csv"), "shops": shops}


def result(sql: str, folder: Path, **more: Any) -> Rows:
    file = query_to_parquet(sql, more or tables(folder), folder / "cache")
    return [row for table in TableSource([file]).scan() for row in table.to_pylist()]


def test_a_join_keeps_the_order_of_the_data(log: Rows, tmp_path: Path) -> None:
    cities = {shop: f"c{shop % 3}" for shop in range(9)}
    found = result("select data.*, city from data left join shops using (shop)", tmp_path)
    assert found == [{**row, "city": cities.get(row["shop"])} for row in log]
    inner = result("from data join shops using (shop)", tmp_path)
    assert [row["n"] for row in inner] == [row["n"] for row in log if row["shop"] in cities]


def test_histories_hold_what_came_before(log: Rows, tmp_path: Path) -> None:
    over = 'over (partition by "user" order by row rows between 3 preceding and 1 preceding)'
    found = result(f"select *, list(shop) {over} as seen from data", tmp_path)
    before: dict[int, list[int]] = {}
    for row, expected in zip(found, log, strict=True):
        seen = before.setdefault(expected["user"], [])
        assert (row["n"], row["seen"] or []) == (expected["n"], seen[-3:])
        seen.append(expected["shop"])


def test_an_order_of_its_own_stays(log: Rows, tmp_path: Path) -> None:
    sql = 'select "user", count(*) as n from data group by "user" order by n desc, "user"'
    found = [(row["user"], row["n"]) for row in result(sql, tmp_path)]
    counts = {user: sum(row["user"] == user for row in log) for user in range(20)}
    assert found == sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def test_the_same_rows_are_made_once(log: Rows, tmp_path: Path) -> None:
    def place(sql: str) -> Path:
        return Path(query_to_parquet(sql, tables(tmp_path), tmp_path / "cache").path)

    first = place("from data")
    stamp = first.stat().st_mtime_ns
    assert place("from data") == first
    assert first.stat().st_mtime_ns == stamp
    assert place("from data where n > 3") != first
    assert sorted(path.name for path in first.parent.iterdir()) == ["rows.parquet"]
    with (tmp_path / "shops.csv").open("a") as file:
        file.write("99;c9\n")
    assert place("from data") != first


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson.gz"])
def test_json(tmp_path: Path, suffix: str) -> None:
    rows: Rows = [
        {
            "user": f"u{i % 7}",
            "tags": [f"t{j}" for j in range(i % 3)],
            "x": i / 4 if i > 3 else None,
        }
        for i in range(3000)
    ]
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert result("select * from data", tmp_path, data=resolve_files(path)) == rows
    with pytest.raises(ValueError, match="JSON should be made Parquet by `query_to_parquet` first"):
        TableSource(path)


def test_text_is_read_with_types_that_all_values_fit(tmp_path: Path) -> None:
    lines = [str(i) for i in range(800_000)] + ["x7"]
    (tmp_path / "a.csv").write_text("id\n" + "\n".join(lines) + "\n")
    sql = "select * from data where row in (0, 799999, 800000)"
    found = result(sql, tmp_path, data=TableSource(tmp_path / "a.csv"))
    assert found == [{"id": "0"}, {"id": "799999"}, {"id": "x7"}]


def test_quotes_in_names_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), folder / "a.parquet")
    assert result("from data", folder, data=TableSource(folder / "a.parquet")) == [
        {"x": 1},
        {"x": 2},
    ]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("from dat", r"over the tables data\. Received 'from dat': .*dat does not exist"),
        ("selec * from data", r"Received 'selec \* from data': "),
        ("select nope from data", r"nope"),
        ("select cast(x || 'a' as integer) as y from data", r"Could not convert string '1a'"),
    ],
)
def test_queries_that_cannot_be_are_refused(tmp_path: Path, sql: str, message: str) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        result(sql, tmp_path, data=TableSource(tmp_path / "a.parquet"))
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_column_called_row_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"Row": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="should have no column 'row'"):
        result("from data", tmp_path, data=TableSource(tmp_path / "a.parquet"))


def test_columns_that_are_one_to_sql_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1], "shop": [2], "User": [3]}), tmp_path / "a.parquet")
    message = r"differ by more than capitals\. Received 'user' and 'User' in table 'data'\."
    with pytest.raises(ValueError, match=message):
        result("from data", tmp_path, data=TableSource(tmp_path / "a.parquet"))
