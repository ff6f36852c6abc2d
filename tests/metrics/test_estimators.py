"""Estimates of the metrics of tasks: their values are those of the metrics of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from torchrec.metrics import (
    BinaryMetrics,
    GroupedMetrics,
    Metrics,
    MulticlassMetrics,
    RegressionMetrics,
)
from torchrec.metrics.estimators import BINARY, MULTICLASS, REGRESSION, Estimator
from torchrec.metrics.grouped import NO_GROUP

pytestmark = pytest.mark.once

Floats = NDArray[np.float64]


def _samples(kind: str, size: int = 300) -> tuple[Floats, Floats, Floats]:
    random = np.random.default_rng(0)
    scores = random.normal(size=size).astype(np.float32).astype(np.float64)
    weights = random.random(size).astype(np.float32).astype(np.float64) + 0.25
    if kind == "binary":
        return scores, (random.random(size) < 1 / (1 + np.exp(-scores))).astype(float), weights
    if kind == "regression":
        return scores, scores + random.normal(size=size).astype(np.float32), weights
    odds = np.exp(random.normal(size=(size, 3)))
    shares = (odds / odds.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    return shares, random.integers(0, 3, size).astype(float), weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("kind", "estimators", "metrics"),
    [
        ("binary", BINARY, BinaryMetrics),
        ("regression", REGRESSION, RegressionMetrics),
        ("classes", MULTICLASS, MulticlassMetrics),
    ],
)
def test_they_are_the_metrics_of_a_stream(
    kind: str, estimators: Mapping[str, Estimator], metrics: Callable[[], Metrics], weighted: bool
) -> None:
    scores, labels, weights = _samples(kind)
    stream, given = metrics(), weights if weighted else None
    of_stream = [torch.from_numpy(x).float() for x in (scores, labels, weights)]
    stream.update(*of_stream[: 2 + weighted])
    report = stream.compute()
    assert set(estimators) == set(report)
    for name, estimator in estimators.items():
        found = estimator(scores, labels, given)
        assert found.value == pytest.approx(report[name], rel=1e-6)
        assert found.influence.shape == (300,)
        interval = found.interval()
        assert interval.low < report[name] < interval.high


def _grouped(scores: Floats) -> GroupedMetrics:
    """Return metrics of 60 groups of uneven size, some without a positive, and rows of no group."""
    random = np.random.default_rng(1)
    user = random.zipf(1.3, 600).clip(max=60)
    label = (random.random(600) < np.where(user % 3 == 0, 0.5, 0.1)).astype(np.float32)
    groups = {"user": torch.from_numpy(np.where(user == 7, NO_GROUP, user))}
    found = GroupedMetrics(["gauc(user)", "ndcg@3(user)", "recall@2(user)", "mrr(user)"])
    found.update(torch.from_numpy(scores), torch.from_numpy(label), groups=groups)
    return found


def test_metrics_within_groups_vary_with_the_groups() -> None:
    first, second = (np.random.default_rng(seed).normal(size=600) for seed in (2, 3))
    grouped, other = _grouped(first), _grouped(second)
    report, estimates = grouped.compute(curves=True), grouped.estimates()
    assert list(estimates) == list(report) == list(report.intervals)
    assert grouped.compute().intervals == {}
    for name, one in estimates.items():
        assert one.value == pytest.approx(report[name], rel=1e-12)
        assert len(one.influence) == report.counts["groups(user)"]
        assert report.intervals[name] == one.interval()
        assert one.interval().low < report[name] < one.interval().high
        gap = one.difference(other.estimates()[name]).difference
        assert gap.value == pytest.approx(other.compute()[name] - report[name], abs=1e-12)
    assert estimates["mrr(user)"].difference(estimates["mrr(user)"]).p == 1.0


def test_the_interval_within_groups_is_that_of_groups_drawn_again() -> None:
    """Not of rows drawn again: rows of one group go together."""
    random = np.random.default_rng(4)
    users, rows = 40, 30
    user = np.repeat(np.arange(users), rows)
    good = np.repeat(random.random(users) < 0.5, rows)
    label = np.tile(np.arange(rows) < 3, users)
    scores = np.where(good, label, ~label) + random.random(len(user)) * 0.1

    def metrics(chosen: NDArray[np.int64]) -> GroupedMetrics:
        found = GroupedMetrics(["gauc(user)"])
        at = (chosen[:, None] * rows + np.arange(rows)).ravel()
        again = torch.from_numpy(np.repeat(np.arange(len(chosen)), rows))
        labels = torch.from_numpy(label[at]).float()
        found.update(torch.from_numpy(scores[at]).float(), labels, groups={"user": again})
        return found

    drawn = [metrics(random.integers(0, users, users)).compute()["gauc(user)"] for _ in range(200)]
    estimate = metrics(np.arange(users)).estimates()["gauc(user)"]
    assert np.sqrt(estimate.variance) == pytest.approx(np.std(drawn), rel=0.15)
    interval = estimate.interval()
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.2)
