"""DeLong's covariance of AUCs against its definition over all pairs, and against resampling."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from torchrec.metrics import auc_estimates, independent_difference

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


@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "ties", "mostly-ties"])
@pytest.mark.parametrize("size", [4, 9, 150])
def test_it_is_the_definition_over_all_pairs(size: int, levels: int | None) -> None:
    scores, labels = _samples(size, 3, seed=size, levels=levels)
    auc, covariance = _by_pairs(scores, labels)
    found = auc_estimates(scores, labels)
    np.testing.assert_allclose(found.auc, auc, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-15)


def test_the_auc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels = _samples(2_000, 1, seed=1, levels=8)
    assert auc_estimates(scores[0], labels).auc[0] == pytest.approx(
        roc_auc_score(labels, scores[0]), abs=1e-12
    )


def test_the_error_is_that_of_resampling() -> None:
    scores, labels = _samples(1_500, 2, seed=2)
    found = auc_estimates(scores, labels)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        rows = random.integers(0, 1_500, 1_500)
        auc = auc_estimates(scores[:, rows], labels[rows]).auc
        drawn.append(auc[1] - auc[0])
    variance = found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1]
    assert math.sqrt(variance) == pytest.approx(np.std(drawn), rel=0.1)


def test_p_is_that_of_swapping_the_models_by_chance() -> None:
    """Of equal models, who gave which score of a sample is chance: a test without assumptions."""
    scores, labels = _samples(400, 2, seed=5)
    scores = scores.argsort(1).argsort(1)  # of one scale, so that scores can be swapped
    found = auc_estimates(scores, labels).difference(0, 1)
    random = np.random.default_rng(0)
    beyond = 0
    for _ in range(1000):
        swap = random.random(400) < 0.5
        swapped = np.where(swap, scores[::-1], scores)
        auc = auc_estimates(swapped, labels).auc
        beyond += abs(auc[1] - auc[0]) >= abs(found.difference.value)
    assert 0.005 < found.p < 0.5
    assert found.p == pytest.approx(beyond / 1000, abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Normal scores one apart: the AUC is that of the normal distribution at 1/sqrt(2)."""
    truth = 0.5 * math.erfc(-0.5)
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        labels = np.repeat([0.0, 1.0], [60, 40])
        interval = auc_estimates(random.normal(size=100) + labels, labels).interval()
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_same_scores_do_not_differ() -> None:
    scores, labels = _samples(300, 1, seed=4)
    same = np.concatenate([scores, np.exp(scores)])  # another scale, the same order
    found = auc_estimates(same, labels).difference(0, 1)
    assert (found.difference.value, found.difference.low, found.p) == (0.0, 0.0, 1.0)


def test_a_contrast_is_one_against_the_mean_of_others() -> None:
    scores, labels = _samples(200, 3, seed=6)
    found = auc_estimates(scores, labels)
    auc, covariance = _by_pairs(scores, labels)
    weights = np.array([1.0, -0.5, -0.5])
    contrast = found.contrast(weights)
    assert contrast.difference.value == pytest.approx(weights @ auc)
    reach = 1.959964 * math.sqrt(weights @ covariance @ weights)
    assert contrast.difference.high == pytest.approx(weights @ auc + reach, rel=1e-6)


def test_other_samples_vary_on_their_own() -> None:
    first, second = (auc_estimates(*_samples(200, 1, seed=seed)) for seed in (7, 8))
    found = independent_difference(first, second)
    reach = found.difference.high - found.difference.value
    variance = first.covariance[0, 0] + second.covariance[0, 0]
    assert reach == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    wider = independent_difference(first, second, level=0.99)
    assert wider.difference.high - wider.difference.value == pytest.approx(
        reach * 2.575829 / 1.959964, rel=1e-5
    )


@pytest.mark.parametrize("label", [0, 1])
def test_of_one_class_nothing_is_known(label: int) -> None:
    found = auc_estimates([[0.1, 0.2], [0.3, 0.4]], [label, label])
    assert np.isnan(found.auc).all()
    assert np.isnan(found.covariance).all()
    assert math.isnan(found.interval().low)
    assert math.isnan(found.difference(0, 1).p)


def test_of_one_positive_the_auc_is_known_and_its_error_is_not() -> None:
    found = auc_estimates([0.1, 0.3, 0.2], [0, 1, 0])
    assert found.auc[0] == 1.0
    assert math.isnan(found.covariance[0, 0])
    found = auc_estimates([[0.1, 0.3, 0.2, 0.4], [0.3, 0.2, 0.1, 0.5]], [0, 1, 0, 0])
    assert math.isnan(found.difference(0, 1).p)
    assert math.isnan(found.interval(0).high)


def test_perfect_order_has_no_interval() -> None:
    found = auc_estimates([[1, 2, 3, 4], [0, 0, 0, 0]], [0, 0, 1, 1])
    assert found.auc.tolist() == [1.0, 0.5]
    assert math.isnan(found.interval(0).low)
    assert math.isnan(found.difference(0, 1).p)


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([0.1, 0.2], [0], r"for the N labels \(1\)\. Received \(2,\)"),
        ([[[0.1]]], [0], r"Received \(1, 1, 1\)"),
        ([0.1, math.nan], [0, 1], "`scores` should be numbers. Received 1 NaN"),
        ([0.1, 0.2], [0, 2], "`labels` should be 0 or 1. Received 2"),
    ],
)
def test_what_is_refused(scores: object, labels: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        auc_estimates(scores, labels)  # type: ignore[arg-type]


def test_levels_are_shares() -> None:
    with pytest.raises(ValueError, match=r"`level` should be between 0 and 1\. Received 95"):
        auc_estimates(*_samples(20, 1, seed=0)).interval(level=95)


def test_it_costs_a_sort() -> None:
    """A million samples: over all pairs it would be 2e11 comparisons."""
    scores, labels = _samples(1_000_000, 2, seed=9)
    start = time.process_time()
    auc_estimates(scores, labels)
    assert time.process_time() - start < 10
