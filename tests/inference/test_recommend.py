"""The best candidates of each user: against all pairs sorted, in blocks of any size."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.inference import recommend as module
from torchrec.inference.predictor import Predictor
from torchrec.inference.recommend import Keys, recommend

pytestmark = pytest.mark.once

USERS = [3, 1, 4, 1, 5]
ITEMS = [20, 7, 9, 30, 11, 2]
PRICES = [0.5, 0.25, 0.5, 1.0, 0.0, 0.25]
SEEN = [(1, 9), (1, 30), (5, 20), (5, 99), (77, 7)]


class Model(torch.nn.Module):
    """Scores that tie often: of the price, and of whether user and item are both odd."""

    def forward(self, dense, sparse):
        user, item = sparse.values().view(2, -1)
        click = dense[:, 0] * 4 + ((user % 2) * (item % 2))
        return torch.stack([click, -click, click, click], 1)


@pytest.fixture
def predictor() -> Predictor:
    features = {
        "user": SparseFeature(ids="plain", rows=100),
        "item": SparseFeature(ids="plain", rows=100),
        "price": DenseFeature(standardise=False, fill=0.0),
    }
    targets = {"click": Target("click"), "cost": Target("cost", "regression")}
    targets["stars"] = Target("stars", "multiclass", 2)
    rows = pa.table({"user": [1], "item": [1], "price": [1.0]})
    return Predictor(None, FeatureTransform(features, targets=targets).fit([rows]), Model())


@pytest.fixture
def sources(tmp_path):
    def source(name: str, **columns) -> TableSource:
        pq.write_table(pa.table(columns), tmp_path / name)
        return TableSource(tmp_path / name)

    users = source("users.parquet", user=USERS)
    items = source("items.parquet", item=ITEMS, price=PRICES)
    seen = source("seen.parquet", item=[i for _, i in SEEN], user=[u for u, _ in SEEN])
    return users, items, seen


def expected(predictor: Predictor, k: int, task: str, seen: set[tuple[int, int]]) -> list[tuple]:
    found = []
    for user in USERS:
        columns = {"user": [user] * len(ITEMS), "item": ITEMS, "price": PRICES}
        scores = predictor.predict_tasks(columns)[task].tolist()
        rows = [i for i in range(len(ITEMS)) if (user, ITEMS[i]) not in seen]
        best = sorted(rows, key=lambda i: -scores[i])[:k]  # stable
        found += [(user, ITEMS[i], rank, scores[i]) for rank, i in enumerate(best, 1)]
    return found


@pytest.mark.parametrize(
    ("users_at_once", "block", "pairs"), [(8192, 8192, 65_536), (2, 4, 9), (3, 1, 1)]
)
@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize(("k", "task"), [(3, "click"), (3, "cost"), (2**64, "click")])
def test_best_of_all_pairs(
    predictor, sources, monkeypatch, users_at_once, block, pairs, with_seen, k, task
) -> None:
    for name, size in (("_USERS", users_at_once), ("_CANDIDATES", block), ("_PAIRS", pairs)):
        monkeypatch.setattr(module, name, size)
    users, items, seen = sources
    tables = recommend(predictor, users, items, k, task=task, seen=seen if with_seen else None)
    table = pa.concat_tables(tables)
    assert table.column_names == ["user", "item", "rank", "score"]
    found = list(zip(*table.to_pydict().values(), strict=True))
    assert found == expected(predictor, k, task, set(SEEN) if with_seen else set())


MANY_USERS = """
import json, sys
import pyarrow as pa, pyarrow.parquet as pq, torch
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.inference.predictor import Predictor
from torchrec.inference.recommend import recommend
from torchrec.training.memory import peak_rss_bytes

torch.set_num_threads(1)
features = {"user": SparseFeature(ids="plain", rows=50_000), "price": DenseFeature()}
transform = FeatureTransform(features, targets={"click": Target("click")})
transform.fit([pa.table({"user": [1, 2], "price": [1.0, 2.0]})])

class Price(torch.nn.Module):
    def forward(self, dense, sparse):
        return dense

users, items = (TableSource(path) for path in sys.argv[1:])
rows, peaks = 0, []
for table in recommend(Predictor(None, transform, Price()), users, items, 20):
    rows += table.num_rows
    peaks.append(peak_rss_bytes())
print(json.dumps([rows, *peaks]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_users(tmp_path) -> None:
    """Six times 8,192 users: after two times all is there that is needed."""
    ids = pa.table({"user": np.arange(6 * 8192)})
    pq.write_table(ids, tmp_path / "users.parquet", row_group_size=8192)
    items = pa.table({"item": np.arange(100), "price": np.random.default_rng(0).random(100)})
    pq.write_table(items, tmp_path / "items.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in ("users", "items")]
    done = subprocess.run(
        [sys.executable, "-c", MANY_USERS, *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows, _, second, *_, last = json.loads(done.stdout)
    assert rows == 6 * 8192 * 20
    assert last - second < 12e6  # bytes; what is written for the others since is 18 MB


def test_nobody_and_nothing(predictor, sources, tmp_path) -> None:
    _, items, _ = sources
    none = pa.table({"user": pa.array([], pa.int64())})
    pq.write_table(none, tmp_path / "none.parquet")
    empty = TableSource(tmp_path / "none.parquet", may_be_empty=True)
    (table,) = recommend(predictor, empty, items, task="click")
    assert (table.num_rows, table.column_names) == (0, ["user", "item", "rank", "score"])


def test_keys_of_other_columns(predictor, tmp_path) -> None:
    pq.write_table(pa.table({"user": [1, 2], "name": ["ann", "ben"]}), tmp_path / "u.parquet")
    items = pa.table({"item": ITEMS, "title": [f"t{i}" for i in ITEMS], "price": PRICES})
    pq.write_table(items, tmp_path / "i.parquet")
    sources = [TableSource(tmp_path / name) for name in ("u.parquet", "i.parquet")]
    tables = recommend(predictor, *sources, 1, task="click", keys=Keys("name", "title"))
    assert pa.concat_tables(tables).select(["name", "title"]).to_pydict() == {
        "name": ["ann", "ben"],
        "title": ["t30", "t30"],
    }


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"price": PRICES}, {}, r"the column 'item', which the model reads. Received .* and price"),
        ({"item": ITEMS, "price": PRICES, "user": ITEMS}, {}, "Received 'user' in both"),
        (
            {"item": [1, 1], "price": [1.0, 2.0]},
            {},
            "should have each 'item' once. Received 1 again",
        ),
        ({"item": ITEMS, "price": PRICES}, {"task": None}, "`task` should be one of click, cost"),
        ({"item": ITEMS, "price": PRICES}, {"task": "clik"}, r"Received 'clik'.*did you mean"),
        ({"item": ITEMS, "price": PRICES}, {"task": "stars"}, "Received 'stars', of 2 classes"),
        ({"item": ITEMS, "price": PRICES}, {"k": 0}, "`k` should be at least 1. Received 0"),
        (
            {"item": ITEMS, "price": PRICES},
            {"keys": Keys("user", "title")},
            "The key of candidates should name columns",
        ),
    ],
)
def test_what_is_refused(predictor, sources, tmp_path, columns, options, message) -> None:
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    items = TableSource(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=message):
        list(recommend(predictor, sources[0], items, **{"task": "click", **options}))


def test_keys_of_one_name_are_refused(predictor, tmp_path) -> None:
    pq.write_table(pa.table({"id": USERS, "user": USERS}), tmp_path / "u.parquet")
    pq.write_table(pa.table({"id": ITEMS, "item": ITEMS, "price": PRICES}), tmp_path / "i.parquet")
    sources = [TableSource(tmp_path / name) for name in ("u.parquet", "i.parquet")]
    with pytest.raises(ValueError, match="Received 'id' for both"):
        list(recommend(predictor, *sources, task="click"))


@pytest.mark.parametrize("encoded", [False, True])
def test_users_without_a_key_have_seen_nothing(predictor, sources, tmp_path, encoded) -> None:
    """Null is a user like others in the file; keys may be dictionaries."""
    name = pa.array(["one", None, "five"])
    users = pa.table({"name": name.dictionary_encode() if encoded else name, "user": [1, 2, 5]})
    seen = pa.table({"name": ["five", "one", "one", None], "item": [20, 9, 30, 7]})
    for file, table in (("u.parquet", users), ("s.parquet", seen)):
        pq.write_table(table, tmp_path / file)
    tables = recommend(
        predictor,
        TableSource(tmp_path / "u.parquet"),
        sources[1],
        50,
        task="click",
        seen=TableSource(tmp_path / "s.parquet"),
        keys=Keys("name", "item"),
    )
    found: dict[object, set[int]] = {}
    for row in pa.concat_tables(tables).to_pylist():
        found.setdefault(row["name"], set()).add(row["item"])
    assert found == {"one": {*ITEMS} - {9, 30}, None: {*ITEMS}, "five": {*ITEMS} - {20}}


def test_predictors_of_tasks(predictor) -> None:
    columns = {"user": [1, 2], "item": [1, 3], "price": [0.0, 1.0]}
    found = predictor.predict_tasks(columns)
    assert list(found) == ["click", "cost", "stars"]
    assert found["click"].tolist() == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-4))])
    assert found["cost"].tolist() == [-1.0, -4.0]
    assert found["stars"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    for method in (predictor.predict, predictor.logits):
        with pytest.raises(
            ValueError, match="one with the tasks click, cost, stars: `predict_tasks`"
        ):
            method(columns)
