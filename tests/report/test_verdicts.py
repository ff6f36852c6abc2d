"""What is said of differences: which is better, in what, and what nothing is known of."""

from __future__ import annotations

import math

import pytest

from torchrec.datasets.transform import TargetKind
from torchrec.metrics import Interval, MetricDifference
from torchrec.report.verdicts import Finding, interval_of, verdicts_of

pytestmark = pytest.mark.once


def _said(
    kind: TargetKind,
    values: dict[str, tuple[float, float]],
    p: dict[str, float],
    task: str = "",
) -> str:
    """Return the verdict on two runs with these metrics, whose differences have an error of .001."""
    gaps = {name: Interval(b - a, b - a - 0.001, b - a + 0.001) for name, (a, b) in values.items()}
    finding = Finding(
        task,
        kind,
        ("old", "new"),
        {
            name: (Interval(a, math.nan, math.nan), Interval(b, math.nan, math.nan))
            for name, (a, b) in values.items()
        },
        {name: MetricDifference(gaps[name], one) for name, one in p.items()},
    )
    (verdict,) = verdicts_of([finding], "test")
    return verdict.sentence


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (
            "click",
            {"auc": (0.7, 0.71), "logloss": (0.5, 0.49)},
            "new is better than old by 0.0100 AUC [0.0090, 0.0110], p < .001; its log loss is lower by "
            "0.0100 [0.0090, 0.0110], p < .001.",
        ),
        (
            "regression",
            {"mse": (0.7, 0.71), "mae": (0.5, 0.49)},
            "new is worse than old by 0.0100 MSE [0.0090, 0.0110], p < .001; its MAE is lower by "
            "0.0100 [0.0090, 0.0110], p < .001, so the two disagree.",
        ),
        (
            "ordinal",
            {"accuracy": (0.7, 0.69), "logloss": (0.5, 0.51)},
            "new is worse than old by 0.0100 accuracy [0.0090, 0.0110], p < .001; its log loss is higher "
            "by 0.0100 [0.0090, 0.0110], p < .001.",
        ),
    ],
)
def test_a_kind_is_judged_by_its_own_metric(
    kind: TargetKind, values: dict[str, tuple[float, float]], expected: str
) -> None:
    assert _said(kind, values, dict.fromkeys(values, 1e-9)) == expected
    assert _said(kind, values, dict.fromkeys(values, 1e-9), "buy") == f"buy: {expected}"


def test_where_nothing_is_clear_it_says_so() -> None:
    values = {"mse": (0.7, 0.7004), "mae": (0.5, 0.4999)}
    assert _said("regression", values, {"mse": 0.4, "mae": 0.8}) == (
        "new and old do not differ clearly in MSE: +0.0004 [-0.0006, +0.0014], p = .40; its MAE is not "
        "clearly another: -0.0001 [-0.0011, +0.0009], p = .80."
    )


def test_differences_have_the_decimals_of_the_metric() -> None:
    gap = Interval(2e-6, 1e-6, 3e-6)
    assert interval_of(gap, 0.7) == "+0.0000 [+0.0000, +0.0000]"
    assert interval_of(gap, 0.0000345) == "+0.0000020 [+0.0000010, +0.0000030]"
    assert interval_of(Interval(0.1, math.nan, math.nan), 0.7) == "+0.1000"


def test_what_is_not_known_is_not_told() -> None:
    auc = {"auc": (0.7, 0.8)}
    assert _said("click", auc, {}) == (
        "The AUC of new on its test data is 0.1000 above that of old; without the predictions of both "
        "nothing tells whether that is chance."
    )
    assert _said("click", auc, {"auc": math.nan}) == (
        "The AUC of new on its test data is 0.1000 above that of old; nothing tells whether that is chance."
    )
    nothing = "There is nothing to compare new with old by."
    assert _said("click", {"auc": (math.nan, 0.8)}, {}) == nothing
    assert _said("click", {}, {}) == nothing
    both = {**auc, "logloss": (0.5, 0.4)}
    assert _said("click", both, {"auc": math.nan, "logloss": 0.01}) == (
        "The log loss of new is lower by 0.1000 [0.0990, 0.1010], p = .010, against old."
    )


def test_the_same_model_twice_is_not_better_in_anything() -> None:
    none = Interval(0.0, 0.0, 0.0)
    values = {name: (Interval(0.5, 0.4, 0.6),) * 2 for name in ("auc", "logloss")}
    gaps = {name: MetricDifference(none, 1.0) for name in values}
    (verdict,) = verdicts_of([Finding("", "click", ("old", "new"), values, gaps)], "test")
    assert "lower" not in verdict.sentence
    assert "higher" not in verdict.sentence
