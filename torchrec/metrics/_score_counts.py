"""Positives and negatives by score, in bounded memory: what AUC, histogram and calibration need.

A list of distinct scores in ascending order, each with the positives and negatives that have it. As
long as it is short it is exact. When it grows too long, neighbours are merged into one score so that
every entry stands for about the same share of the positives and negatives. A pair of a positive and
a negative that were merged counts as a tie from then on, so one compression to E entries moves the
AUC by at most 2/E, whatever the distribution: there is no grid that a distribution could miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
Floats = NDArray[np.float64]

_LOWER_BITS = np.int32(0x7FFF_FFFF)


class ScoreCounts(NamedTuple):
    """Distinct scores in ascending order, and how much of either class has them.

    ``keys`` are scores as integers that sort alike, see `keys_of`.
    """

    keys: Keys
    positives: Floats
    negatives: Floats


def no_counts() -> ScoreCounts:
    """Return an empty list."""
    return ScoreCounts(np.empty(0, np.int64), np.empty(0), np.empty(0))


def keys_of(scores: NDArray[np.float32]) -> Keys:
    """Return integers that are in the order of the scores, one for each float32 but -0.0.

    Args:
        scores: no NaN.
    """
    # Adding 0 makes -0.0 a 0.0. Of negative numbers, the larger bits are the lower score.
    bits = (scores + np.float32(0)).view(np.int32)
    ordered: NDArray[np.int32] = bits ^ ((bits >> 31) & _LOWER_BITS)
    return ordered.astype(np.int64)


def scores_of(keys: Keys) -> NDArray[np.float32]:
    """Return the scores that the integers stand for."""
    ordered = keys.astype(np.int32)
    bits: NDArray[np.int32] = ordered ^ ((ordered >> 31) & _LOWER_BITS)
    return bits.view(np.float32)


def count_scores(
    scores: NDArray[np.float32], labels: NDArray[np.float32], weights: Floats | None
) -> ScoreCounts:
    """Sort samples by score and count both classes of each score.

    Args:
        scores: no NaN, ``(N,)``.
        labels: 0 or 1, ``(N,)``.
        weights: ``(N,)``; None: 1 each.
    """
    # The label in the lowest bit: one sort of plain integers.
    pairs = (keys_of(scores) << 1) | labels.astype(np.int64)
    if weights is None:
        pairs.sort()
        positives = (pairs & 1).astype(np.float64)
        negatives = 1.0 - positives
    else:
        order = _order(pairs)
        pairs, weights = pairs[order], weights[order]
        positives = weights * (pairs & 1)
        negatives = weights - positives
    return _joined(pairs >> 1, positives, negatives)


def merge_counts(parts: Sequence[ScoreCounts]) -> ScoreCounts:
    """Return the counts of all parts together."""
    if len(parts) < 2:
        return parts[0] if parts else no_counts()
    keys, positives, negatives = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = _order(keys)
    return _joined(keys[order], positives[order], negatives[order])


def compress_counts(counts: ScoreCounts, entries: int) -> ScoreCounts:
    """Merge neighbours, so that at most ``entries`` + 1 of about equal share are left.

    A score that has a larger share stays alone or with what comes just before it.

    Args:
        counts: the counts.
        entries: how many to leave.
    """
    # Either class weighs one half, however rare it is.
    share = np.zeros(len(counts.keys))
    for mass in (counts.positives, counts.negatives):
        total = mass.sum()
        if total > 0:
            share += mass / total
    before = np.cumsum(share) - share
    group = (before * (entries / max(float(share.sum()), 1e-300))).astype(np.int64)
    starts = _starts(group)
    ends = np.append(starts[1:], len(group)) - 1
    keys = (counts.keys[starts] + counts.keys[ends]) >> 1
    return ScoreCounts(
        keys, np.add.reduceat(counts.positives, starts), np.add.reduceat(counts.negatives, starts)
    )


def area_under_curve(counts: ScoreCounts) -> float:
    """Return the share of pairs of a positive and a negative that are in order; a tie is half a one.

    Both classes have to be there. Fawcett, https://doi.org/10.1016/j.patrec.2005.10.010.
    """
    below = np.cumsum(counts.negatives) - counts.negatives
    ordered = float((counts.positives * (below + 0.5 * counts.negatives)).sum())
    return ordered / (float(counts.positives.sum()) * float(counts.negatives.sum()))


def _order(keys: Keys) -> Keys:
    """Return the positions of the keys in ascending order.

    Args:
        keys: of at most 33 bits, fewer than 2**30 of them.
    """
    # The position in the lowest bits: one sort of plain integers, several times faster than argsort.
    bits = len(keys).bit_length()
    sorted_keys = (keys << bits) | np.arange(len(keys))
    sorted_keys.sort()
    order: Keys = sorted_keys & ((1 << bits) - 1)
    return order


def _joined(keys: Keys, positives: Floats, negatives: Floats) -> ScoreCounts:
    """Add up entries of the same score; ``keys`` ascend."""
    starts = _starts(keys)
    if len(starts) == len(keys):
        return ScoreCounts(keys, positives, negatives)
    return ScoreCounts(
        keys[starts], np.add.reduceat(positives, starts), np.add.reduceat(negatives, starts)
    )


def _starts(ascending: Keys) -> Keys:
    """Return where runs of equal numbers start."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
