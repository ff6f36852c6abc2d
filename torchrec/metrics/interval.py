"""A number that is known within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth is likely to be.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def metric_text(value: float, like: float | None = None, *, sign: bool = False) -> str:
    """Write a metric as all that print one do: with four decimals, and more where these would show few digits.

    Args:
        value: the metric, or an end of its interval, a deviation or a difference.
        like: the metric whose decimals it has. Default: its own.
        sign: whether one stands before what is positive, too. Default False.

    Example:
        >>> metric_text(0.77345), metric_text(10.12681), metric_text(0.0000123456)
        ('0.7734', '10.1268', '0.0000123')
        >>> metric_text(0.0000004, like=0.0000123456, sign=True)
        '+0.0000004'
    """
    size = abs(value if like is None else like)
    decimals = 4
    if 0 < size < math.inf:
        decimals = max(decimals, 2 - math.floor(math.log10(size)))
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def quantile_of(level: float) -> float:
    """Return how many standard errors an interval reaches to either side.

    Args:
        level: how often it has the truth inside.

    Raises:
        ValueError: it is not between 0 and 1.

    Example:
        >>> round(quantile_of(0.95), 2)
        1.96
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` should be between 0 and 1. Received {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)


def normal_interval(value: float, variance: float, level: float = 0.95) -> Interval:
    """Return the interval of an estimate that varies as the normal distribution.

    Args:
        value: the estimate.
        variance: of the estimate; NaN: so are the ends.
        level: how often the interval has the truth inside. Default 0.95.

    Example:
        >>> found = normal_interval(2.0, 0.01)
        >>> round(found.low, 3), round(found.high, 3)
        (1.804, 2.196)
    """
    reach = quantile_of(level) * math.sqrt(variance)
    return Interval(value, value - reach, value + reach)


def share_interval(value: float, variance: float, level: float = 0.95) -> Interval:
    """Return the interval of a share, by way of its logit, so that it stays within 0 and 1.

    Args:
        value: the estimate.
        variance: of the estimate.
        level: how often the interval has the truth inside. Default 0.95.

    Returns:
        The interval; its ends are NaN where the variance is, or where the value is 0 or 1, at which the
        method says nothing.

    Example:
        >>> found = share_interval(0.8, 0.0004)
        >>> round(found.low, 3), round(found.high, 3)
        (0.758, 0.836)
    """
    if not (0 < value < 1 and variance >= 0):
        return Interval(value, math.nan, math.nan)
    center = math.log(value / (1 - value))
    reach = quantile_of(level) * math.sqrt(variance) / (value * (1 - value))
    return Interval(value, _logistic(center - reach), _logistic(center + reach))


def _logistic(value: float) -> float:
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)
