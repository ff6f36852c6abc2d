"""Negatives that are drawn: never the user's own, as likely as they should be, the same wherever they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets import drawn_negatives
from torchrec.datasets._chunks import Reading
from torchrec.datasets.drawn_negatives import DrawnNegatives, NegativeSampling
from torchrec.datasets.features import SparseFeature
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit
from torchrec.datasets.transform import FeatureTransform

pytestmark = pytest.mark.once

USERS, ITEMS = 12, 15


def log(folder: Path, rows: int = 300, kind: str = "int64") -> TableSource:
    """Write a log in two files: of items the more popular the lower, with a column that goes with them."""
    random = np.random.default_rng(0)
    users = random.integers(USERS, size=rows)
    items = np.minimum(random.geometric(0.25, rows) - 1, ITEMS - 1)
    items[:ITEMS] = np.arange(ITEMS)
    table = pa.table(
        {
            "user": users,
            "item": pa.array(items).cast(kind),
            "tags": [[f"t{item}"] * (item % 3) for item in items],
            "row": np.arange(rows),
        }
    )
    half = rows // 2
    for number, part in enumerate((table[:half], table[half:])):
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=40)
    return TableSource(folder)


def drawn(source: TableSource, **options: object) -> TableSource:
    values = {"per_positive": 3, **options}
    sampling = NegativeSampling("user", ("item", "tags"), **values)  # type: ignore[arg-type]
    return source.with_drawn(DrawnNegatives(sampling, [source]))


def read(source: TableSource) -> pa.Table:
    return pa.concat_tables(source.scan())


def pairs(table: pa.Table, positive: int) -> list[tuple[int, object]]:
    rows = zip(
        table["user"].to_pylist(),
        table["item"].to_pylist(),
        table["positive"].to_pylist(),
        strict=True,
    )
    return [(user, item) for user, item, label in rows if label == positive]


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_rows_of_the_log_and_behind_each_items_that_its_user_never_had(tmp_path, kind, by):
    source = log(tmp_path, kind=kind)
    table = read(drawn(source, by=by))
    assert table.num_rows == 4 * 300 == drawn(source).rows
    assert table["positive"].to_pylist() == [1, 0, 0, 0] * 300
    assert table["row"].to_pylist() == [row for row in range(300) for _ in range(4)]
    plain = read(source)
    assert table.filter(table["positive"].cast("bool")).to_pydict() == {
        **plain.to_pydict(),
        "positive": [1] * 300,
    }
    own = set(pairs(table, 1))
    negatives = pairs(table, 0)
    assert not own & set(negatives)
    assert {item for _, item in negatives} <= {item for _, item in own}
    for item, tags in zip(table["item"].to_pylist(), table["tags"].to_pylist(), strict=True):
        assert tags == [f"t{item}"] * (int(item) % 3)


@pytest.mark.parametrize("by", ["uniform", "popularity"])
@pytest.mark.parametrize("attempts", [64, 0], ids=["rejected", "listed"])
def test_each_item_is_as_likely_as_it_should_be(tmp_path, monkeypatch, by, attempts):
    """Chi-squared, by user; both ways of drawing: again until one fits, and among those that are left."""
    monkeypatch.setattr(drawn_negatives, "_ATTEMPTS", attempts)
    source = log(tmp_path)
    plain = read(source)
    counts = np.bincount(plain["item"].to_numpy(), minlength=ITEMS)
    weights = counts.astype(float) if by == "popularity" else np.ones(ITEMS)
    own = set(zip(plain["user"].to_pylist(), plain["item"].to_pylist(), strict=True))
    table = read(drawn(source, by=by, per_positive=200, seed=5))
    found = np.zeros((USERS, ITEMS))
    np.add.at(found, tuple(np.array(pairs(table, 0)).T), 1)
    expected = np.array(
        [[weights[i] * ((user, i) not in own) for i in range(ITEMS)] for user in range(USERS)]
    )
    expected *= (found.sum(1) / expected.sum(1))[:, None]
    assert (found[expected == 0] == 0).all()
    there = expected > 0
    statistic = ((found - expected)[there] ** 2 / expected[there]).sum()
    freedom = int(there.sum()) - USERS
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)  # four standard deviations


def test_draws_do_not_depend_on_what_is_read_together(tmp_path):
    source = drawn(log(tmp_path))
    whole = read(source)
    chunks = list(source.chunks(source.schema.names, Reading(chunk_rows=7)))
    parts = pa.concat_tables([source.decode(chunk, source.schema.names) for chunk in chunks])
    assert parts.equals(whole)
    split = source.of(FractionSplit(valid=0.5, test=0.0))
    part = read(split)
    rows = set(part["row"].to_pylist())
    assert 0 < len(rows) < 300
    expected = whole.filter(pa.array([row in rows for row in whole["row"].to_pylist()]))
    assert part.equals(expected)
    assert split.rows == part.num_rows


@pytest.mark.parametrize("redraw", [True, False], ids=["anew", "same"])
def test_epochs(tmp_path, redraw):
    source = drawn(log(tmp_path), redraw=redraw)
    features = {"item": SparseFeature(ids="plain", rows=ITEMS)}
    transform = FeatureTransform(features, label="positive").fit(source.scan())
    loader = Loader(source, transform, 50, shuffle_window=0, workers=2)
    assert loader.samples == 1200
    epochs = []
    for epoch in (0, 1, 0):
        loader.epoch = epoch
        batches = list(loader)
        assert sum(batch.labels.sum().item() for batch in batches) == 300
        epochs.append([i for b in batches for i in b.sparse_features.values().tolist()])
    assert epochs[0] == epochs[2]
    assert (epochs[0] == epochs[1]) is not redraw
    assert epochs[0][::4] == epochs[1][::4]


def test_seeds_draw_others(tmp_path):
    source = log(tmp_path)
    assert not read(drawn(source, seed=1)).equals(read(drawn(source)))


def test_text_read_with_other_types(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n1,7\n2,8\n1,9\n")
    source = TableSource(path)
    sampling = NegativeSampling("user", ("item",), per_positive=1)
    table = read(source.with_drawn(DrawnNegatives(sampling, [source])).retyped({"item": "string"}))
    assert table["item"].type == pa.string()
    assert table["item"].to_pylist()[1::2] == ["8", table["item"][3].as_py(), "8"]


def test_rows_without_item_or_user(tmp_path):
    pq.write_table(
        pa.table({"user": [1, None, 2], "item": ["a", "b", None]}), tmp_path / "l.parquet"
    )
    source = TableSource(tmp_path)
    sampling = NegativeSampling("user", ("item",), per_positive=5)
    table = read(source.with_drawn(DrawnNegatives(sampling, [source])))
    negatives = [item for _, item in pairs(table, 0)]
    assert set(negatives[:5]) == {"b"}
    assert set(negatives) == {"a", "b"}


def test_what_cannot_be_drawn_is_refused(tmp_path):
    pq.write_table(
        pa.table({"user": [1, 1], "item": [5, 6], "n": pa.nulls(2)}), tmp_path / "l.parquet"
    )
    source = TableSource(tmp_path)

    def refused(message: str, user: str = "user", item: str = "item", column: str = "c") -> None:
        sampling = NegativeSampling(user, (item,), column)
        with pytest.raises(ValueError, match=message):
            read(source.with_drawn(DrawnNegatives(sampling, [source])))

    refused("Received a user in 'user' who has had all 2: leave such users out")
    refused("should be a new column, .* Received 'user', which the data have", column="user")
    refused("`data.sampled_negatives` should name columns of the data. Received 'usr'", user="usr")
    refused("Column 'n' should hold items to draw negatives from. Received none", item="n")
