"""The whole transform against a slow one in plain Python, over tables of every layout."""

from __future__ import annotations

import copy
import decimal
import itertools
import math
import pickle
import re
import statistics
import threading
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from torchrec.datasets.data_error import DataError
from torchrec.datasets.features import (
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
)
from torchrec.datasets.transform import FeatureCounts, FeatureTransform
from torchrec.datasets.utils import Batch

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.none()
INTS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 3) | st.none()
SMALL = st.integers(-3, 3) | st.none()
TEXTS = st.sampled_from(["", "a", "b", "ü", "a longer piece of text than a stripe has bytes"]) | (
    st.none()
)
LISTS = st.lists(SMALL, max_size=4) | st.none()
TEXT_LISTS = st.lists(TEXTS, max_size=4) | st.none()
SPLIT = st.sampled_from(["", "a", "a|b", "|", "b||a|", "c|b|a"]) | st.none()
PAIRS = st.lists(SMALL, min_size=2, max_size=2) | st.none()

# Column -> values, and the types that they may have.
COLUMNS: dict[str, tuple[Any, list[pa.DataType]]] = {
    "price": (FLOATS, [pa.float32(), pa.float64()]),
    "age": (SMALL, [pa.int8(), pa.int64(), pa.float32(), pa.decimal128(9, 2)]),
    "paid": (st.booleans() | st.none(), [pa.bool_()]),
    "id": (INTS, [pa.int64(), pa.dictionary(pa.int8(), pa.int64())]),
    "user": (
        TEXTS,
        [
            pa.string(),
            pa.large_string(),
            pa.binary(),
            pa.string_view(),
            pa.dictionary(pa.int16(), pa.string()),
        ],
    ),
    "tags": (TEXT_LISTS, [pa.list_(pa.string()), pa.large_list(pa.large_string())]),
    "seen": (LISTS, [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.float64())]),
    "pair": (PAIRS, [pa.list_(pa.int64(), 2)]),
    "genres": (SPLIT, [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]),
}


@st.composite
def tables(draw: st.DrawFn, min_rows: int = 0) -> pa.Table:
    """Tables whose columns lie in memory in different ways: chunks, slices, offsets."""
    rows = draw(st.integers(min_rows, 9))
    columns = {}
    for name, (values, types) in COLUMNS.items():
        before = draw(st.integers(0, 9))
        drawn = draw(st.lists(values, min_size=before + rows, max_size=before + rows))
        type = draw(st.sampled_from(types))
        column = array(drawn, type)[before:]
        cut = draw(st.integers(0, rows))
        chunks = [column] if draw(st.booleans()) else [column[:cut], column[cut:]]
        columns[name] = pa.chunked_array(chunks, column.type)
    return pa.table(columns)


def array(values: list[Any], type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type):
        return pa.array(values, type.value_type).dictionary_encode()
    if pa.types.is_binary(type):
        return pa.array(values, pa.string()).cast(type)
    return pa.array(values, type)


def hashed(value: Any) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value)
    data = value if isinstance(value, bytes) else value.encode()
    number = xxhash.xxh64_intdigest(data)
    return number - (1 << 64) if number >= 1 << 63 else number


def slow_number(value: Any, log: bool) -> float | None:
    if value is None or not abs(float(value)) < math.inf:
        return None
    number = float(value)
    return math.copysign(math.log1p(abs(number)), number) if log else number


def slow_numbers(values: list[Any], train: list[Any], feature: DenseFeature) -> list[float]:
    known = [x for x in (slow_number(v, feature.log) for v in train) if x is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    fill = mean if feature.fill == "mean" else slow_number(feature.fill, feature.log)
    numbers = [slow_number(v, feature.log) for v in values]
    filled = [fill if x is None else x for x in numbers]
    if not feature.standardise:
        return filled
    deviation = statistics.pstdev(known) or 1.0
    return [(x - mean) / deviation for x in filled]


def slow_bags(values: list[Any], feature: Any) -> list[list[int]]:
    bags = []
    for value in values:
        if isinstance(feature, SparseFeature):
            bag = [value]
        elif isinstance(value, str) and feature.separator:
            bag = [part or None for part in value.split(feature.separator)]
        else:
            bag = list(value or [])
        ids = [hashed(x) for x in bag if x is not None and x == x]
        limit = None if isinstance(feature, SparseFeature) else feature.max_length
        if limit is not None:
            ids = ids[-limit:] if isinstance(feature, SequenceFeature) else ids[:limit]
        bags.append(ids)
    return bags


def slow_vocabulary(bags: list[list[int]], feature: Any) -> dict[int, int]:
    counts = Counter(id for bag in bags for id in bag)
    ids = sorted(counts, key=lambda id: (-counts[id], id))
    ids = [id for id in ids if counts[id] >= feature.min_count]
    return {id: row for row, id in enumerate(ids[: feature.rows])}


def brief(value: Any) -> str:
    """Name a feature by its type and what was said about it, for the names of tests."""
    if isinstance(value, BaseModel):
        said = [f"{name}={getattr(value, name)}" for name in sorted(value.model_fields_set)]
        return "-".join([type(value).__name__, *said])
    return re.sub(r"\s+", " ", str(value))[:30]


def bags_of(batch: Batch, key: str) -> list[list[int]]:
    return batch.sparse_features[key].to_dense() and [
        bag.tolist() for bag in batch.sparse_features[key].to_dense()
    ]


SPARSE: dict[str, Any] = {
    "id": SparseFeature(rows=10),
    "user": SparseFeature(rows=10, ids="managed"),
    "tags": MultiHotFeature(rows=9, max_length=2),
    "seen": SequenceFeature(rows=9, max_length=2, ids="plain"),
    "pair": SequenceFeature(rows=9, ids="plain", table="seen"),
    "genres": MultiHotFeature(separator="|", rows=5, max_length=None),
}


@given(tables())
def test_ids(table):
    transform = FeatureTransform(SPARSE)
    assert not transform.needs_fit
    batch = transform(table)
    assert batch.sparse_features.keys() == list(SPARSE)
    assert batch.sparse_features.stride() == table.num_rows
    assert batch.dense_features.shape == (table.num_rows, 0)
    assert batch.sparse_features.weights_or_none() is None
    assert batch.sparse_features.values().dtype == torch.int64
    for name, feature in SPARSE.items():
        assert bags_of(batch, name) == slow_bags(table[name].to_pylist(), feature), name


DENSE = {
    "price": DenseFeature(fill=2.5, log=True, standardise=False),
    "cost": DenseFeature(column="price", fill=-1.0, standardise=False),
    "age": DenseFeature(fill=0.0, standardise=False),
    "paid": DenseFeature(fill=0.5, standardise=False),
}


@given(tables())
def test_numbers(table):
    batch = FeatureTransform(DENSE)(table)
    assert batch.dense_features.shape == (table.num_rows, len(DENSE))
    assert batch.dense_features.dtype == torch.float32
    assert batch.sparse_features.keys() == []
    assert batch.sparse_features.stride() == table.num_rows
    for i, (name, feature) in enumerate(DENSE.items()):
        values = table[feature.column or name].to_pylist()
        expected = torch.tensor(slow_numbers(values, [], feature), dtype=torch.float32)
        assert torch.allclose(batch.dense_features[:, i], expected, rtol=1e-6), name


LEARNED: dict[str, Any] = {
    "age": DenseFeature(),
    "old": DenseFeature(column="age", log=True, fill=3.0),
    "young": DenseFeature(column="age", standardise=False),
    "user": SparseFeature(ids="vocabulary"),
    "tags": MultiHotFeature(ids="vocabulary", rows=2),
    "genres": MultiHotFeature(ids="vocabulary", separator="|", min_count=2),
}


def has_values(table: pa.Table) -> bool:
    return all(
        any(bag for bag in slow_bags(table[name].to_pylist(), feature))
        for name, feature in LEARNED.items()
        if not isinstance(feature, DenseFeature)
    ) and any(value is not None for value in table["age"].to_pylist())


@given(tables(min_rows=1).filter(has_values), tables())
def test_what_is_learned(train, table):
    cut = train.num_rows // 2
    transform = FeatureTransform(LEARNED)
    assert transform.needs_fit
    with pytest.raises(ValueError, match=r"should be fitted to the training data first"):
        transform(table)
    batch = transform.fit([train[:cut], train[cut:]])(table)
    assert not transform.needs_fit
    numbers = [name for name, feature in LEARNED.items() if isinstance(feature, DenseFeature)]
    assert transform.dense_names == numbers
    for i, name in enumerate(numbers):
        values = table["age"].to_pylist(), train["age"].to_pylist()
        expected = torch.tensor(slow_numbers(*values, LEARNED[name]), dtype=torch.float32)
        assert torch.allclose(batch.dense_features[:, i], expected, rtol=1e-5, atol=1e-6), name
    counts = transform.counts.take()
    for spec in transform.tables:
        name, feature = spec.name, LEARNED[spec.name]
        ids = slow_bags(train[name].to_pylist(), feature)
        rows = slow_vocabulary(ids, feature)
        unknown = len(rows)
        assert spec.rows == unknown + 1
        assert spec.distinct == len({id for bag in ids for id in bag})
        bags = slow_bags(table[name].to_pylist(), feature)
        assert bags_of(batch, name) == [[rows.get(id, unknown) for id in bag] for bag in bags]
        assert counts[name].unknown == sum(id not in rows for bag in bags for id in bag)


@given(tables(min_rows=1).filter(has_values), tables())
def test_saved_and_loaded_it_is_the_same(tmp_path_factory, train, table):
    folder = tmp_path_factory.mktemp("saved")
    features = {**LEARNED, "bucket": DenseFeature(column="age", buckets=4), "id": SPARSE["id"]}
    transform = FeatureTransform(features).fit([train])
    transform.save(folder)
    loaded = FeatureTransform.load(folder)
    assert loaded.tables == transform.tables
    assert list(loaded.features.items()) == list(features.items())
    same(loaded(table), transform(table))
    same(copy.deepcopy(transform)(table), transform(table))
    same(pickle.loads(pickle.dumps(transform))(table), transform(table))


def same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.dense_features, other.dense_features)
    assert torch.equal(one.labels.isnan(), other.labels.isnan())
    assert torch.equal(one.labels.nan_to_num(), other.labels.nan_to_num())
    one_ids, other_ids = one.sparse_features, other.sparse_features
    assert one_ids.keys() == other_ids.keys()
    assert torch.equal(one_ids.values(), other_ids.values())
    assert torch.equal(one_ids.lengths(), other_ids.lengths())


def test_any_part_of_a_table_is_the_same_to_the_last_bit():
    random = np.random.default_rng(0)
    prices = pa.array(random.lognormal(3, 4, 1000), mask=random.random(1000) < 0.1)
    table = pa.table(
        {"price": prices, "user": pa.array(random.integers(0, 50, 1000)).cast("string")}
    )
    features = {"price": DenseFeature(log=True), "user": SparseFeature(ids="vocabulary")}
    transform = FeatureTransform(features).fit([table])
    whole = transform(table)
    for first, last in [(0, 1), (1, 2), (3, 20), (17, 17), (990, 1000)]:
        part = transform(table[first:last])
        assert torch.equal(part.dense_features, whole.dense_features[first:last])
        expected = whole.sparse_features["user"].values()[first:last]
        assert torch.equal(part.sparse_features["user"].values(), expected)


TABLE = pa.table(
    {
        "price": [1.0, None, math.inf, math.nan],
        "user": ["ann", None, "bob", "ann"],
        "tags": [["x", None, "y"], None, [], ["x", "y", "z"]],
        "weight": [[0.5, 9.0, None], None, [], [1.0, 2.0, math.inf]],
        "click": [0, 1, 1, 0],
    }
)
FEATURES: dict[str, Any] = {
    "price": DenseFeature(),
    "user": SparseFeature(ids="vocabulary", rows=1),
    "tags": MultiHotFeature(rows=10, max_length=2),
}


def test_everything_is_counted():
    transform = FeatureTransform(FEATURES, "click").fit([TABLE])
    transform(TABLE)
    expected = {
        "price": FeatureCounts(samples=4, values=1, missing=2, infinite=1),
        "user": FeatureCounts(samples=4, values=3, missing=1, unknown=1),
        "tags": FeatureCounts(samples=4, values=6, missing=1, nulls=1, truncated=1),
    }
    assert transform.counts.peek() == expected
    assert transform.counts.take() == expected
    assert all(count == FeatureCounts() for count in transform.counts.take().values())


def test_threads_count_together():
    transform = FeatureTransform(FEATURES, "click").fit([TABLE])
    threads = [
        threading.Thread(target=lambda: [transform(TABLE) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transform.counts.take()["price"] == FeatureCounts(320, 80, 160, 80)


def test_weights():
    features = {
        "user": SparseFeature(rows=10),
        "tags": MultiHotFeature(rows=10, weights="weight", max_length=2),
        "last": SequenceFeature(column="tags", table="tags", rows=10, pooling="sum", max_length=2),
    }
    transform = FeatureTransform(features, "click")
    assert transform.is_weighted
    assert transform.columns == ["user", "tags", "weight", "click"]
    ids = transform(TABLE).sparse_features
    weights = {key: [w.tolist() for w in ids[key].to_dense_weights()] for key in features}
    assert weights == {
        "user": [[1.0], [], [1.0], [1.0]],
        "tags": [[0.5, 1.0], [], [], [1.0, 2.0]],
        "last": [[1.0, 1.0], [], [], [1.0, 1.0]],
    }
    # The weight behind the null, and the infinite one; the null itself.
    assert transform.counts.take()["tags"].nulls == 3


@pytest.mark.parametrize("chunks", [[0, 4], [0, 1, 4], [0, 3, 4]], ids=str)
def test_weights_in_other_chunks(chunks):
    weight = TABLE["weight"].chunk(0)
    pieces = [weight[a:b] for a, b in itertools.pairwise(chunks)]
    table = TABLE.set_column(3, "weight", pa.chunked_array(pieces))
    features = {"tags": MultiHotFeature(rows=10, weights="weight")}
    ids = FeatureTransform(features)(table).sparse_features["tags"]
    assert ids.weights().tolist() == [0.5, 1.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("type", [pa.list_view, pa.large_list_view], ids=["small", "large"])
def test_views_of_lists(type):
    values = [["a", None], None, [], ["b"], ["c", "a", "d"]] * 3
    plain, views = pa.array(values), pa.array(values, type(pa.string()))
    offsets = pa.array([3, 0, 1], pa.int32() if type is pa.list_view else pa.int64())
    sizes = pa.array([1, 3, 2], offsets.type)
    kind = pa.ListViewArray if type is pa.list_view else pa.LargeListViewArray
    anywhere = kind.from_arrays(offsets, sizes, pa.array(["a", "b", "c", "d"]))
    transform = FeatureTransform({"tags": SequenceFeature(ids="vocabulary", max_length=2)})
    transform.fit([pa.table({"tags": plain})])
    cases = [
        (plain, views),
        (plain[2:9], views[2:9]),
        (plain[:3], views[:3]),
        (plain[:0], views[:0]),
    ]
    for lists, viewed in [*cases, (pa.array([["d"], ["a", "b", "c"], ["b", "c"]]), anywhere)]:
        one, other = (transform(pa.table({"tags": x}), labels=False) for x in (lists, viewed))
        same(one, other)


def test_weights_in_strings():
    table = pa.table({"tags": ["a|b", None, "c"], "weight": ["0.5|2", "", "3"]})
    features = {"tags": MultiHotFeature(rows=10, weights="weight", separator="|")}
    with pytest.raises(
        ValueError, match=r"'weight' .* one weight an id. Received 1 for 0 .* row 1"
    ):
        FeatureTransform(features)(table)
    table = table.set_column(1, "weight", pa.array(["0.5|2", None, "3"]))
    ids = FeatureTransform(features)(table).sparse_features["tags"]
    assert ids.weights().tolist() == [0.5, 2.0, 3.0]
    table = table.set_column(1, "weight", pa.array(["0.5|x", None, "3"]))
    with pytest.raises(ValueError, match=r"'weight' of feature 'tags' should hold numbers between"):
        FeatureTransform(features)(table)


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (SparseFeature(ids="plain"), 8),
        (SparseFeature(ids="hash"), 6),
        (SparseFeature(ids="managed"), 3),
        (SparseFeature(ids="vocabulary"), 4),
        (SparseFeature(ids="vocabulary", min_count=2), 3),
        (SparseFeature(ids="vocabulary", rows=1), 2),
    ],
    ids=brief,
)
def test_rows_that_nobody_chose(feature, rows):
    table = pa.table({"id": [0, 5, 7, 5, 0, 0]})
    (spec,) = FeatureTransform({"id": feature}).fit([table]).tables
    assert (spec.rows, spec.distinct, spec.ids) == (rows, 3, feature.ids)


def test_a_vocabulary_is_shared_by_the_features_of_a_table():
    item = SparseFeature(ids="vocabulary", table="items")
    past = SequenceFeature(ids="vocabulary", table="items", dim=8)
    table = pa.table({"item": [5, 6], "past": [[7, 7, 7], [6]]})
    transform = FeatureTransform({"item": item, "past": past}).fit([table])
    (spec,) = transform.tables
    assert (spec.rows, spec.dim, spec.features, spec.pooling) == (4, 8, ("item", "past"), "mean")
    ids = transform(table).sparse_features
    assert ids["item"].values().tolist() == [2, 1]
    assert ids["past"].values().tolist() == [0, 0, 0, 1]


def test_more_strings_than_rows_are_counted():
    names = pa.array(np.arange(50_000)).cast(pa.string())
    table = pa.table({"user": pa.concat_arrays([names, names[:1000]])})
    transform = FeatureTransform({"user": SparseFeature(ids="vocabulary", rows=1000)}).fit([table])
    (spec,) = transform.tables
    assert (spec.rows, spec.distinct) == (1001, 50_000)
    batch = transform(table)
    assert int(batch.sparse_features.values().max()) == 1000
    assert transform.counts.take()["user"].unknown == 49_000
    assert batch.sparse_features.values()[:1000].sort().values.tolist() == list(range(1000))


def test_fit_stops_when_there_is_nothing_to_learn():
    features = {"user": SparseFeature(rows=10), "price": DenseFeature(fill=0, standardise=False)}
    tables = iter([TABLE, TABLE])
    FeatureTransform(features).fit(tables)
    assert next(tables) is TABLE


def test_fit_goes_on_until_kinds_are_known():
    features = {"user": SparseFeature(rows=10), "item": SparseFeature(rows=10, table="user")}
    tables = [
        pa.table({"user": pa.nulls(1), "item": ["a"]}),
        pa.table({"user": ["a"], "item": pa.nulls(1)}),
        pa.table({"user": ["b"], "item": ["b"]}),
    ]
    rest = iter(tables)
    transform = FeatureTransform(features).fit(rest)
    assert transform.kinds == {"user": "strings", "item": "strings"}
    assert next(rest) is tables[2]
    mixed = {"user": SparseFeature(ids="vocabulary")}
    refused(
        r"Column 'user' of feature 'user' should hold strings, as before in the training data\. "
        r"Received int64\.",
        mixed,
        *tables[1:],
        pa.table({"user": [7]}),
    )
    refused(
        r"Features 'user' and 'item' should hold ids of one kind, .* Received integers and strings",
        features,
        tables[0],
        pa.table({"user": [1], "item": pa.nulls(1)}),
    )
    refused("'user' should hold values", mixed, pa.table({"user": pa.nulls(3)}), tables[0])


def test_fit_again_forgets():
    transform = FeatureTransform({"user": SparseFeature(ids="vocabulary")}).fit([TABLE])
    assert transform.tables[0].rows == 3
    assert transform.fit([TABLE[:1]]).tables[0].rows == 2


def test_record_batches_are_tables():
    transform = FeatureTransform({"user": SparseFeature(rows=10)}, "click")
    same(transform(TABLE.to_batches()[0]), transform(TABLE))


def test_the_numbers_of_times():
    table = pa.table(
        {
            "ms": pa.array([0, 1500], pa.timestamp("ms")),
            "ns": pa.array([0, 1500_000_000], pa.timestamp("ns", "UTC")),
            "day": pa.array([0, 2], pa.date32()),
            "date": pa.array([0, 86_400_000], pa.date64()),
            "clock": pa.array([0, 90], pa.time32("s")),
            "gap": pa.array([0, 90_000_000], pa.duration("us")),
        }
    )
    features = {name: DenseFeature(fill=0, standardise=False) for name in table.column_names}
    assert FeatureTransform(features)(table).dense_features.tolist() == [
        [0.0] * 6,
        [1.5, 1.5, 172_800.0, 86_400.0, 90.0, 90.0],
    ]


def test_large_means_do_not_cost_precision():
    times = 1.7e9 + np.arange(1000.0)
    transform = FeatureTransform({"t": DenseFeature()}).fit(
        [pa.table({"t": times[a : a + 100]}) for a in range(0, 1000, 100)]
    )
    found = transform(pa.table({"t": times})).dense_features[:, 0].double()
    expected = torch.from_numpy((times - times.mean()) / times.std())
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_bad_utf8_is_hashed_as_it_is():
    bad = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.array([0, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfea")],
    )
    for name, feature in {
        "s": SparseFeature(rows=9),
        "m": MultiHotFeature(column="s", separator="|", rows=9),
    }.items():
        ids = FeatureTransform({name: feature})(pa.table({"s": bad})).sparse_features.values()
        assert ids.tolist() == [hashed(b"\xff\xfe"), hashed(b"a")]


def test_tables_without_a_chunk():
    features = {**FEATURES, "tags": MultiHotFeature(rows=10, weights="weight")}
    transform = FeatureTransform(features, "click").fit([TABLE])
    for empty in (TABLE.schema.empty_table(), TABLE[:0]):
        batch = transform(empty)
        assert batch.dense_features.shape == (0, 1)
        assert batch.labels.shape == (0,)
        assert batch.sparse_features.stride() == 0


@pytest.mark.parametrize("rows", [0, 1, 5], ids=str)
def test_dictionaries_larger_than_the_table_and_inside_lists(rows):
    words = pa.array(["a", None, "b", "a", "c"])
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3, 4, 5], pa.int32()), words.dictionary_encode()
    )
    table = pa.table({"one": words.dictionary_encode(), "many": lists})[5 - rows :]
    features = {"one": SparseFeature(rows=9), "many": MultiHotFeature(rows=9)}
    batch = FeatureTransform(features)(table)
    expected = slow_bags(words.to_pylist()[5 - rows :], features["one"])
    assert bags_of(batch, "one") == bags_of(batch, "many") == expected


def test_nulls_of_no_type_are_missing():
    transform = FeatureTransform(FEATURES, "click").fit([TABLE])
    nothing = pa.table({name: pa.nulls(2) for name in FEATURES})
    batch = transform(nothing, labels=False)
    assert batch.sparse_features.lengths().tolist() == [0, 0, 0, 0]
    assert batch.dense_features.tolist() == [[0.0], [0.0]]
    assert transform.counts.take()["price"] == FeatureCounts(2, 0, 2)
    lists = nothing.set_column(2, "tags", pa.array([[], [None]], pa.list_(pa.null())))
    assert transform(lists, labels=False).sparse_features.values().numel() == 0


class TestLabels:
    @pytest.mark.parametrize("type", [pa.bool_(), pa.uint8(), pa.int64(), pa.float32()], ids=brief)
    def test_of_any_type(self, type):
        table = TABLE.set_column(4, "click", TABLE["click"].cast(type))
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, "click")
        labels = transform(table).labels
        assert labels.dtype == torch.float32
        assert labels.tolist() == [0, 1, 1, 0]
        assert transform(table, labels=False).labels.isnan().all()
        assert transform(table.drop("click"), labels=False).labels.isnan().all()
        assert transform.columns == ["user", "click"]
        assert transform.input_columns == ["user"]

    def test_from_an_expression(self):
        table = pa.table({"user": [1, 2, 3], "rating": [3, 4, 5]})
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, "rating > 3")
        assert transform(table).labels.tolist() == [0, 1, 1]
        assert transform.columns == ["user", "rating"]

    @pytest.mark.parametrize("run", ["fit", "transform"])
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([0, 5], r"The label 'click' should hold 0 and 1. Received 5; .* `click > 0` makes"),
            ([0, -1], "Received -1; an expression such as `click > -1`"),
            ([2, 2], r"Received 2, and nothing else so far; an expression over columns makes them"),
            ([0, 0.5], r"Received 0\.5"),
            ([None, 1], "Received 1 missing ones among 2 labels"),
            ([math.nan, 1.0], "Received 1 missing ones among 2 labels"),
            (
                ["yes", "no"],
                r"Received string \('yes', 'no'\); an expression such as `click == 'yes'` makes",
            ),
            (["0", "1"], "an expression such as `click == '1'` makes them"),
            ([None, None], "Received 2 missing ones among 2 labels"),
        ],
        ids=brief,
    )
    def test_are_checked(self, run, values, message):
        table = pa.table({"user": [1, 2], "click": pa.array(values, from_pandas=False)})
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, "click")
        with pytest.raises(ValueError, match=message):
            transform.fit([table]) if run == "fit" else transform(table)

    @pytest.mark.parametrize(
        ("label", "values", "drop"),
        [
            ("click", [None, 1], "click is None"),
            ("`my click` > 0", [None, 1], "`my click` is None"),
            ("click", [math.inf, 1.0], ""),
        ],
    )
    def test_errors_say_which_rows_could_be_dropped(self, label, values, drop):
        table = pa.table({"user": [1, 2], "click": values, "my click": values})
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, label)
        with pytest.raises(DataError) as caught:
            transform(table)
        assert caught.value.remedy == {"drop": drop}
        assert pickle.loads(pickle.dumps(caught.value)).remedy == {"drop": drop}

    def test_are_not_features(self):
        with pytest.raises(ValueError, match=r"Feature 'a' should not read column 'rating', which"):
            FeatureTransform({"a": DenseFeature(column="rating")}, "rating > 3")

    def test_are_asked_for(self):
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, "klick")
        with pytest.raises(ValueError, match=r"'klick' .* The nearest is 'click'"):
            transform(TABLE)


def refused(message: str, features: dict[str, Any], *tables: pa.Table) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FeatureTransform(features).fit(tables)
    assert "\n" not in str(error.value)


class TestRefused:
    def test_nothing(self):
        with pytest.raises(ValueError, match="`features` should have one or more"):
            FeatureTransform({})
        refused("`tables` should hold the training data. Received no table", FEATURES)

    def test_missing_columns(self):
        refused(
            r"Column 'usr' of feature 'usr' should be in the table. Received the columns price, "
            r"user, tags, weight, click. The nearest is 'user'\.",
            {"usr": SparseFeature(rows=9)},
            TABLE,
        )
        refused(
            "Column 'wheight' of feature 'tags' should be in the table",
            {"tags": MultiHotFeature(rows=9, weights="wheight")},
            TABLE,
        )
        twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["user", "user"])
        refused("once. Received 2 of them", {"user": SparseFeature(rows=9)}, twice)

    @pytest.mark.parametrize(
        ("feature", "values", "message"),
        [
            (
                DenseFeature(),
                ["1"],
                "should hold numbers, as a dense feature does. Received string",
            ),
            (DenseFeature(), [[1]], r"should hold numbers, .* Received list<item: int64>"),
            (
                SparseFeature(rows=9),
                [[1]],
                r"should hold one id a sample.* multi_hot and sequence features",
            ),
            (SparseFeature(), [0.5], r"should hold whole numbers or strings, .* Received 0\.5"),
            (
                SparseFeature(),
                [decimal.Decimal("1.50")],
                r"should hold whole numbers of 64 bits or strings, .* decimal128\(3, 2\): Resc",
            ),
            (SparseFeature(), [decimal.Decimal(2**70)], r"should hold .* decimal128\(22, 0\): "),
            (
                SparseFeature(),
                [1e300],
                r"should hold whole numbers or strings, .* Received 1e\+300",
            ),
            (
                SparseFeature(rows=9),
                [{"a": 1}],
                "should hold integers or strings, as ids are. Received struct",
            ),
            (SparseFeature(ids="plain"), ["a"], "should hold integers, as its `ids` are plain"),
            (MultiHotFeature(ids="plain"), [["a"]], "should hold integers, as its `ids` are plain"),
            (MultiHotFeature(rows=9), ["a"], r"should hold lists, or strings with a `separator`"),
            (MultiHotFeature(rows=9, separator=","), [1], r"should hold lists, or strings with"),
            (
                MultiHotFeature(rows=9),
                [[{"a": 1}]],
                r"should hold integers or strings, as ids are. Received struct",
            ),
            (
                MultiHotFeature(rows=9, weights="w"),
                [[1]],
                "should hold lists of weights. Received int64",
            ),
            (
                SequenceFeature(ids="plain", separator=","),
                ["1,b"],
                "should hold whole numbers between",
            ),
        ],
        ids=brief,
    )
    def test_wrong_types(self, feature, values, message):
        refused("'a' " + message, {"a": feature}, pa.table({"a": values, "w": [1]}))

    def test_times_are_no_ids(self):
        table = pa.table({"t": pa.array([0], pa.timestamp("s"))})
        refused(r"'t' should hold integers or strings.* timestamp", {"t": SparseFeature()}, table)

    @pytest.mark.parametrize(
        "feature",
        [
            DenseFeature(),
            DenseFeature(buckets=3),
            SparseFeature(),
            SparseFeature(ids="vocabulary", rows=4),
        ],
        ids=brief,
    )
    @pytest.mark.parametrize("type", [pa.null(), pa.int64()], ids=brief)
    def test_columns_of_nulls(self, feature, type):
        table = pa.table({"a": pa.nulls(5, type)})
        refused(
            r"'a'.* should .* Received none in the training data: leave .* out",
            {"a": feature},
            table,
        )

    def test_features_of_a_table_with_ids_of_two_kinds(self):
        features = {"a": SparseFeature(table="t"), "b": SparseFeature(table="t")}
        refused(
            "Features 'a' and 'b' should hold ids of one kind, as they share table 't'. Received "
            "integers and strings",
            features,
            pa.table({"a": [1], "b": ["x"]}),
        )

    @pytest.mark.parametrize(
        ("feature", "trained", "now", "message"),
        [
            (
                SparseFeature(rows=9),
                ["a"],
                [1],
                "should hold strings, as in training. Received int64",
            ),
            (
                SparseFeature(rows=9),
                [1],
                ["a"],
                "should hold integers, as in training. Received string",
            ),
            (
                DenseFeature(fill=0),
                pa.array([1, 2], pa.timestamp("s")),
                [1.0],
                "should hold local times, as in training. Received double",
            ),
            (
                MultiHotFeature(rows=9),
                [["a"]],
                [[1]],
                r"should hold strings, as in training. Received list<item: int64>",
            ),
        ],
        ids=brief,
    )
    def test_another_type_than_in_training(self, feature, trained, now, message):
        transform = FeatureTransform({"a": feature}).fit([pa.table({"a": trained})])
        with pytest.raises(ValueError, match="Column 'a' of feature 'a' " + message):
            transform(pa.table({"a": now}))

    @pytest.mark.parametrize(
        ("trained", "now"),
        [
            (pa.array([1], pa.int64()), pa.array([1], pa.int8())),
            (pa.array([1], pa.int32()), pa.array([1.0, None], pa.float64())),
            (pa.array([1], pa.int32()), pa.array([1], pa.uint64()).dictionary_encode()),
            (pa.array([1], pa.int32()), pa.array([1], pa.decimal128(9))),
            (pa.array([1], pa.int32()), pa.array([True])),
        ],
        ids=brief,
    )
    def test_wider_types_are_not_another_type(self, trained, now):
        transform = FeatureTransform({"a": SparseFeature(rows=9)}).fit([pa.table({"a": trained})])
        assert transform(pa.table({"a": now})).sparse_features.values().tolist() == [1]
