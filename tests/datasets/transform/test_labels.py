"""Which expression is suggested for a label that is not 0 and 1."""

from __future__ import annotations

import pyarrow as pa
import pytest

from torchrec.datasets.features import SparseFeature
from torchrec.datasets.transform import FeatureTransform

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        (["click", "no_click"], "click"),
        (["no_click", "click"], "click"),
        (["not bought", "bought"], "bought"),
        (["N", "Y"], "Y"),
        (["negative", "positive"], "positive"),
        (["f", "t"], "t"),
        (["unsubscribed", "subscribed"], "subscribed"),
        (["cat", "dog"], "cat"),
    ],
    ids=str,
)
def test_text_that_says_yes_is_the_one_of_the_example(values: list[str], chosen: str) -> None:
    table = pa.table({"user": [1, 2], "label": values})
    transform = FeatureTransform({"user": SparseFeature(rows=9)}, "label")
    with pytest.raises(ValueError, match=rf"`label == '{chosen}'` makes them"):
        transform(table)


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ([0.3, 0.8] * 9, "0.3"),
        ([1, 2, 3, 4, 4, 5], "3"),
        ([5, 4, 4, 3, 4], "3"),
        ([-1, 1], "-1"),
        ([100, 2, 3, 50], "3"),
    ],
    ids=str,
)
def test_numbers_are_cut_where_both_labels_come_of_it(values: list[float], threshold: str) -> None:
    table = pa.table({"user": [1] * len(values), "rating": values})
    transform = FeatureTransform({"user": SparseFeature(rows=9)}, "rating")
    with pytest.raises(ValueError, match=rf"such as `rating > {threshold}` makes them"):
        transform(table)


def test_many_values_are_not_listed() -> None:
    table = pa.table({"user": [1] * 9, "label": [f"v{i}" for i in range(9)]})
    transform = FeatureTransform({"user": SparseFeature(rows=9)}, "label")
    with pytest.raises(ValueError, match=r"Received string; an expression such as"):
        transform(table)
