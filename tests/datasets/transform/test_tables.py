"""Which tables features ask for, and what they have to agree on."""

from __future__ import annotations

import pytest

from torchrec.datasets.features import (
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
)
from torchrec.datasets.transform.tables import TableSpec, declared_tables
from torchrec.types import IdPolicy


def test_tables_come_in_the_order_of_the_features():
    features = {
        "price": DenseFeature(),
        "user": SparseFeature(ids="plain", rows=9, out_of_range=IdPolicy.UNKNOWN),
        "past": SequenceFeature(ids="managed", table="items", rows=5, evict="lru", evict_every=7),
        "age": DenseFeature(buckets=4, dim=2),
        "item": SparseFeature(ids="managed", table="items", dim=3, evict="lru", evict_every=7),
        "word": SparseFeature(ids="vocabulary", min_count=2),
    }
    assert declared_tables(features) == [
        TableSpec("user", ("user",), rows=9, ids="plain", out_of_range=IdPolicy.UNKNOWN),
        TableSpec(
            "items",
            ("past", "item"),
            rows=5,
            dim=3,
            ids="managed",
            pooling="mean",
            evict="lru",
            evict_every=7,
        ),
        TableSpec("age", ("age",), rows=5, dim=2, ids="plain"),
        TableSpec("word", ("word",), ids="vocabulary", min_count=2),
    ]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (SparseFeature(rows=5), SparseFeature(rows=6), "`rows` .* Received 5 and 6"),
        (SparseFeature(dim=5), SparseFeature(dim=6), "`dim` .* Received 5 and 6"),
        (SparseFeature(), SparseFeature(ids="plain"), "`ids` .* Received hash and plain"),
        (
            SparseFeature(ids="plain"),
            SparseFeature(ids="plain", out_of_range=IdPolicy.CLAMP),
            "`out_of_range` .* Received error and clamp",
        ),
        (
            SparseFeature(ids="vocabulary"),
            SparseFeature(ids="vocabulary", min_count=3),
            "`min_count` .* Received 1 and 3",
        ),
        (MultiHotFeature(), SequenceFeature(), "`pooling` .* Received sum and mean"),
    ],
    ids=["rows", "dim", "ids", "out_of_range", "min_count", "pooling"],
)
def test_features_that_share_a_table_agree(one, other, message):
    features = {
        "x": SparseFeature(),
        "a": one.model_copy(update={"table": "t"}),
        "b": other.model_copy(update={"table": "t"}),
    }
    whole = message.replace(
        "` .*", "` of features 'a' and 'b' should agree, as they share table 't'."
    )
    with pytest.raises(ValueError, match=whole):
        declared_tables(features)


@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
def test_buckets_have_a_table_of_their_own(order):
    features = {"age": DenseFeature(buckets=4), "user": SparseFeature(table="age")}
    with pytest.raises(ValueError, match=r"'age' alone. Received feature 'user' too"):
        declared_tables(dict(list(features.items())[::order]))
