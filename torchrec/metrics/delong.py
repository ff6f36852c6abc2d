"""How sure an AUC is: DeLong's method.

DeLong, DeLong and Clarke-Pearson, https://doi.org/10.2307/2531595; by the order of the scores, as Sun and Xu do it,
https://doi.org/10.1109/LSP.2014.2337313: sorting is all that it costs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec.metrics.estimate import Estimate
from torchrec.metrics.interval import Interval, share_interval

Floats = NDArray[np.float64]


def auc_estimate(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> Estimate:
    r"""Return the AUC of a model with how it varies, by DeLong's method.

    The influence of a positive is by how far the share of negatives below it is from the AUC, that of a negative
    by how far the share of positives above it is, over :math:`\sqrt{m (m - 1)}` for the m samples of its class.
    Weighted samples count by their weights, in shares and influences; with all of 1 that is DeLong's covariance.
    The interval goes by way of the logit of the AUC, so that it stays within 0 and 1.

    Args:
        scores: higher for the positives, ``(N,)``. No NaN.
        labels: 0 or 1, ``(N,)``.
        weights: of the samples, above 0, ``(N,)``. Default: 1 each.

    Returns:
        The AUC, NaN if there are not both classes; its influences and interval are NaN if a class has fewer than
        two samples, and the interval is where the AUC is 0 or 1, at which the method says nothing.

    Raises:
        ValueError: sizes differ, a score is NaN, a label neither 0 nor 1, or a weight not above 0.

    Example:
        >>> found = auc_estimate([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> found.value, round(found.variance, 4)
        (0.75, 0.125)
        >>> labels = [0, 0, 0, 1, 1, 1]
        >>> first, second = (auc_estimate(s, labels) for s in ([1, 4, 5, 2, 3, 6], [1, 2, 4, 3, 5, 6]))
        >>> gap = first.difference(second)
        >>> round(gap.difference.value, 4), gap.p > 0.05
        (0.3333, True)
    """
    score, truth = np.asarray(scores), np.asarray(labels).reshape(-1)
    weight = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    _check(score, truth, weight)
    positive = truth == 1
    counts = np.where(positive, positive.sum(), (~positive).sum())
    _, place = np.unique(score, return_inverse=True)
    place = place.reshape(-1)
    # How much of each class has each score; half of what has the same score counts as below it.
    of_positives, of_negatives = (
        np.bincount(place, weight * chosen, int(place.max(initial=-1)) + 1)
        for chosen in (positive, ~positive)
    )
    positives, negatives = float(weight @ positive), float(weight @ ~positive)
    if not positives or not negatives:
        return Estimate(math.nan, np.full(len(truth), math.nan), _unknown)
    below = (np.cumsum(of_negatives) - of_negatives / 2) / negatives
    above = 1.0 - (np.cumsum(of_positives) - of_positives / 2) / positives
    auc = float(weight[positive] @ below[place[positive]]) / positives
    shares = np.where(positive, below[place], above[place])
    influence = weight * (shares - auc) / np.where(positive, positives, negatives)
    with np.errstate(divide="ignore", invalid="ignore"):
        influence = np.where(counts > 1, influence * np.sqrt(counts / (counts - 1)), math.nan)
    variance = float(influence @ influence)
    return Estimate(auc, influence, lambda level: share_interval(auc, variance, level))


def _unknown(level: float) -> Interval:
    return share_interval(math.nan, math.nan, level)


def _check(scores: NDArray[np.generic], labels: NDArray[np.generic], weights: Floats) -> None:
    if scores.shape != labels.shape:
        raise ValueError(
            f"`scores` should be (N,) for the N labels ({len(labels)}). Received {scores.shape}."
        )
    if weights.shape != labels.shape:
        raise ValueError(
            f"`weights` should be (N,) for the N labels ({len(labels)}). Received {weights.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"`scores` should be numbers. Received {int(np.isnan(scores).sum())} NaN.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"`labels` should be 0 or 1. Received {labels[~np.isin(labels, (0, 1))][0]}."
        )
    if not (weights > 0).all():
        raise ValueError(f"`weights` should be above 0. Received {weights[~(weights > 0)][0]}.")
