"""What the query of an experiment gives, as its parts read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchrec.experiment.files import dump_experiment, load_experiment
from torchrec.experiment.sources import sources_of
from torchrec.experiment.tables import cache_folder

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
