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

from torchrec.datasets.files import DataFile, resolve_files
from torchrec.datasets.joins import join_query
from torchrec.datasets.query import query_to_parquet, text_to_parquet
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


def test_text_is_made_parquet_once_file_by_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "log.csv", tmp_path / "b" / "day=2" / "log.csv"
    for path, text in ((first, "x,y\n1,a\n2,\n"), (second, 'x,y\n3,"b\nc"\n4.5,d\n')):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    source = TableSource([first, second])
    files = text_to_parquet(source, tmp_path / "kept")
    assert [file.name for file in files] == ["log", "day=2/log"]
    assert [file.name for file in source.files] == ["log", "day=2/log"]  # by which a split goes
    found = [row for table in TableSource(files).scan() for row in table.to_pylist()]
    expected = [(1.0, "a"), (2.0, None), (3.0, "b\nc"), (4.5, "d")]
    assert [tuple(row.values()) for row in found] == expected
    stamps = [Path(file.path).stat().st_mtime_ns for file in files]
    assert text_to_parquet(source, tmp_path / "kept") == files
    assert [Path(file.path).stat().st_mtime_ns for file in files] == stamps
    (folder,) = (tmp_path / "kept").iterdir()
    second.write_text("x,y\n5,e\n")
    assert text_to_parquet(source, tmp_path / "kept")[0].path != files[0].path
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert folder.exists()


def test_a_file_without_rows_between_others_stays_one(tmp_path: Path) -> None:
    for name, text in (("a", "x\n1\n"), ("b", "x\n"), ("c", "x\n2\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    files = text_to_parquet(TableSource(tmp_path / "*.csv"), tmp_path / "kept")
    assert [
        next(TableSource([file], may_be_empty=True).scan(), None) is None for file in files
    ] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("by", ["text", "query"])
def test_what_was_odd_about_text_is_told_of_what_is_made_of_it(tmp_path: Path, by: str) -> None:
    path = tmp_path / "it's.csv"
    path.write_text("x,y\n1,2\n3\n4,5\n6,7,8\n")
    source = TableSource(path, dialect=TextDialect(bad_lines="skip"))

    def files() -> list[DataFile]:
        if by == "text":
            return text_to_parquet(source, tmp_path / "kept")
        return [query_to_parquet("from data", {"data": source}, tmp_path / "kept")]

    told = [f"Lines of '{path}' with more or fewer fields than there are columns: 2, skipped."]
    assert TableSource(files()).notices == told
    assert TableSource(files()).notices == told  # kept with it
    again = query_to_parquet("from data", {"data": TableSource(files())}, tmp_path / "again")
    assert TableSource([again]).notices == told


def test_rows_that_should_be_unique_and_are_not_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("shop,day\n1,2\n")
    (tmp_path / "shops.csv").write_text("shop,day,city\n1,2,a\n1,3,b\n,2,c\n,2,d\n")
    tables = {
        "data": TableSource(tmp_path / "log.csv"),
        "sh ops": TableSource(tmp_path / "shops.csv"),
    }
    sql = join_query({"sh ops": ["shop", "day"]})
    unique = {"sh ops": ["shop", "day"]}
    file = query_to_parquet(sql, tables, tmp_path / "kept", unique=unique)
    assert next(TableSource([file]).scan()).to_pylist() == [{"shop": 1, "day": 2, "city": "a"}]
    message = "Table 'sh ops' should have one row for each shop. Received 2 for 1."
    with pytest.raises(ValueError, match=message):
        query_to_parquet("from data", tables, tmp_path / "kept", unique={"sh ops": ["shop"]})


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_what_folders_are_called_is_no_column(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "x=7" / "y=8" / f"a.{suffix}"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1, 2]}), path)
    if suffix != "parquet":
        path.write_text("x\n1\n2\n" if suffix == "csv" else '{"x": 1}\n{"x": 2}\n')
    data = resolve_files(path) if suffix == "jsonl" else TableSource(path)
    file = query_to_parquet("from data", {"data": data}, path.parent / "kept")
    found = [row for table in TableSource([file]).scan() for row in table.to_pylist()]
    assert found == [{"x": 1}, {"x": 2}]


def test_files_of_two_types_have_that_which_both_fit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1.5]}), tmp_path / "b.parquet")
    data = TableSource(tmp_path / "*.parquet")
    assert result("from data", tmp_path, data=data) == [{"x": 1.0}, {"x": 1.5}]
    pq.write_table(pa.table({"x": [1], "y": [2]}), tmp_path / "c.parquet")
    data = TableSource([tmp_path / "c.parquet", tmp_path / "a.parquet"])
    with pytest.raises(ValueError, match=r"should have the same columns\. Received 'y' in one of"):
        result("from data", tmp_path, data=data)


@pytest.mark.parametrize("name", ["d*", "d?", "d[1]", "[d"])
def test_names_of_files_are_no_patterns(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"x": [2]}), tmp_path / "d1.parquet")
    data = TableSource(resolve_files(tmp_path))
    assert sorted(row["x"] for row in result("from data", tmp_path, data=data)) == [1, 2]


def test_a_table_may_be_called_as_the_parts_of_a_query(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    tables = {name: TableSource(tmp_path / "a.parquet") for name in ("data", "sql", "version")}
    for y in (1, 2):
        file = query_to_parquet(f"select x, {y} as y from data", tables, tmp_path / "kept")
        assert next(TableSource([file]).scan()).to_pylist() == [{"x": 1, "y": y}]


def test_a_join_that_makes_two_rows_of_one_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"m": [2.0**53]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"m": [2**53, 2**53 + 1], "g": [1, 2]}), tmp_path / "b.parquet")
    tables = {name: TableSource(tmp_path / f"{name[0]}.parquet") for name in ("a", "b")}
    tables = {"data": tables["a"], "b": tables["b"]}
    with pytest.raises(
        ValueError, match=r"should give each row once: `data` has 1 rows\. Received 2"
    ):
        query_to_parquet(join_query({"b": ["m"]}), tables, tmp_path, unique={"b": ["m"]})
