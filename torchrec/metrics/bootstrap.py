"""Intervals of metrics that are functions of means over samples: the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec.metrics.interval import Interval

Floats = NDArray[np.float64]

_GROUPS = 4096  # samples are drawn in so many groups, of rows chosen by chance


def bootstrap_interval(
    values: ArrayLike,
    metric: Callable[[Floats], Floats],
    *,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return a metric of some samples, and the interval that drawing samples again gives it.

    Of many samples, groups are drawn instead: the mean of a metric varies with groups of rows that
    were chosen by chance as it does with rows, and the cost does not grow with their number.

    Args:
        values: what the metric needs of each sample, ``(N, V)``.
        metric: from means of the values ``(..., V)`` to the metric ``(...)``.
        level: how often the interval has the truth inside. Default 0.95.
        repeats: how often samples are drawn. Default 1000.
        seed: of the draws. Default 0.

    Returns:
        The metric of all samples, and quantiles of that of the draws; draws for which it is not
        defined are left out. NaN without samples; the ends are with one alone.

    Raises:
        ValueError: ``values`` is no matrix.

    Example:
        >>> losses = np.linspace(0.0, 1.0, 101)[:, None]
        >>> found = bootstrap_interval(losses, lambda means: means[..., 0])
        >>> round(found.value, 3), round(found.high - found.low, 2)
        (0.5, 0.11)
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2:
        raise ValueError(
            f"`values` should be (N, V): of each sample what the metric needs. Received {rows.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"`level` should be between 0 and 1. Received {level}.")
    if len(rows) < 2:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(metric(rows[0])) if len(rows) else math.nan
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    sums, sizes = _groups(rows, random)
    drawn = np.empty((repeats, rows.shape[1]))
    for number in range(repeats):
        times = np.bincount(random.integers(0, len(sums), len(sums)), minlength=len(sums))
        drawn[number] = times @ sums / (times @ sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, found = float(metric(rows.mean(0))), metric(drawn)
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))


def _groups(rows: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the sums of the rows of each group and the number of these; few rows stay alone."""
    if len(rows) <= _GROUPS:
        return rows, np.ones(len(rows))
    group = random.permutation(len(rows)) % _GROUPS
    sums = np.stack(
        [np.bincount(group, column, _GROUPS).astype(np.float64) for column in rows.T], axis=1
    )
    return sums, np.bincount(group, minlength=_GROUPS).astype(np.float64)
