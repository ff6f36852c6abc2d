"""Few rows without Arrow: the batches, counts and errors of the long way, to the last bit."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from torchrec.datasets.features import (
    AnyFeature,
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
)
from torchrec.datasets.transform import FeatureCounts, FeatureTransform, NotPlainError
from torchrec.datasets.utils import Batch
from torchrec.inference import Predictor
from torchrec.inference.columns import to_table
from torchrec.inference.rows import MOST_ROWS, plain_columns
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once

UTC = datetime.timezone.utc
DAY = datetime.datetime(2024, 3, 1, 7, 30, 0, 250_000)
NAN = math.nan

FEATURES: dict[str, AnyFeature] = {
    "price": DenseFeature(log=True),
    "raw": DenseFeature(standardise=False, fill=-3.5, column="price"),
    "steep": DenseFeature(fill=2.0, log=True, standardise=False),
    "narrow": DenseFeature(fill=0.5),
    "constant": DenseFeature(),
    "age": DenseFeature(buckets=4, log=True),
    "hours": DenseFeature(buckets=7),
    "at": DenseFeature(column="when"),
    "day": DenseFeature(column="when", buckets=3),
    "user": SparseFeature(ids="vocabulary", min_count=2),
    "place": SparseFeature(ids="vocabulary", rows=5),
    "hashed": SparseFeature(rows=100),
    "number": SparseFeature(rows=100),
    "shop": SparseFeature(ids="plain", rows=20, out_of_range=IdPolicy.UNKNOWN),
    "warm": SparseFeature(ids="managed", rows=9),
    "tags": MultiHotFeature(rows=50, separator="|"),
    "codes": MultiHotFeature(ids="plain", rows=99, separator="::", max_length=2),
    "genres": MultiHotFeature(ids="vocabulary", pooling="mean"),
    "items": MultiHotFeature(table="seen", max_length=3, pooling="mean"),
    "seen": SequenceFeature(rows=100, weights="seen_weights", max_length=3, column="history"),
    "scored": MultiHotFeature(rows=30, separator=",", weights="scores"),
}
"""Every kind of feature: numbers, times, buckets, ids of all four kinds, lists and text, weights."""


def training_table() -> pa.Table:
    random, rows = np.random.default_rng(0), 200
    names = [f"user-{i}" for i in range(30)]

    def lists(values: Sequence[Any], most: int) -> list[Any]:
        return [random.choice(values, random.integers(0, most)).tolist() for _ in range(rows)]

    history = lists(range(40), 6)
    scored = lists(list("abcdef"), 4)
    return pa.table(
        {
            "price": np.exp(random.normal(size=rows)),
            "steep": random.integers(-90, 90, rows),
            "narrow": random.normal(size=rows) * 1e-3,
            "constant": np.full(rows, 7.25),
            "age": random.uniform(18, 80, rows),
            "hours": random.integers(0, 9, rows),
            "when": [DAY + datetime.timedelta(hours=int(h)) for h in random.integers(0, 99, rows)],
            "user": random.choice(names, rows).tolist(),
            "place": random.integers(-3, 9, rows),
            "hashed": random.choice(names, rows).tolist(),
            "number": random.integers(-(2**62), 2**62, rows),
            "shop": random.integers(0, 20, rows),
            "warm": random.choice(names, rows).tolist(),
            "tags": ["|".join(bag) for bag in lists(list("abcdef"), 4)],
            "codes": ["::".join(map(str, bag)) for bag in lists(range(99), 4)],
            "genres": lists(["drama", "crime", "", "fun"], 4),
            "items": lists(range(40), 6),
            "history": history,
            "seen_weights": [random.random(len(ids)).tolist() for ids in history],
            "scored": [",".join(bag) or None for bag in scored],
            "scores": [",".join(f"{random.random():g}" for _ in b) or None for b in scored],
        }
    )


@pytest.fixture(scope="module")
def transform() -> FeatureTransform:
    return FeatureTransform(FEATURES).fit([training_table()])


NUMBERS = [0, -0.0, 1, 3, 2.5, -7, 1e-300, 1e15, 2**53, 0.1, None, NAN]
TEXT = ["user-1", "user-2", "user-29", "nobody", "", "é✓", "x" * 70, None]
WHOLE = [0, 1, 5, 19, 20, -1, 2**63 - 1, -(2**63), 2**40, None]
ROUND = [7.0, 20, -1.0, NAN, None, 2.0**53]
LISTED = [[], [1], (2, 3), [3, None, 4], [39, 1, 2, 3, 4], [None], [2**62, 5], None]
PLAIN: dict[str, list[Any]] = {
    "price": NUMBERS,
    "steep": NUMBERS,
    "narrow": NUMBERS,
    "constant": NUMBERS,
    "age": NUMBERS,
    "hours": NUMBERS,
    "when": [DAY, DAY.replace(year=1893), datetime.datetime(1, 1, 1), None],
    "user": TEXT,
    "place": ROUND,
    "hashed": TEXT,
    "number": WHOLE,
    "shop": WHOLE,
    "warm": TEXT,
    "tags": ["", "a", "a|b", "|", "a||b|", "abc|é", None],
    "codes": ["", "1", "1::2::3", "-4", "007", "5::", "6", None],
    "genres": [[], ["drama"], ("crime", "unheard"), ["fun", None, ""], [None], None],
    "items": LISTED,
}
WEIGHTED = [
    ([], []),
    ([5], [0.1]),
    ((5, 6), (1, 2.5)),
    ([1, None, 2, 3, 4], [1.0, 2.0, None, NAN, 5]),
    (None, None),
    ([], None),
    (None, []),
]
SCORED = [("", "1"), (None, None), ("a", "0.5"), ("a,,b", "1,-2e-3,3"), ("q,r", "1E+2,007")]
ODD = [
    True,
    "text",
    3,
    2.5,
    1e300,
    math.inf,
    -math.inf,
    2**63,
    2**64,
    10**400,
    b"bytes",
    "\ud800",
    [1],
    ["a"],
    [[1]],
    [1, "a"],
    ["a", 1],
    [True],
    [1.5],
    [NAN],
    (1.0, 2),
    "1| 2",
    "0x1F::3",
    "+3",
    " 5",
    "99999999999999999999",
    "nan",
    "1e400",
    "2024-01-31",
    "2024-02-30T00:00:00",
    "2024-01-31T24:00:00",
    "2024-01-31T12:00:00Z",
    "2024-01-31T12:00:00",
    datetime.date(2024, 1, 1),
    DAY.replace(tzinfo=UTC),
    DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    datetime.timedelta(days=2),
    np.float32(0.1),
    np.int64(4),
    np.uint64(2**63),
    np.bool_(True),
    np.datetime64("2024-01-01"),
    np.str_("a"),
    np.array([1, 2]),
    np.array(3),
    torch.tensor([1, 2]),
    torch.tensor(3.0),
    pd.NA,
    pd.NaT,
    pd.Timestamp(DAY),
    {"a": 1},
    object(),
]


def drawn(random: np.random.Generator, rows: int) -> dict[str, list[Any]]:
    """Columns of plain values."""
    columns = {
        name: [values[i] for i in random.integers(0, len(values), rows)]
        for name, values in PLAIN.items()
    }
    pairs = [WEIGHTED[i] for i in random.integers(0, len(WEIGHTED), rows)]
    columns["history"], columns["seen_weights"] = map(list, zip(*pairs, strict=True))
    pairs = [SCORED[i] for i in random.integers(0, len(SCORED), rows)]
    columns["scored"], columns["scores"] = map(list, zip(*pairs, strict=True))
    return columns


def the_long_way(
    transform: FeatureTransform, data: object
) -> tuple[Batch, dict[str, FeatureCounts]]:
    transform.counts.take()
    batch = transform.transform(to_table(data, transform), labels=False)
    return batch, transform.counts.take()


def the_quick_way(
    transform: FeatureTransform, data: object
) -> tuple[Batch, dict[str, FeatureCounts]]:
    transform.counts.take()
    batch = transform.encode(*plain_columns(data, transform.input_columns))
    return batch, transform.counts.take()


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.numpy().tobytes()


def assert_same(got: Batch, expected: Batch) -> None:
    assert got.dense_features.dtype is expected.dense_features.dtype
    assert got.dense_features.shape == expected.dense_features.shape
    assert bits(got.dense_features) == bits(expected.dense_features)
    one, two = got.sparse_features, expected.sparse_features
    assert one.keys() == two.keys()
    assert one.stride() == two.stride()
    assert one.lengths().dtype is two.lengths().dtype
    assert one.values().dtype is two.values().dtype
    assert one.to_lists() == two.to_lists()
    assert bits(one.weights_or_none()) == bits(two.weights_or_none())
    assert got.labels.shape == expected.labels.shape
    assert got.labels.isnan().all()


@pytest.mark.parametrize("rows", [1, 2, 3, 17, MOST_ROWS])
def test_plain_values(transform: FeatureTransform, rows: int) -> None:
    """Every kind of feature, missing and unknown values, empty bags, cut bags, numbers beyond float32."""
    random = np.random.default_rng(rows)
    for _ in range(1500 // (rows + 4)):
        columns = drawn(random, rows)
        data: object = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        expected, counts = the_long_way(transform, data)
        got, counted = the_quick_way(transform, data)
        assert_same(got, expected)
        assert counted == counts


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("column", [*PLAIN, "history", "seen_weights", "scored", "scores"])
def test_odd_values(transform: FeatureTransform, column: str, rows: int) -> None:
    """One odd value among plain ones: the same batch, or the error of the long way."""
    random = np.random.default_rng(len(column))
    refused = 0
    for odd in ODD:
        columns = drawn(random, rows)
        columns[column][random.integers(rows)] = odd
        data: object = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        try:
            got, counted = the_quick_way(transform, data)
        except NotPlainError:
            refused += 1
            continue
        expected, counts = the_long_way(transform, data)
        assert_same(got, expected)
        assert counted == counts
    assert refused > len(ODD) / 3


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("2024-01-31T12:00:00Z", True),
        ("2024-01-31 12:00:00", True),
        ("2024-01-31T12:00:00.5", True),
        ("2024-01-31T12:00:00.123456+02:00", True),
        ("2024-01-31T00:15:00-0230", True),
        ("0001-01-01T00:00:00", True),
        ("1969-12-31T23:59:59.999999", True),
        ("2024-01-31T12:00", False),
        ("2024-01-31", False),
        ("2024-01-31T12:00:60", False),
        ("2024-02-30T12:00:00", False),
        ("2024-01-31T12:00:00+24:00", False),
        ("2024-01-31T12:00:00.1234567", False),
        ("0000-01-01T00:00:00", False),
        ("٢024-01-31T12:00:00", False),
    ],
)
def test_times_as_text(transform: FeatureTransform, text: str, plain: bool) -> None:
    columns = drawn(np.random.default_rng(0), 1) | {"when": [text]}
    zoned = training_table()
    zoned = zoned.set_column(6, "when", zoned["when"].cast(pa.timestamp("us", "UTC")))
    takes = [transform, FeatureTransform(FEATURES).fit([zoned])]
    has_zone = text.endswith(("Z", "0")) and len(text) > 19
    if has_zone:
        takes.reverse()
    if plain:
        assert_same(the_quick_way(takes[0], columns)[0], the_long_way(takes[0], columns)[0])
        with pytest.raises(ValueError, match=r"'when' should hold (zoned|local) times"):
            the_long_way(takes[1], columns)
    for each in takes[plain:]:
        with pytest.raises(NotPlainError):
            the_quick_way(each, columns)


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-31T12:00:00Z", "2024-01-31T12:00:00"],
        ["2024-01-31T12:00:00", DAY],
        [DAY, DAY.replace(tzinfo=UTC)],
        [DAY, DAY.date()],
    ],
)
def test_times_that_do_not_go_together(transform: FeatureTransform, times: list[Any]) -> None:
    columns = drawn(np.random.default_rng(0), 2) | {"when": times}
    with pytest.raises(NotPlainError):
        the_quick_way(transform, columns)


FORMS: dict[str, Callable[[dict[str, list[Any]]], object]] = {
    "columns": lambda columns: columns,
    "rows": lambda columns: pd.DataFrame(columns).astype(object).to_dict("records"),
    "pandas": pd.DataFrame,
    "arrays": lambda columns: {name: np.array(column) for name, column in columns.items()},
    "tensors": lambda columns: {
        name: torch.tensor(column) if isinstance(column[0], int | float) else column
        for name, column in columns.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    features: dict[str, AnyFeature] = {
        "price": DenseFeature(),
        "count": DenseFeature(log=True),
        "user": SparseFeature(rows=10),
        "shop": SparseFeature(rows=10),
    }
    columns: dict[str, list[Any]] = {
        "price": [1.5, 2.25, NAN],
        "count": [1, 2, 3],
        "user": ["a", "b", "c"],
        "shop": [4, 5, 6],
    }
    transform = FeatureTransform(features).fit([pa.table(columns)])
    data = FORMS[form](columns)
    if form == "arrays":  # strings of numpy are left to Arrow
        with pytest.raises(NotPlainError):
            the_quick_way(transform, data)
        data = FORMS[form](columns) | {"user": np.array(columns["user"], object)}  # type: ignore[operator]
    expected, counts = the_long_way(transform, data)
    got, counted = the_quick_way(transform, data)
    assert_same(got, expected)
    assert counted == counts


@pytest.mark.parametrize("scalar", [np.float64, np.float32, np.float16])
def test_a_row_of_numpy_scalars(scalar: type) -> None:
    features: dict[str, AnyFeature] = {"price": DenseFeature(), "user": SparseFeature(rows=10)}
    transform = FeatureTransform(features).fit(
        [pa.table({"price": [1.0, 2.0], "user": ["a", "b"]})]
    )
    data = {"price": scalar(0.1), "user": "b"}
    assert_same(the_quick_way(transform, data)[0], the_long_way(transform, data)[0])


@pytest.mark.parametrize(
    "data",
    [
        {"price": [1.0, 2.0], "user": ["a"]},
        {"price": [], "user": []},
        [],
        {"price": 1.0},
        [{"price": 1.0, "user": "a"}, {"price": 1.0}],
        [1, 2],
        {"price": [1.0] * (MOST_ROWS + 1), "user": ["a"] * (MOST_ROWS + 1)},
        pd.DataFrame([[1.0, "a", 2.0]], columns=["price", "user", "price"]),
        pd.DataFrame({"price": [1.0]}),
        pa.table({"price": [1.0], "user": ["a"]}),
    ],
    ids=lambda data: str(data).replace("\n", " ")[:30],
)
def test_what_is_left_to_arrow(data: object) -> None:
    with pytest.raises(NotPlainError):
        plain_columns(data, ["price", "user"])


def test_a_transform_that_was_never_fitted_reads_all_by_arrow() -> None:
    transform = FeatureTransform({"price": DenseFeature(standardise=False, fill=0)})
    with pytest.raises(NotPlainError):
        transform.encode({"price": [1.0]}, 1)
    assert transform.counts.peek()["price"].samples == 0


def test_a_transform_that_is_fitted_again() -> None:
    transform = FeatureTransform({"price": DenseFeature()}).fit([pa.table({"price": [0.0, 2.0]})])
    assert transform.encode({"price": [2.0]}, 1).dense_features.tolist() == [[1]]
    transform.fit([pa.table({"price": [0.0, 4.0]})])
    assert transform.encode({"price": [2.0]}, 1).dense_features.tolist() == [[0]]


class Sums(nn.Module):
    """A model of which every input shows in the logits."""

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        return dense.sum(1) + sparse.values().numel()


def predictor_of(transform: FeatureTransform) -> Predictor:
    return Predictor(None, transform, Sums())


@pytest.mark.parametrize(
    "change",
    [
        {"price": "dear"},
        {"when": "yesterday"},
        {"shop": 2.5},
        {"shop": "north"},
        {"user": 7},
        {"items": ["a"]},
        {"codes": "1::b"},
        {"seen_weights": [1.0], "history": [1, 2]},
        {"history": 5},
        {"hashed": "\ud800"},
        {"number": 2**64},
        {"price": object()},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 2])
def test_errors_are_those_of_the_long_way(
    transform: FeatureTransform, change: dict[str, Any], rows: int
) -> None:
    good = {name: column[0] for name, column in drawn(np.random.default_rng(0), 1).items()}
    data: object = [good] * (rows - 1) + [good | change]
    with pytest.raises((ValueError, TypeError)) as expected:
        the_long_way(transform, data)
    transform.counts.take()
    with pytest.raises(type(expected.value)) as got:
        predictor_of(transform).predict(data)
    assert str(got.value) == str(expected.value)
    assert transform.counts.take()["price"].samples == 0


def test_a_missing_column_is_named(transform: FeatureTransform) -> None:
    row = {name: column[0] for name, column in drawn(np.random.default_rng(0), 1).items()}
    row["usr"] = row.pop("user")
    with pytest.raises(ValueError, match=r"Column 'user' of feature 'user' .* nearest is 'usr'"):
        predictor_of(transform).predict(row)


def test_few_rows_are_read_without_arrow(
    transform: FeatureTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(data: object, transform: FeatureTransform) -> pa.Table:
        raise AssertionError("Arrow")

    columns = drawn(np.random.default_rng(5), 3) | {"steep": [1, 2, 3]}
    expected = predictor_of(transform).predict(to_table(columns, transform))
    monkeypatch.setattr("torchrec.inference.predictor.to_table", fails)
    predictor = predictor_of(transform)
    assert torch.equal(predictor.predict(columns), expected)
    with pytest.raises(AssertionError, match="Arrow"):  # in batches that are smaller
        predictor.predict(columns, batch_size=2)


@pytest.mark.parametrize("trained", [pa.duration("us"), pa.time64("us")])
@pytest.mark.parametrize("moment", [DAY, DAY.replace(tzinfo=UTC), "2024-01-31T12:00:00Z"])
def test_moments_are_no_durations_and_no_times_of_day(trained: pa.DataType, moment: Any) -> None:
    table = pa.table({"when": pa.array([0, 3600 * 10**6]).cast(trained)})
    takes = FeatureTransform({"when": DenseFeature()}).fit([table])
    for columns in ({"when": [moment]}, {"when": [moment, None]}):
        with pytest.raises(NotPlainError):
            the_quick_way(takes, columns)
        with pytest.raises(
            ValueError, match=r"'when' should hold (durations|times of day|numbers)"
        ):
            the_long_way(takes, columns)
