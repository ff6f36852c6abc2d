"""Bags of ids: weights that stand beside the ids, and lists in lists."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from torchrec.datasets.features import MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform

pytestmark = pytest.mark.once

PAIRS = ["7:0.5|9:2", None, "3", "", "4:|5:1e-1||6:3"]
IDS = [[7, 9], None, [3], [], [4, 5, None, 6]]
WEIGHTS = [[0.5, 2.0], None, [None], [], [None, 0.1, None, 3.0]]


@pytest.mark.parametrize("ids", ["plain", "vocabulary"])
@pytest.mark.parametrize("limit", [None, 2], ids=["all", "two"])
@pytest.mark.parametrize("kind", [MultiHotFeature, SequenceFeature], ids=["bag", "sequence"])
@pytest.mark.parametrize("form", ["text", "lists"])
def test_weights_beside_ids_are_those_of_a_column(ids, limit, kind, form):
    rows = {"ids": "plain", "rows": 10} if ids == "plain" else {"ids": ids}
    texts = pa.array(PAIRS)
    if form == "lists":
        texts = pa.array([None if text is None else text.split("|") for text in PAIRS])
    paired = {"separator": "|"} if form == "text" else {}
    feature = kind(**rows, **paired, weight_separator=":", max_length=limit)
    apart = kind(**rows, weights="w", max_length=limit)
    words = IDS if ids == "plain" else [one and [i and str(i) for i in one] for one in IDS]
    columns = pa.table({"t": words, "w": pa.array(WEIGHTS, pa.list_(pa.float64()))})
    one = FeatureTransform({"t": feature}).fit([pa.table({"t": texts})])
    two = FeatureTransform({"t": apart}).fit([columns])
    found, expected = one(pa.table({"t": texts})), two(columns)
    assert one.is_weighted
    assert torch.equal(found.sparse_features.values(), expected.sparse_features.values())
    assert torch.equal(found.sparse_features.lengths(), expected.sparse_features.lengths())
    assert torch.equal(found.sparse_features.weights(), expected.sparse_features.weights())


def test_the_last_separator_parts_id_and_weight():
    feature = MultiHotFeature(separator="|", weight_separator=":", ids="vocabulary")
    table = pa.table({"t": ["a:b:2|a:3|a:b:1"]})
    found = FeatureTransform({"t": feature}).fit([table])(table).sparse_features
    first, second, third = found.values().tolist()
    assert first == third != second
    assert found.weights().tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("ids", "text", "message"),
    [
        ("hash", "7:x", "should hold numbers as weights behind its ids"),
        ("plain", "a:1", "should hold whole numbers between the separators"),
    ],
    ids=["weight", "id"],
)
def test_pairs_that_are_none_are_refused(ids, text, message):
    feature = MultiHotFeature(separator="|", weight_separator=":", ids=ids, rows=9)
    with pytest.raises(ValueError, match=f"Column 't' of feature 't' {message}"):
        FeatureTransform({"t": feature})(pa.table({"t": [text]}))


@pytest.mark.parametrize("kind", [MultiHotFeature, SequenceFeature], ids=["bag", "sequence"])
def test_weights_of_both_kinds_are_refused(kind):
    with pytest.raises(
        ValidationError, match="`weight_separator` should be left out where `weights`"
    ):
        kind(weights="w", weight_separator=":")


@pytest.mark.parametrize("outer", [pa.list_, pa.large_list], ids=["list", "large"])
def test_lists_of_lists_are_one_bag(outer):
    baskets = [[[1, 2], [3]], None, [[], [4], None], [], [[5, None], [6]]]
    column = pa.array([*baskets, [[9]]], outer(pa.list_(pa.int64())))[:5][1:]
    features = {
        "bag": MultiHotFeature(column="b", ids="plain", rows=10, table="t", max_length=1),
        "one": SparseFeature(ids="plain", rows=10, table="t"),
    }
    transform = FeatureTransform(features)
    batch = transform(pa.table({"b": column, "one": [1, 2, 3, 4]}))
    bags = [bag.tolist() for bag in batch.sparse_features["bag"].to_dense()]
    assert bags == [[], [4], [], [5]]
    counts = transform.counts.take()["bag"]
    assert (counts.samples, counts.values, counts.missing) == (4, 4, 1)
    assert (counts.nulls, counts.truncated) == (1, 1)


def test_a_list_that_is_null_over_values_has_none_of_them():
    inner = pa.ListArray.from_arrays(
        [0, 2, 3, 5], [1, 2, 3, 4, 5], mask=pa.array([False, True, False])
    )
    column = pa.ListArray.from_arrays([0, 2, 3], inner)
    transform = FeatureTransform({"bag": MultiHotFeature(ids="plain", rows=10)})
    found = transform(pa.table({"bag": column})).sparse_features
    assert (found.values().tolist(), found.lengths().tolist()) == ([1, 2, 4, 5], [2, 2])


def test_weights_of_lists_of_lists():
    table = pa.table({"b": [[[1], [2, 3]]], "w": [[[0.5], [1.5, 2.5]]]})
    feature = MultiHotFeature(ids="plain", rows=9, weights="w")
    found = FeatureTransform({"b": feature})(table).sparse_features
    assert (found.values().tolist(), found.weights().tolist()) == ([1, 2, 3], [0.5, 1.5, 2.5])
