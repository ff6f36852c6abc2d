"""What the query of an experiment gives, as its parts read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.files import resolve_files
from torchrec.datasets.source import TableSource
from torchrec.experiment.files import dump_experiment, load_experiment
from torchrec.experiment.sources import sources_of
from torchrec.experiment.tables import cache_folder, made

pytestmark = pytest.mark.once

EXPERIMENT = """
data:
  train: log.csv
  test: later.csv
  tables:
    shops: {files: shops.dat, format: csv, columns: [shop, city], delimiter: "::", encoding: latin-1}
  query: select data.*, city from data left join shops using (shop)
  label: click
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("log", 300), ("later", 20)):
        rows = "".join(f"{i % 40},{i % 6},{i % 2}\n" for i in range(count))
        Path(f"{name}.csv").write_text(f"user,shop,click\n{rows}")
    Path("shops.dat").write_text("".join(f"{i}::Köln {i}\n" for i in range(5)), "latin-1")
    Path("e.yaml").write_text(EXPERIMENT)
    return tmp_path


def rows(source: Any) -> list[dict[str, Any]]:
    return [row for table in source.scan() for row in table.to_pylist()]


def test_parts_of_an_experiment_with_a_query(folder: Path) -> None:
    experiment = load_experiment("e.yaml")
    parts = sources_of(experiment)
    expected = [
        {
            "user": i % 40,
            "shop": i % 6,
            "click": i % 2,
            "city": f"Köln {i % 6}" if i % 6 < 5 else None,
        }
        for i in range(300)
    ]
    train, valid = rows(parts.train), rows(parts.valid)
    assert len(valid) > 0
    assert len(train) + len(valid) == 300
    assert all(row in expected for row in train + valid)
    assert rows(parts.test) == expected[:20]
    assert len(list(cache_folder(experiment.output).iterdir())) == 2
    assert rows(sources_of(experiment).train) == train  # the same, kept and split
    assert len(list(cache_folder(experiment.output).iterdir())) == 2


def test_files_of_tables_are_relative_to_the_experiment(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "e.yaml").rename(folder / "sub" / "e.yaml")
    for name in ("log.csv", "later.csv", "shops.dat"):
        (folder / name).rename(folder / "sub" / name)
    experiment = load_experiment("sub/e.yaml")
    assert experiment.data.tables["shops"].files == [str(folder / "sub" / "shops.dat")]
    Path("again.yaml").write_text(dump_experiment(experiment))
    assert load_experiment("again.yaml") == experiment
    short = load_experiment("sub/e.yaml", ["data.tables={shops: sub/shops.dat}"])
    assert short.data.tables["shops"].files == [str(folder / "sub" / "shops.dat")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.query=null"], "`data.tables` should be given with `data.query`"),
        (["data.tables={data: log.csv}"], "should not name a table 'data'"),
        (
            ["data.tables={shops: nope.csv}"],
            r"`data.tables.shops`: Data file '.*nope.csv' should exist",
        ),
        (["data.query=from nope"], "Received 'from nope'"),
        (
            ["data.tables.shops.delimiter=abc"],
            r"`data.tables.shops.*delimiter` should be one character",
        ),
        (["data.tables.shops.encoding=klingon"], "encoding` should be one that Python knows"),
    ],
)
def test_mistakes(folder: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources_of(load_experiment("e.yaml", changes))


HISTORIES = """
data:
  train: log.csv
  test: later.csv
  histories:
    seen: {item: shop, user: user, time: at, last: 2, where: click = 1}
  label: click
features:
  user: {type: sparse, rows: 9}
  seen: {type: sequence, rows: 9}
"""


def test_histories_hold_what_came_before_also_of_the_training_files(folder: Path) -> None:
    Path("log.csv").write_text("user,shop,at,click\n1,5,1,1\n1,6,2,0\n1,7,3,1\n2,8,3,1\n1,9,9,1\n")
    Path("later.csv").write_text("user,shop,at,click\n1,3,4,1\n2,3,2,0\n1,4,5,0\n3,4,9,1\n")
    Path("e.yaml").write_text(HISTORIES)
    experiment = load_experiment("e.yaml", ["data.split.valid=0"])
    parts = sources_of(experiment)
    assert [row["seen"] for row in rows(parts.train)] == [None, [5], [5], None, [5, 7]]
    assert [row["seen"] for row in rows(parts.test)] == [[5, 7], None, [7, 3], None]


def test_rows_to_predict_for_need_not_say_what_happened(folder: Path) -> None:
    """They are no events then: `where` does not hold of them."""
    Path("log.csv").write_text("user,shop,at,click\n1,5,1,1\n1,6,2,0\n")
    Path("ask.csv").write_text("user,shop,at\n1,7,8\n1,8,9\n")
    Path("e.yaml").write_text(HISTORIES)
    (file,) = made(load_experiment("e.yaml").data, resolve_files("ask.csv"), folder)
    assert [row["seen"] for row in rows(TableSource([file]))] == [[5], [5]]


def test_rows_of_some_of_the_training_files_are_events_once(folder: Path) -> None:
    Path("log.csv").write_text("user,shop,at,click\n1,5,1,1\n")
    Path("more.csv").write_text("user,shop,at,click\n1,6,2,1\n1,7,3,1\n")
    Path("e.yaml").write_text(HISTORIES)
    data = load_experiment("e.yaml", ["data.train=[log.csv, more.csv]"]).data
    (file,) = made(data, resolve_files("./more.csv"), folder)
    assert [row["seen"] for row in rows(TableSource([file]))] == [[5], [5, 6]]


def test_rows_that_come_with_their_history_keep_it(folder: Path) -> None:
    Path("log.csv").write_text("user,shop,at,click\n1,5,1,1\n1,6,2,0\n")
    table = {"user": [1], "shop": [2], "at": [3], "click": [0], "seen": [[4, 4]]}
    pq.write_table(pa.table(table), "later.parquet")
    Path("e.yaml").write_text(HISTORIES)
    experiment = load_experiment("e.yaml", ["data.split.valid=0", "data.test=later.parquet"])
    assert rows(sources_of(experiment).test)[0]["seen"] == [4, 4]


def test_without_the_training_files_rows_should_have_their_history(folder: Path) -> None:
    Path("e.yaml").write_text(HISTORIES)
    Path("later.csv").write_text("user,shop,at,click\n1,3,4,1\n")
    data = load_experiment("e.yaml", ["data.train=gone.csv"]).data
    with pytest.raises(
        ValueError, match=r"`data\.histories` should find the events of `data.train`, unless"
    ):
        made(data, resolve_files("later.csv"), folder)


def test_histories_of_columns_that_are_not_there_are_refused(folder: Path) -> None:
    Path("e.yaml").write_text(HISTORIES.replace("time: at", "time: att"))
    Path("log.csv").write_text("user,shop,at,click\n1,5,1,1\n")
    message = "`data.histories.seen` should name columns of the data. Received 'att'; did you mean"
    with pytest.raises(ValueError, match=message):
        sources_of(load_experiment("e.yaml"))


@pytest.mark.parametrize("other", ["log.csv", "later.csv"])
def test_histories_by_times_that_are_text_are_refused(folder: Path, other: str) -> None:
    for name in ("log.csv", "later.csv"):
        at = "31.12.2025" if name == other else "2025-12-31"
        Path(name).write_text(f"user,shop,at,click\n1,5,{at},1\n")
    Path("e.yaml").write_text(HISTORIES)
    message = r"`data\.histories\.seen\.time` should be .* Received 'at' of string in '.*" + other
    with pytest.raises(ValueError, match=message):
        made(load_experiment("e.yaml").data, resolve_files("later.csv"), folder)
    query = 'select data.* replace (strptime("at", \'%d.%m.%Y\') as "at") from data'
    Path("log.csv").write_text("user,shop,at,click\n1,5,31.12.2025,1\n1,6,01.02.2026,1\n")
    data = load_experiment("e.yaml", [f"data.query={query}"]).data
    (file,) = made(data, resolve_files("log.csv"), folder)
    assert [row["seen"] for row in rows(TableSource([file]))] == [None, [5]]


def test_histories_by_numbers_and_by_dates_are_refused(folder: Path) -> None:
    Path("log.csv").write_text("user,shop,at,click\n1,5,1764500000,1\n")
    Path("later.csv").write_text("user,shop,at,click\n1,5,2025-12-31,1\n")
    Path("e.yaml").write_text(HISTORIES)
    message = (
        r"`data\.histories\.seen\.time` should be of one kind in all files\. Received 'at' of date32\[day\] in "
        r"'later\.csv' and of int64 in '.*log\.csv'\."
    )
    with pytest.raises(ValueError, match=message):
        made(load_experiment("e.yaml").data, resolve_files("later.csv"), folder)


def test_a_query_reads_columns_of_text_as_their_features_do(folder: Path) -> None:
    """Lists of one part look like numbers, and numbers like whole ones."""
    Path("log.csv").write_text("tags,price,click\n7,7,1\n8,8,0\n")
    Path("e.yaml").write_text(
        """
data: {train: log.csv, label: click, query: select * from data, split: {valid: 0}}
features:
  tags: {type: multi_hot, rows: 9, separator: "|"}
  price: {type: dense}
"""
    )
    train = sources_of(load_experiment("e.yaml")).train
    types = [str(train.schema.field(name).type) for name in ("tags", "price")]
    assert types == ["string", "double"]
    assert rows(train)[0] == {"tags": "7", "price": 7.0, "click": 1}


def test_types_of_columns_that_the_text_of_a_query_lacks_are_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`data.types` should name a column .* 'usr'; did you mean `user`"
    ):
        sources_of(load_experiment("e.yaml", ["data.types={usr: string}"]))


JOINED = """
data:
  train: log.csv
  test: later.csv
  join: {shops.csv: shop, regions: [city, country]}
  tables: {regions: {files: regions.dat, format: csv, delimiter: ";"}}
  label: click
"""


@pytest.fixture
def joined(folder: Path) -> Path:
    Path("shops.csv").write_text("shop,city,country\n0,Rome,IT\n1,Bern,CH\n2,Bern,US\n")
    Path("regions.dat").write_text("city;country;region\nBern;CH;Mittelland\nBern;US;Indiana\n")
    Path("e.yaml").write_text(JOINED)
    return folder


def test_columns_of_further_tables_are_joined(joined: Path) -> None:
    experiment = load_experiment("e.yaml", ["data.split.valid=0"])
    shops = [("Rome", "IT", None), ("Bern", "CH", "Mittelland"), ("Bern", "US", "Indiana")]
    expected = [
        {
            "user": i % 40,
            "shop": i % 6,
            "click": i % 2,
            **dict(
                zip(("city", "country", "region"), (*shops, *[(None,) * 3] * 3)[i % 6], strict=True)
            ),
        }
        for i in range(300)
    ]
    parts = sources_of(experiment)
    assert rows(parts.train) == expected
    assert rows(parts.test) == expected[:20]
    again = Path("again.yaml")
    again.write_text(dump_experiment(experiment))
    assert load_experiment(again) == experiment


@pytest.mark.parametrize(
    ("shops", "changes", "message"),
    [
        (
            "shop,city,country\n1,a,b\n1,c,d\n",
            [],
            "should have one row for each shop. Received 2 for 1",
        ),
        (
            "shop,user,city,country\n1,2,a,b\n",
            [],
            r"`data\.join` brings should be new ones.* Received 'user' of '.*shops.csv', which '.*log.csv' has",
        ),
        (
            "shop,city,country\nx1,a,b\n",
            [],
            r"by columns of one kind\. Received 'shop' of int64 in '.*log.csv' and of string in '.*shops.csv'",
        ),
        (
            "shp,city,country\n1,a,b\n",
            [],
            r"`data.join` should name a column of the data\. Received 'shop'; did you mean `shp`",
        ),
        (None, ["data.join={nope.csv: shop}", "data.tables=null"], "nope.csv' should exist"),
        ("shop,ROW\n1,2\n", [], r"should be new ones.* Received 'ROW' of"),
        (
            "shop,User\n1,2\n",
            [],
            r"should be new ones.* Received 'User' of '.*', which '.*log.csv' has",
        ),
        (
            None,
            ["data.join={shops.csv: [shop, shop]}", "data.tables=null"],
            "should name columns that differ",
        ),
        (
            None,
            ["data.tables.DATA=log.csv", "data.join={DATA: shop, regions: shop}"],
            "not name a table 'DATA'",
        ),
        (None, ["data.query=from data"], "`data.join` should be left out with `data.query`"),
        (None, ["data.tables.more=log.csv"], "Received 'more', which neither does"),
    ],
)
def test_joins_that_cannot_be_are_refused(
    joined: Path, shops: str | None, changes: list[str], message: str
) -> None:
    if shops is not None:
        Path("shops.csv").write_text(shops)
    with pytest.raises(ValueError, match=message):
        sources_of(load_experiment("e.yaml", changes))


def test_json_is_joined_as_text_is(joined: Path) -> None:
    Path("log.jsonl").write_text('{"shop": 1, "click": 1}\n{"shop": 7, "click": 0}\n')
    Path("shops.json").write_text('[{"shop": 1, "name": "x"}]')
    changes = ["data.join={shops.json: shop}", "data.tables=null", "data.train=log.jsonl"]
    experiment = load_experiment("e.yaml", [*changes, "data.split.valid=0", "data.test=null"])
    found = rows(sources_of(experiment)._replace(test=None).train)
    assert [row["name"] for row in found] == ["x", None][: len(found)]


def test_text_that_is_kept_gives_the_rows_and_parts_of_the_text(folder: Path) -> None:
    features = "features: {user: {type: sparse, rows: 99}}"
    Path("e.yaml").write_text(
        f"data: {{train: log.csv, test: later.csv, label: click}}\n{features}"
    )
    as_text = sources_of(load_experiment("e.yaml"))
    experiment = load_experiment("e.yaml", ["data.cache=true"])
    kept = sources_of(experiment)
    for one, other in zip(as_text, kept, strict=True):
        assert one is not None
        assert other is not None
        assert other.files[0].format == "parquet"
        assert rows(other) == rows(one)
    places = sorted(cache_folder(experiment.output).iterdir())
    assert len(places) == 2
    for place in places:
        for path in place.rglob("*.parquet"):
            path.chmod(0o444)
    assert rows(sources_of(experiment).train) == rows(as_text.train)


def test_text_that_is_kept_has_types_that_all_values_fit(folder: Path) -> None:
    lines = "".join(f"{i},{i % 2},{'x' * 200_000}\n" for i in range(50))
    Path("log.csv").write_text(f"user,click,more\n{lines}u7,1,\n")
    data = "data: {train: log.csv, label: click, cache: true}"
    Path("e.yaml").write_text(f"{data}\nfeatures: {{click: {{type: sparse, rows: 2}}}}")
    assert sources_of(load_experiment("e.yaml")).train.schema.field("user").type == pa.string()
    Path("e.yaml").write_text(data)
    with pytest.raises(ValueError, match=r"`data\.cache` should be given with `features`"):
        sources_of(load_experiment("e.yaml"))


@pytest.mark.parametrize("how", ["cache: true", "join: {items.csv: item}", "query: from data"])
def test_ids_that_are_text_in_training_are_text_everywhere(folder: Path, how: str) -> None:
    Path("items.csv").write_text("item,size\na1,1\n12,2\n7,\n")
    Path("log.csv").write_text("item,click\na1,1\n12,0\n7,1\n")
    Path("later.csv").write_text("item,click\n12,0\n7,1\n")
    features = "features: {item: {type: sparse, rows: 9}}\ntraining: {epochs: 1}\n"
    data = f"data: {{train: log.csv, valid: log.csv, test: later.csv, label: click, {how}}}"
    Path("e.yaml").write_text(f"{data}\n{features}")
    parts = sources_of(load_experiment("e.yaml"))
    assert parts.test is not None
    assert [row["item"] for row in rows(parts.test)] == ["12", "7"]
