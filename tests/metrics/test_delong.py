"""DeLong's covariance of AUCs against its definition over all pairs, and against resampling."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from torchrec.metrics import Estimate, auc_estimate, contrast

pytestmark = pytest.mark.once

Floats = NDArray[np.float64]


def _by_pairs(scores: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Return AUCs and covariance as the paper defines them: by the kernel of every pair."""
    above, below = [], []
    for score in scores:
        positives, negatives = score[labels == 1], score[labels == 0]
        kernel = np.array(
            [[1.0 if x > y else 0.5 if x == y else 0.0 for y in negatives] for x in positives]
        )
        above.append(kernel.mean(1))
        below.append(kernel.mean(0))
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    covariance = np.zeros((len(scores), len(scores)))
    for i in range(len(scores)):
        for j in range(len(scores)):
            auc = above[i].mean(), above[j].mean()
            ten = ((above[i] - auc[0]) * (above[j] - auc[1])).sum() / (m - 1)
            one = ((below[i] - auc[0]) * (below[j] - auc[1])).sum() / (n - 1)
            covariance[i, j] = ten / m + one / n
    return np.array([part.mean() for part in above]), covariance


def _samples(size: int, models: int, seed: int, levels: int | None = None) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    labels = (random.random(size) < 0.3).astype(np.float64)
    labels[:2], labels[2:4] = 1, 0
    shared = random.normal(size=size) + labels
    scores = shared + random.normal(size=(models, size)) * np.arange(1, models + 1)[:, None] / 2
    return (scores if levels is None else np.round(scores * levels) / levels), labels


def _estimates(scores: Floats, labels: Floats) -> list[Estimate]:
    return [auc_estimate(score, labels) for score in scores]


@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "ties", "mostly-ties"])
@pytest.mark.parametrize("size", [4, 9, 150])
def test_it_is_the_definition_over_all_pairs(size: int, levels: int | None) -> None:
    scores, labels = _samples(size, 3, seed=size, levels=levels)
    auc, covariance = _by_pairs(scores, labels)
    found = _estimates(scores, labels)
    np.testing.assert_allclose([one.value for one in found], auc, rtol=1e-12)
    influence = np.stack([one.influence for one in found])
    np.testing.assert_allclose(influence @ influence.T, covariance, rtol=1e-9, atol=1e-15)
    assert found[0].variance == pytest.approx(covariance[0, 0], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "ties"])
def test_weights_are_those_of_repeated_samples_in_the_auc(levels: int | None) -> None:
    scores, labels = _samples(40, 1, seed=3, levels=levels)
    times = np.random.default_rng(1).integers(1, 4, 40)
    found = auc_estimate(scores[0], labels, times)
    assert found.value == pytest.approx(
        auc_estimate(np.repeat(scores[0], times), np.repeat(labels, times)).value, rel=1e-12
    )
    scaled = auc_estimate(scores[0], labels, times * 0.1)
    np.testing.assert_allclose(scaled.influence, found.influence, rtol=1e-9)


def test_the_error_of_a_weighted_auc_is_that_of_resampling() -> None:
    scores, labels = _samples(1_500, 1, seed=12)
    weights = np.random.default_rng(2).exponential(size=1_500) + 0.01
    found = auc_estimate(scores[0], labels, weights)
    random = np.random.default_rng(0)
    drawn = [
        auc_estimate(scores[0, rows], labels[rows], weights[rows]).value
        for rows in random.integers(0, 1_500, (400, 1_500))
    ]
    assert math.sqrt(found.variance) == pytest.approx(np.std(drawn), rel=0.1)
    assert found.variance > 1.3 * auc_estimate(scores[0], labels).variance


def test_the_auc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels = _samples(2_000, 1, seed=1, levels=8)
    assert auc_estimate(scores[0], labels).value == pytest.approx(
        roc_auc_score(labels, scores[0]), abs=1e-12
    )


def test_the_error_is_that_of_resampling() -> None:
    scores, labels = _samples(1_500, 2, seed=2)
    first, second = _estimates(scores, labels)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        rows = random.integers(0, 1_500, 1_500)
        one, two = _estimates(scores[:, rows], labels[rows])
        drawn.append(two.value - one.value)
    gap = first.difference(second).difference
    assert (gap.high - gap.value) / 1.959964 == pytest.approx(np.std(drawn), rel=0.1)


def test_p_is_that_of_swapping_the_models_by_chance() -> None:
    """Of equal models, who gave which score of a sample is chance: a test without assumptions."""
    scores, labels = _samples(400, 2, seed=5)
    scores = scores.argsort(1).argsort(1)  # of one scale, so that scores can be swapped
    first, second = _estimates(scores, labels)
    found = first.difference(second)
    random = np.random.default_rng(0)
    beyond = 0
    for _ in range(1000):
        swap = random.random(400) < 0.5
        swapped = np.where(swap, scores[::-1], scores)
        one, two = _estimates(swapped, labels)
        beyond += abs(two.value - one.value) >= abs(found.difference.value)
    assert 0.005 < found.p < 0.5
    assert found.p == pytest.approx(beyond / 1000, abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Normal scores one apart: the AUC is that of the normal distribution at 1/sqrt(2)."""
    truth = 0.5 * math.erfc(-0.5)
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        labels = np.repeat([0.0, 1.0], [60, 40])
        interval = auc_estimate(random.normal(size=100) + labels, labels).interval()
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_same_scores_do_not_differ() -> None:
    scores, labels = _samples(300, 1, seed=4)
    same = np.concatenate([scores, np.exp(scores)])  # another scale, the same order
    first, second = _estimates(same, labels)
    found = first.difference(second)
    assert (found.difference.value, found.difference.low, found.p) == (0.0, 0.0, 1.0)


def test_a_contrast_is_one_against_the_mean_of_others() -> None:
    scores, labels = _samples(200, 3, seed=6)
    auc, covariance = _by_pairs(scores, labels)
    weights = np.array([1.0, -0.5, -0.5])
    found = contrast(_estimates(scores, labels), weights)
    assert found.difference.value == pytest.approx(weights @ auc)
    reach = 1.959964 * math.sqrt(weights @ covariance @ weights)
    assert found.difference.high == pytest.approx(weights @ auc + reach, rel=1e-6)


def test_other_samples_vary_on_their_own() -> None:
    samples = [_samples(size, 1, seed=seed) for size, seed in ((200, 7), (150, 8))]
    first, second = (auc_estimate(scores[0], labels) for scores, labels in samples)
    found = first.difference(second, paired=False)
    reach = found.difference.high - found.difference.value
    variance = first.variance + second.variance
    assert reach == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    wider = first.difference(second, paired=False, level=0.99)
    assert wider.difference.high - wider.difference.value == pytest.approx(
        reach * 2.575829 / 1.959964, rel=1e-5
    )


@pytest.mark.parametrize("label", [0, 1])
def test_of_one_class_nothing_is_known(label: int) -> None:
    found = auc_estimate([0.1, 0.2], [label, label])
    assert math.isnan(found.value)
    assert math.isnan(found.variance)
    assert math.isnan(found.interval().low)
    assert math.isnan(found.difference(auc_estimate([0.3, 0.4], [label, label])).p)


def test_of_one_positive_the_auc_is_known_and_its_error_is_not() -> None:
    found = auc_estimate([0.1, 0.3, 0.2], [0, 1, 0])
    assert found.value == 1.0
    assert math.isnan(found.variance)
    one, two = _estimates(np.array([[0.1, 0.3, 0.2, 0.4], [0.3, 0.2, 0.1, 0.5]]), np.eye(4)[1])
    assert math.isnan(one.difference(two).p)
    assert math.isnan(one.interval().high)


def test_perfect_order_has_no_interval() -> None:
    one, two = (auc_estimate(scores, [0, 0, 1, 1]) for scores in ([1, 2, 3, 4], [0, 0, 0, 0]))
    assert (one.value, two.value) == (1.0, 0.5)
    assert math.isnan(one.interval().low)
    assert math.isnan(one.difference(two).p)


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([0.1, 0.2], [0], r"for the N labels \(1\)\. Received \(2,\)"),
        ([[0.1]], [0], r"Received \(1, 1\)"),
        ([0.1, math.nan], [0, 1], "`scores` should be numbers. Received 1 NaN"),
        ([0.1, 0.2], [0, 2], "`labels` should be 0 or 1. Received 2"),
    ],
)
def test_what_is_refused(scores: object, labels: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        auc_estimate(scores, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([1.0], r"`weights` should be \(N,\) for the N labels \(2\)\. Received \(1,\)"),
        ([1.0, 0.0], r"`weights` should be above 0\. Received 0\.0"),
        ([math.nan, 1.0], r"`weights` should be above 0\. Received nan"),
    ],
)
def test_weights_that_are_refused(weights: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        auc_estimate([0.1, 0.2], [0, 1], weights)


def test_levels_are_shares() -> None:
    with pytest.raises(ValueError, match=r"`level` should be between 0 and 1\. Received 95"):
        auc_estimate([1.0, 3.0, 2.0, 4.0], [0, 0, 1, 1]).interval(level=95)


def test_it_costs_a_sort() -> None:
    """A million samples: over all pairs it would be 2e11 comparisons."""
    scores, labels = _samples(1_000_000, 2, seed=9)
    start = time.process_time()
    first, second = _estimates(scores, labels)
    first.difference(second)
    assert time.process_time() - start < 10
