"""How metrics are written, and intervals of one number."""

from __future__ import annotations

import math

import pytest

from torchrec.metrics.interval import metric_text, normal_interval

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("value", "like", "expected"),
    [
        (0.5, None, "0.5000"),
        (0.01234567, None, "0.0123"),
        (0.00123456, None, "0.00123"),
        (1.23456e-6, None, "0.00000123"),
        (-1.23456e-6, None, "-0.00000123"),
        (0.0, None, "0.0000"),
        (123456.78901, None, "123456.7890"),
        (0.00002, 0.7, "0.0000"),
        (0.7, 0.00123456, "0.70000"),
        (math.nan, None, "nan"),
        (math.inf, None, "inf"),
        (0.00002, math.nan, "0.0000"),
    ],
)
def test_few_digits_are_written_with_more_decimals(
    value: float, like: float | None, expected: str
) -> None:
    assert metric_text(value, like) == expected


@pytest.mark.parametrize("exponent", range(-12, 9))
def test_three_digits_are_shown_of_any_metric(exponent: int) -> None:
    value = 1.2345678 * 10.0**exponent
    assert float(metric_text(value)) == pytest.approx(value, rel=5e-3)


def test_a_normal_interval_reaches_as_far_as_its_level() -> None:
    found = normal_interval(1.0, 0.04, level=0.99)
    assert (found.high - found.value) / 0.2 == pytest.approx(2.575829, rel=1e-6)
    assert math.isnan(normal_interval(1.0, math.nan).low)
