"""Estimates of functions of means, and their differences, against plain formulas and against resampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from torchrec.metrics import Estimate, contrast, mean_estimate

pytestmark = pytest.mark.once

Floats = NDArray[np.float64]
REACH = 1.959964


def _ratio(means: Floats) -> Floats:
    found: Floats = means[..., 0] / means[..., 1]
    return found


def _slow(terms: Floats, weights: Floats, formula: Callable[[Floats], Floats]) -> Floats:
    """Return the metric without each sample in turn."""
    kept = [np.arange(len(terms)) != n for n in range(len(terms))]
    return np.array([formula(np.average(terms[k], axis=0, weights=weights[k])) for k in kept])


def test_a_mean_varies_as_means_do() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    found = mean_estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.variance == pytest.approx(values.var(ddof=1) / 50)
    np.testing.assert_allclose(
        found.influence, (values - values.mean()) / math.sqrt(50 * 49), atol=1e-12
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_function_of_means_varies_as_the_jackknife_says(weighted: bool) -> None:
    random = np.random.default_rng(1)
    terms = random.exponential(size=(30, 2)) + 0.1
    weights = random.exponential(size=30) if weighted else np.ones(30)
    found = mean_estimate(terms, _ratio, weights if weighted else None)
    assert found.value == pytest.approx(weights @ terms[:, 0] / (weights @ terms[:, 1]))
    without = _slow(terms, weights, _ratio)
    assert found.variance == pytest.approx(29 / 30 * ((without - without.mean()) ** 2).sum())
    interval = found.interval()
    assert interval.value == pytest.approx(found.value)
    reach = REACH * math.sqrt(found.variance)
    assert interval.high - interval.low == pytest.approx(2 * reach, rel=0.2)


def test_paired_differences_are_those_of_the_samples() -> None:
    random = np.random.default_rng(2)
    hard = random.exponential(size=400)
    one, two = hard + random.normal(size=(2, 400)) * 0.1 + np.array([[0.0], [0.01]])
    found = mean_estimate(one).difference(mean_estimate(two))
    gaps = two - one
    error = gaps.std(ddof=1) / 20
    assert found.difference.value == pytest.approx(gaps.mean())
    assert found.difference.high == pytest.approx(gaps.mean() + REACH * error, rel=1e-6)
    assert found.p == pytest.approx(2 * norm.sf(abs(gaps.mean()) / error))
    apart = mean_estimate(one).difference(mean_estimate(two), paired=False)
    assert apart.difference.value == pytest.approx(gaps.mean())
    reach = REACH * math.sqrt((one.var(ddof=1) + two.var(ddof=1)) / 400)
    assert apart.difference.high == pytest.approx(gaps.mean() + reach, rel=1e-6)


def test_differences_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        shared = random.exponential(size=(80, 1)) + 0.5
        one, two = (shared + random.exponential(size=(80, 2)) for _ in range(2))
        gap = mean_estimate(one, _ratio).difference(mean_estimate(two, _ratio)).difference
        held += gap.low <= 0.0 <= gap.high
    assert 0.92 <= held / 300 <= 0.98


def test_models_that_are_alike_do_not_differ() -> None:
    """Sizes do not matter: neither of the values, nor of what rounding leaves."""
    values = np.random.default_rng(4).exponential(size=60)
    for scale in (1e-9, 1.0, 1e9):
        same = mean_estimate(values * scale)
        third = [1.0, -1 / 3, -1 / 3, -1 / 3]
        for found in (same.difference(same), contrast([same] * 4, third)):
            assert (found.p, found.difference.low == found.difference.high) == (1.0, True)
        other = mean_estimate(values * scale * 1.01)
        assert same.difference(other).p < 0.001


def test_of_one_sample_or_none_no_error_is_known() -> None:
    assert math.isnan(mean_estimate([]).value)
    one = mean_estimate([0.5])
    assert (one.value, math.isnan(one.variance)) == (0.5, True)
    assert math.isnan(one.difference(mean_estimate([0.25])).p)


def test_what_is_not_defined_is_not_known() -> None:
    nothing = mean_estimate(np.zeros((5, 2)), _ratio)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.interval().low)
    only = mean_estimate(np.array([[1.0, 0.0], [1.0, 1.0]]), _ratio)  # without the second: 1 / 0
    assert only.value == 2.0
    assert math.isnan(only.variance)


def test_other_samples_are_no_pairs() -> None:
    few, more = mean_estimate([1.0, 2.0]), mean_estimate([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"of the same samples\. Received such of 2, 3\."):
        few.difference(more)
    assert few.difference(more, paired=False).difference.value == 0.5


def test_a_constant_difference_without_error_has_no_answer() -> None:
    one, two = mean_estimate([1.0, 2.0, 4.0]), mean_estimate([2.0, 3.0, 5.0])
    found = one.difference(two)
    assert found.difference.value == pytest.approx(1.0)
    assert math.isnan(found.p)


def test_an_estimate_is_only_itself() -> None:
    one = mean_estimate([1.0, 2.0])
    assert one == one
    assert one != mean_estimate([1.0, 2.0])
    assert isinstance(one, Estimate)
