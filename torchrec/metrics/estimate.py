"""A metric of samples that are all at hand: how sure it is, and how it differs between models.

What one sample moves a metric by is its influence. Influences of all samples say how the metric varies, those of
two models on the same samples how it varies in both at once: what is hard for both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec.metrics.bootstrap import bootstrap_interval
from torchrec.metrics.interval import Interval, normal_interval

Floats = NDArray[np.float64]
Formula = Callable[[Floats], Floats]

_ROUNDING = 1e-12  # of what should cancel out, as a share


@dataclass(frozen=True)
class MetricDifference:
    """By how much a metric of one model is above that of another.

    Attributes:
        difference: second minus first, with its interval.
        p: how likely a difference as large as this, or larger, is if there is none; two-sided.
    """

    difference: Interval
    p: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric of some samples, and how it varies with them.

    Attributes:
        value: the metric; NaN where it is not defined.
        influence: of each sample, or of each group of a metric within groups, ``(N,)``: the sum of their squares
            is the variance of the metric. NaN where nothing tells.
        bounds: from a level to the interval of the metric alone.

    Example:
        >>> first, second = (mean_estimate(x) for x in ([0.1, 0.4, 0.2, 0.7], [0.2, 0.5, 0.2, 0.9]))
        >>> found = first.difference(second)
        >>> round(found.difference.value, 3), round(found.difference.high, 3), round(found.p, 3)
        (0.1, 0.18, 0.014)
    """

    value: float
    influence: Floats
    bounds: Callable[[float], Interval]

    @property
    def variance(self) -> float:
        """Of the metric, from one draw of such samples to another."""
        return float(self.influence @ self.influence)

    def interval(self, level: float = 0.95) -> Interval:
        """Return the interval of the metric.

        Args:
            level: how often it has the truth inside. Default 0.95.
        """
        return self.bounds(level)

    def difference(
        self, second: Estimate, *, paired: bool = True, level: float = 0.95
    ) -> MetricDifference:
        """Return by how much a second model is above this one.

        Args:
            second: the same metric of another model.
            paired: whether it is of the same samples in the same order. Default True.
            level: of the interval. Default 0.95.

        Raises:
            ValueError: paired estimates are not of as many samples.
        """
        if paired:
            return contrast([self, second], [-1.0, 1.0], level)
        scale = self.variance + second.variance
        return _difference([-self.value, second.value], scale, scale, level)


def contrast(
    estimates: Sequence[Estimate], weights: ArrayLike, level: float = 0.95
) -> MetricDifference:
    """Return a weighted sum of a metric of K models on the same samples, such as one against the mean of others.

    Args:
        estimates: of the models, of the same samples in the same order.
        weights: of each, ``(K,)``.
        level: of the interval. Default 0.95.

    Raises:
        ValueError: the estimates are not of as many samples.
    """
    sizes = {len(one.influence) for one in estimates}
    if len(sizes) != 1:
        raise ValueError(
            "Estimates to compare should be of the same samples. Received such of "
            f"{', '.join(str(len(one.influence)) for one in estimates)}."
        )
    given = np.asarray(weights, np.float64)
    influence = given @ np.stack([one.influence for one in estimates])
    values = [float(w) * one.value for w, one in zip(given, estimates, strict=True)]
    scale = sum(float(w) ** 2 * one.variance for w, one in zip(given, estimates, strict=True))
    return _difference(values, float(influence @ influence), scale, level)


def mean_estimate(
    terms: ArrayLike, formula: Formula | None = None, weights: ArrayLike | None = None
) -> Estimate:
    r"""Return a metric that is a function of means over samples.

    Its influences are those of the jackknife, by which a mean has just the variance of a mean: with
    :math:`\theta_{-i}` the metric without sample i, :math:`\sqrt{(n - 1) / n} (\bar\theta - \theta_{-i})` (Efron and
    Stein, https://doi.org/10.1214/aos/1176345462). Its interval is by the bootstrap.

    Args:
        terms: what the metric needs of each sample, ``(N,)`` or ``(N, V)``.
        formula: from means of the terms ``(..., V)`` to the metric ``(...)``. Default: the mean of the first.
        weights: of the samples, ``(N,)``. Default: 1 each.

    Example:
        >>> ratio = mean_estimate([[1, 2], [2, 3], [3, 3]], lambda means: means[..., 0] / means[..., 1])
        >>> ratio.value, round(ratio.variance, 4)
        (0.75, 0.0212)
    """
    columns = np.asarray(terms, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    metric = formula or _first
    if weights is not None:
        weight = np.asarray(weights, np.float64)[:, None]
        columns = np.concatenate([columns * weight, weight], axis=1)
        metric = _of_weighted(metric)
    size = len(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(metric(columns.mean(0))) if size else math.nan
        influence = np.full(size, math.nan)
        if size > 1:
            without = metric((columns.sum(0) - columns) / (size - 1))
            influence = math.sqrt((size - 1) / size) * (without.mean() - without)
    return Estimate(
        value, influence, lambda level: bootstrap_interval(columns, metric, level=level)
    )


def _first(means: Floats) -> Floats:
    found: Floats = means[..., 0]
    return found


def _of_weighted(formula: Formula) -> Formula:
    """Return a formula of means whose last is that of the weights, by which all others are."""
    return lambda means: formula(means[..., :-1] / means[..., -1:])


def _difference(
    values: Sequence[float], variance: float, scale: float, level: float
) -> MetricDifference:
    """Return a sum of values, with the variance that it has and would have if nothing cancelled out."""
    value = sum(values)
    # Rounding leaves a little where equal models should leave nothing.
    if variance <= _ROUNDING**2 * scale:
        variance = 0.0
    if variance > 0:
        p = math.erfc(abs(value) / math.sqrt(2.0 * variance))
        return MetricDifference(normal_interval(value, variance, level), p)
    if variance == 0 and abs(value) <= _ROUNDING * max(map(abs, values)):
        return MetricDifference(Interval(0.0, 0.0, 0.0), 1.0)
    # No variance, yet a difference (as of perfect order against none): the method has no answer.
    return MetricDifference(Interval(value, math.nan, math.nan), math.nan)
