"""How sure an AUC is, and the difference of several on the same samples: DeLong's method.

DeLong, DeLong and Clarke-Pearson, https://doi.org/10.2307/2531595; by ranks, as Sun and Xu do it,
https://doi.org/10.1109/LSP.2014.2337313: sorting is all that it costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec.metrics.interval import Interval, quantile_of, share_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AucDifference:
    """By how much one AUC is above another.

    Attributes:
        difference: second minus first, with its interval.
        p: how likely a difference as large as this, or larger, is if there is none; two-sided.
    """

    difference: Interval
    p: float


@dataclass(frozen=True)
class AucEstimates:
    """AUCs of K models on the same samples, and how they vary together.

    Attributes:
        auc: ``(K,)``; NaN if there are not both classes.
        covariance: ``(K, K)``; NaN if a class has fewer than two samples.

    Example:
        >>> labels = [0, 0, 0, 1, 1, 1]
        >>> estimates = auc_estimates([[1, 2, 4, 3, 5, 6], [1, 4, 5, 2, 3, 6]], labels)
        >>> [round(float(value), 4) for value in estimates.auc]
        [0.8889, 0.5556]
        >>> found = estimates.difference(1, 0)
        >>> round(found.difference.value, 4), found.p > 0.05
        (0.3333, True)
    """

    auc: Floats
    covariance: Floats

    def interval(self, model: int = 0, level: float = 0.95) -> Interval:
        """Return the interval of one AUC, by way of its logit, so that it stays within 0 and 1.

        Args:
            model: which, of K. Default 0.
            level: how often the interval has the truth inside. Default 0.95.

        Returns:
            The interval; its ends are NaN where the covariance is, or where the AUC is 0 or 1, at
            which the method says nothing.
        """
        return share_interval(float(self.auc[model]), float(self.covariance[model, model]), level)

    def difference(self, first: int, second: int, level: float = 0.95) -> AucDifference:
        """Return by how much the second AUC is above the first, on the same samples.

        Args:
            first: which, of K.
            second: which, of K.
            level: of the interval. Default 0.95.
        """
        contrast = np.zeros(len(self.auc))
        contrast[second] += 1.0
        contrast[first] -= 1.0
        return self.contrast(contrast, level)

    def contrast(self, weights: ArrayLike, level: float = 0.95) -> AucDifference:
        """Return a weighted sum of the AUCs, such as one against the mean of others.

        Args:
            weights: of each, ``(K,)``.
            level: of the interval. Default 0.95.
        """
        given = np.asarray(weights, np.float64)
        variance = float(given @ self.covariance @ given)
        return _difference(float(given @ self.auc), variance, level)


def auc_estimates(scores: ArrayLike, labels: ArrayLike) -> AucEstimates:
    """Return the AUCs of models on the same samples with their covariance, by DeLong's method.

    Args:
        scores: of one model ``(N,)`` or of K ``(K, N)``; higher for the positives. No NaN.
        labels: 0 or 1, ``(N,)``.

    Raises:
        ValueError: sizes differ, a score is NaN, or a label neither 0 nor 1.

    Example:
        >>> estimates = auc_estimates([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> float(estimates.auc[0]), round(float(estimates.covariance[0, 0]), 4)
        (0.75, 0.125)
    """
    given = np.atleast_2d(np.asarray(scores))
    truth = np.asarray(labels).reshape(-1)
    if given.ndim != 2 or given.shape[1] != len(truth):
        raise ValueError(
            f"`scores` should be (N,) or (K, N) for the N labels ({len(truth)}). Received "
            f"{tuple(np.shape(scores))}."
        )
    if np.isnan(given).any():
        raise ValueError(f"`scores` should be numbers. Received {int(np.isnan(given).sum())} NaN.")
    if not np.isin(truth, (0, 1)).all():
        wrong = truth[~np.isin(truth, (0, 1))][0]
        raise ValueError(f"`labels` should be 0 or 1. Received {wrong}.")
    positive = truth == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    models = len(given)
    if not positives or not negatives:
        return AucEstimates(np.full(models, math.nan), np.full((models, models), math.nan))
    # For each positive the share of negatives below it, for each negative that of positives above:
    # the rank among all, less that among its own class, counts those of the other class below.
    above, below = np.empty((models, positives)), np.empty((models, negatives))
    for number, score in enumerate(given):
        ranks = _midranks(score)
        above[number] = (ranks[positive] - _midranks(score[positive])) / negatives
        below[number] = 1.0 - (ranks[~positive] - _midranks(score[~positive])) / positives
    covariance = _covariance(above) / positives + _covariance(below) / negatives
    return AucEstimates(above.mean(1), covariance)


def independent_difference(
    first: AucEstimates, second: AucEstimates, level: float = 0.95
) -> AucDifference:
    """Return by how much one AUC is above another, of other samples.

    Args:
        first: of one model.
        second: of one model.
        level: of the interval. Default 0.95.

    Example:
        >>> few = auc_estimates([1, 2, 3, 4], [0, 1, 0, 1])
        >>> round(independent_difference(few, few).difference.high, 4)
        0.98
    """
    variance = float(first.covariance[0, 0] + second.covariance[0, 0])
    return _difference(float(second.auc[0] - first.auc[0]), variance, level)


def _difference(value: float, variance: float, level: float) -> AucDifference:
    # Rounding leaves a little, of either sign, where equal scores should leave nothing.
    error = math.sqrt(variance) if variance > 1e-15 else variance * 0.0
    interval = Interval(
        value, value - quantile_of(level) * error, value + quantile_of(level) * error
    )
    if error > 0:
        return AucDifference(interval, math.erfc(abs(value) / error / math.sqrt(2.0)))
    if error == 0 and abs(value) < 1e-12:
        return AucDifference(interval, 1.0)
    # No variance, yet a difference (as of perfect order against none): the method has no answer.
    return AucDifference(Interval(value, math.nan, math.nan), math.nan)


def _midranks(values: NDArray[np.generic]) -> Floats:
    """Return the ranks from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2.0)[inverse.reshape(-1)]
    return ranks


def _covariance(rows: Floats) -> Floats:
    if rows.shape[1] < 2:
        return np.full((len(rows), len(rows)), math.nan)
    return np.atleast_2d(np.cov(rows))
