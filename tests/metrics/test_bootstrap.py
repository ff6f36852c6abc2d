from __future__ import annotations

import math

import numpy as np
import pytest

from torchrec.metrics import bootstrap_interval

pytestmark = pytest.mark.once


@pytest.mark.parametrize("size", [200, 50_000], ids=["rows", "groups-of-rows"])
def test_the_interval_of_a_mean_is_that_of_theory(size: int) -> None:
    values = np.random.default_rng(0).exponential(size=(size, 1))
    found = bootstrap_interval(values, lambda means: means[..., 0])
    reach = 1.96 * values.std() / math.sqrt(size)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)
    assert found.low < found.value < found.high


def test_a_ratio_varies_with_both_of_its_parts() -> None:
    random = np.random.default_rng(1)
    shared = random.exponential(size=(30_000, 1))
    together = np.hstack([shared, 2 * shared])
    found = bootstrap_interval(together, lambda means: means[..., 1] / means[..., 0])
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))
    apart = np.hstack([shared, 2 * random.permutation(shared)])
    found = bootstrap_interval(apart, lambda means: means[..., 1] / means[..., 0])
    assert found.high - found.low > 0.05


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    held = 0
    for number in range(200):
        values = random.exponential(size=(150, 1))
        found = bootstrap_interval(values, lambda m: m[..., 0], level=0.8, repeats=300, seed=number)
        held += found.low <= 1.0 <= found.high
    assert 0.72 <= held / 200 <= 0.86


def test_one_seed_one_result() -> None:
    values = np.random.default_rng(0).normal(size=(100, 1))
    first, again, other = (
        bootstrap_interval(values, lambda m: m[..., 0], seed=s) for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_draws_without_a_metric_are_left_out() -> None:
    values = np.array([[1.0, 1.0], [1.0, 0.0]])  # a draw may have no positive
    found = bootstrap_interval(values, lambda means: means[..., 0] / means[..., 1])
    assert (found.low, found.high) == (1.0, 2.0)
    nothing = bootstrap_interval(values * 0, lambda means: means[..., 0] / means[..., 1])
    assert math.isnan(nothing.low)
    assert math.isnan(bootstrap_interval(np.empty((0, 1)), lambda means: means[..., 0]).value)
    one = bootstrap_interval(
        [[0.25]], lambda means: means[..., 0]
    )  # which could not be drawn otherwise
    assert one.value == 0.25
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`values` should be \(N, V\).*Received \(3,\)"):
        bootstrap_interval([1.0, 2.0, 3.0], lambda means: means)
    with pytest.raises(ValueError, match=r"`level` should be between 0 and 1\. Received 95"):
        bootstrap_interval([[1.0]], lambda means: means[..., 0], level=95)
