"""Vectors: each of their numbers is filled and scaled as that of a dense feature is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from torchrec.datasets.features import DenseFeature, VectorFeature
from torchrec.datasets.transform import FeatureCounts, FeatureTransform

pytestmark = pytest.mark.once

ROWS = [[0.5, 2.0], None, [1.5, 4.0], [], [2.5, None], [9.5, float("inf")]]


def tables(
    rows: list[list[float] | None], type: pa.DataType | None = None
) -> tuple[pa.Table, pa.Table]:
    """Return a column of vectors, and one column for each of their numbers."""
    vectors = pa.table(
        {"v": pa.array(rows, type or pa.list_(pa.float64())), "x": [1.0] * len(rows)}
    )
    parts = {f"v{i}": [row[i] if row else None for row in rows] for i in range(2)}
    return vectors, pa.table({name: pa.array(part, pa.float64()) for name, part in parts.items()})


@pytest.mark.parametrize("standardise", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("fill", ["mean", 0.25], ids=str)
def test_numbers_of_vectors_are_those_of_dense_features(fill, standardise):
    vectors, columns = tables(ROWS)
    options = {"fill": fill, "standardise": standardise}
    features = {"v": VectorFeature(size=2, **options), "x": DenseFeature()}
    one = FeatureTransform(features)
    if one.needs_fit:
        one.fit([vectors[:2], vectors[2:]])
    each = FeatureTransform({f"v{i}": DenseFeature(**options) for i in range(2)}).fit([columns])
    torch.testing.assert_close(one(vectors).dense_features[:, :2], each(columns).dense_features)
    assert one.dense_names == ["v[0]", "v[1]", "x"]
    assert list(one.scales) == one.dense_names
    assert one.counts.take()["v"] == FeatureCounts(6, 4, missing=2, infinite=1, nulls=1)


@pytest.mark.parametrize(
    "type",
    [pa.list_(pa.float32(), 2), pa.large_list(pa.float16()), pa.list_(pa.int64())],
    ids=str,
)
def test_layouts(type):
    rows = [[1, 2], [3, 4], [5, 6], [7, 8]]
    plain, _ = tables(rows)
    table, _ = tables(rows, type)
    transform = FeatureTransform({"v": VectorFeature(size=2)}).fit([plain])
    sliced = pa.concat_tables([table[1:2], table[3:]])
    expected = transform(plain).dense_features[[1, 3]]
    assert torch.equal(transform(sliced).dense_features, expected)


@pytest.mark.parametrize(
    ("separator", "texts"),
    [
        ("|", ["0.5|2", "1.5|4e0", None, "|4"]),
        ("|", ["0.5|2", "1.5|4e0", "", "nan|4"]),
        ("[]", ["[0.5, 2.0]", "[1.5 4.]", "[]", "[nan 4]"]),
    ],
    ids=["bar", "empty", "brackets"],
)
def test_text(separator, texts):
    plain, _ = tables([[0.5, 2], [1.5, 4], None, [None, 4]])
    feature = VectorFeature(size=2, separator=separator)
    found = FeatureTransform({"v": feature}).fit([pa.table({"v": texts})])
    expected = FeatureTransform({"v": VectorFeature(size=2)}).fit([plain])
    assert torch.equal(found(pa.table({"v": texts})).dense_features, expected(plain).dense_features)


def test_saved_and_encoded_row_by_row(tmp_path: Path):
    table, _ = tables(ROWS)
    features = {
        "x": DenseFeature(),
        "v": VectorFeature(size=2),
        "b": DenseFeature(column="x", buckets=2),
    }
    transform = FeatureTransform(features).fit([table])
    transform.save(tmp_path)
    loaded = FeatureTransform.load(tmp_path)
    rows = table.take([0, 2, 4])
    batch, again = transform(rows), loaded(rows)
    encoded = loaded.encode(rows.to_pydict(), 3)
    for other in (again, encoded):
        assert torch.equal(batch.dense_features, other.dense_features)
        assert torch.equal(batch.sparse_features.values(), other.sparse_features.values())
    counts = transform.counts.take()
    both = loaded.counts.take()
    assert both == {name: count + count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([[1.0, 2.0], [1.0]]),
            "vectors of 2 numbers, as its `size` says. Received 1 in row 1",
        ),
        (pa.array([1.0, 2.0]), "should hold lists of numbers, as a vector does"),
        (pa.array([["a", "b"]]), "should hold lists of numbers, as a vector does"),
        (pa.array(["1|2"]), "should hold lists of numbers, as a vector does"),
        (pa.array([None, None], pa.list_(pa.float64())), "should hold values. Received none"),
    ],
    ids=["length", "number", "words", "text", "nothing"],
)
def test_what_is_no_vector_is_refused(column, message):
    with pytest.raises(ValueError, match=message):
        FeatureTransform({"v": VectorFeature(size=2)}).fit([pa.table({"v": column})])


def test_text_that_is_no_number_is_refused():
    transform = FeatureTransform({"v": VectorFeature(size=2, separator="|")})
    with pytest.raises(ValueError, match="Column 'v' of feature 'v' should hold numbers between"):
        transform.fit([pa.table({"v": ["1|a"]})])


def test_a_fill_that_is_no_float32_is_refused():
    with pytest.raises(
        ValueError, match="`fill` of feature 'v' should be a number that float32 holds"
    ):
        FeatureTransform({"v": VectorFeature(size=2, fill=1e300)})


def test_numbers_that_scaling_makes_infinite_are_filled():
    train = pa.table({"v": [[0.0, 1.0], [1e-3, 1.0]]})
    transform = FeatureTransform({"v": VectorFeature(size=2)}).fit([train])
    batch = transform(pa.table({"v": [[1e37, 1.0]]}))
    assert batch.dense_features.tolist() == [[0.0, 0.0]]
    assert transform.counts.take()["v"].infinite == 1


def test_many_numbers_in_one_pass():
    random = np.random.default_rng(0)
    made = random.normal(size=(500, 40)) * np.arange(1, 41)
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), 40)
    transform = FeatureTransform({"v": VectorFeature(size=40)}).fit([pa.table({"v": column})])
    found = transform(pa.table({"v": column})).dense_features.double()
    expected = torch.from_numpy((made - made.mean(0)) / made.std(0))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
