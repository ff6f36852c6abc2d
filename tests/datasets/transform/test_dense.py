"""Numbers: their scale, what it makes infinite, and the buckets."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from torchrec.datasets.features import DenseFeature
from torchrec.datasets.transform import FeatureCounts, FeatureTransform, TableSpec

pytestmark = pytest.mark.once


@pytest.mark.parametrize("log", [False, True], ids=["plain", "log"])
@pytest.mark.parametrize("value", [5.3, 0.1, -19.99, 1e30], ids=str)
def test_a_constant_becomes_0_and_keeps_its_unit(value, log):
    table = pa.table({"x": [value] * 10_001 + [None]})
    transform = FeatureTransform({"x": DenseFeature(log=log)}).fit([table[:5000], table[5000:]])
    assert transform(table).dense_features.unique().tolist() == [0]
    near = transform(pa.table({"x": [value + 0.7]})).dense_features.item()
    assert 0 <= near <= 0.71


@pytest.mark.parametrize(
    "values",
    [[1.0] * 3 + [float(np.nextafter(1, 2))], [0.0, 1e-320]],
    ids=["rounding", "spread below what squares hold"],
)
def test_a_deviation_that_is_noise_does_not_scale(values):
    transform = FeatureTransform({"x": DenseFeature()}).fit([pa.table({"x": values})])
    assert transform(pa.table({"x": [*values, values[0] + 2]})).dense_features[-1].item() == 2


def test_numbers_that_scaling_makes_infinite_are_missing():
    train = pa.table({"x": [0.0, 1e-3]})
    transform = FeatureTransform({"x": DenseFeature()}).fit([train])
    batch = transform(pa.table({"x": [1e37, 1e-3, -3e38, None]}))
    assert batch.dense_features.flatten().tolist() == [0, 1, 0, 0]
    assert transform.counts.take()["x"] == FeatureCounts(4, 1, 1, infinite=2)
    filled = FeatureTransform({"x": DenseFeature(fill=1e-3)}).fit([train])
    assert filled(pa.table({"x": [1e37]})).dense_features.item() == 1


def test_a_fill_that_is_no_float32_is_refused():
    message = r"`fill` of feature 'x' should be a number that float32 holds, .* Received 1e\+"
    with pytest.raises(ValueError, match=message):
        FeatureTransform({"x": DenseFeature(fill=1e300, standardise=False)})
    with pytest.raises(ValueError, match=message):
        FeatureTransform({"x": DenseFeature(fill=1e37)}).fit([pa.table({"x": [0.0, 1e-3]})])


def test_buckets():
    table = pa.table({"x": [1.0, 2.0, 3.0, 4.0, None, math.inf]})
    transform = FeatureTransform({"x": DenseFeature(buckets=4, dim=3)}).fit([table])
    assert transform.tables == [TableSpec("x", ("x",), rows=5, dim=3, ids="plain")]
    assert transform.dense_names == []
    more = pa.table({"x": [-9.0, 1.0, 1.8, 2.0, 4.0, 9.0, None, math.nan]})
    assert transform(more).sparse_features.values().tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert transform.counts.take()["x"] == FeatureCounts(8, 6, 2)


def test_buckets_of_few_values():
    table = pa.table({"x": [0, 0, 0, 0, 0, 7]})
    transform = FeatureTransform({"x": DenseFeature(buckets=3)}).fit([table])
    found = transform(pa.table({"x": [-1, 0, 7]})).sparse_features.values()
    assert found.tolist() == [0, 0, 1]


@pytest.mark.parametrize("trained", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("log", [False, True], ids=["plain", "log"])
def test_buckets_do_not_depend_on_the_precision(trained, log):
    prices = pa.array([0.1, 0.2, 0.3, 0.7, 0.9])
    train = pa.table({"x": pa.concat_arrays([*[prices] * 3, prices[4:]]).cast(trained)})
    transform = FeatureTransform({"x": DenseFeature(buckets=5, log=log)}).fit([train])
    for type in (pa.float16(), pa.float32(), pa.float64()):
        found = transform(pa.table({"x": prices.cast(type)})).sparse_features.values()
        assert found.tolist() == [0, 1, 2, 3, 4]
