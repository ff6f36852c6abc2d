"""Targets of several kinds, weights and groups: what is read, refused and saved."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from torchrec.datasets.features import SparseFeature
from torchrec.datasets.transform import FeatureTransform, Target

pytestmark = pytest.mark.once

FEATURES = {"user": SparseFeature(rows=9)}
TARGETS = {
    "click": Target("click"),
    "seconds": Target("ms / 1000", "regression"),
    "stars": Target("rating - 1", "multiclass", classes=5),
}
LOG = pa.table(
    {
        "user": [1, 2, 3],
        "click": [0, 1, 1],
        "ms": [0, 1500, 250],
        "rating": [1, 5, 3],
        "w": [1.0, 0.0, 2.5],
        "session": ["b", "a", "b"],
    }
)


def test_targets_weights_and_groups_are_read() -> None:
    transform = FeatureTransform(FEATURES, targets=TARGETS, weight="w", groups=["session"]).fit(
        [LOG]
    )
    assert transform.outputs == [1, 1, 5]
    assert transform.columns == ["user", "click", "ms", "rating", "w", "session"]
    batch = transform(LOG)
    found = {name: target.tolist() for name, target in batch.targets.items()}
    assert found == {"click": [0, 1, 1], "seconds": [0, 1.5, 0.25], "stars": [0, 4, 2]}
    assert batch.weights.tolist() == [1, 0, 2.5]
    first, second, third = batch.groups["session"].tolist()
    assert first == third != second
    unknown = transform.transform(LOG.select(["user"]), labels=False)
    assert set(unknown.targets) == set(TARGETS)
    assert all(one.isnan().all() for one in unknown.targets.values())
    assert unknown.weights is None
    assert unknown.groups == {}
    encoded = transform.encode({"user": [1]}, 1)
    assert set(encoded.targets) == set(TARGETS)


def test_targets_are_saved(tmp_path) -> None:
    transform = FeatureTransform(FEATURES, targets=TARGETS, weight="w", groups=["session"]).fit(
        [LOG]
    )
    transform.save(tmp_path)
    loaded = FeatureTransform.load(tmp_path)
    assert loaded.targets == TARGETS
    assert loaded.label is None
    one, two = transform(LOG), loaded(LOG)
    assert all(torch.equal(one.targets[name], two.targets[name]) for name in TARGETS)
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.groups["session"], two.groups["session"])


def test_one_label_is_the_target_of_that_name(tmp_path) -> None:
    transform = FeatureTransform(FEATURES, "click").fit([LOG])
    assert transform.targets == {"labels": Target("click")}
    transform.save(tmp_path)
    loaded = FeatureTransform.load(tmp_path)
    assert (loaded.label, loaded.targets) == ("click", transform.targets)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("rating", "multiclass", 5), r"classes, whole numbers from 0 to 4. Received 5."),
        (Target("rating / 2", "ordinal", 5), r"from 0 to 4. Received 0.5."),
        (Target("session", "regression"), r"should hold numbers. Received string; an expression"),
        (Target("ms / w", "regression"), r"should hold numbers. Received 1 (missing|infinite)"),
        (Target("rating"), r"should hold 0 and 1. Received 5; .* `rating > 3` makes them"),
    ],
    ids=str,
)
def test_labels_of_another_kind_are_refused(target, message) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureTransform(FEATURES, targets={"t": target})(LOG)


@pytest.mark.parametrize(
    ("options", "column", "values", "message"),
    [
        ({"weight": "w"}, "w", [1.0, -0.5, 1.0], "numbers of 0 or more. Received -0.5"),
        ({"weight": "w"}, "w", [1.0, None, 1.0], "should hold numbers. Received 1 missing ones"),
        ({"weight": "w"}, "w", ["a", "b", "c"], "should hold numbers. Received string"),
        (
            {"groups": ["session"]},
            "session",
            ["a", None, "b"],
            "an id in each row. Received 1 missing",
        ),
        ({"weight": "gone"}, "w", [1, 1, 1], "Column 'gone' of feature 'weight' should be in"),
    ],
)
def test_weights_and_groups_that_are_none(options, column, values, message) -> None:
    table = LOG.set_column(LOG.column_names.index(column), column, pa.array(values))
    with pytest.raises(ValueError, match=message):
        FeatureTransform(FEATURES, "click", **options)(table)


def test_what_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="`classes` should be how many classes the label 'x' of"):
        Target("x", "ordinal")
    with pytest.raises(ValueError, match=r"for the kinds multiclass and ordinal. Received 3"):
        Target("x", classes=3)
    with pytest.raises(ValueError, match=r"in place of `label`. Received both, label 'click'"):
        FeatureTransform(FEATURES, "click", TARGETS)
    with pytest.raises(ValueError, match=r"label 'ms / 1000' of target 'seconds' is made from"):
        FeatureTransform({"ms": SparseFeature(rows=9)}, targets=TARGETS)


def test_scores_of_each_kind() -> None:
    outputs = torch.randn(4, 3)
    assert torch.equal(Target("x", "regression").scores(outputs[:, :1]), outputs[:, 0])
    assert torch.equal(Target("x").scores(outputs[:, :1]), outputs[:, 0].sigmoid())
    softmax = Target("x", "multiclass", 3).scores(outputs)
    torch.testing.assert_close(softmax, outputs.exp() / outputs.exp().sum(1, keepdim=True))
    ordinal = Target("x", "ordinal", 4).scores(outputs)
    torch.testing.assert_close(ordinal.sum(1), torch.ones(4))
    assert (ordinal > 0).all()
    p, q, r = (
        outputs[0].sigmoid().tolist()
    )  # above the class before, of those that are not below it
    expected = torch.tensor([1 - p, p * (1 - q), p * q * (1 - r), p * q * r])
    torch.testing.assert_close(ordinal[0], expected)
