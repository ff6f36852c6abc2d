"""Positives and negatives by score, in bounded memory: what AUC, histogram and calibration need.

A list of distinct scores in ascending order, each with the positives and negatives that have it. As
long as it is short it is exact. When it grows too long, neighbours are merged into one score so that
every entry stands for about the same share of the positives and negatives. A pair of a positive and
a negative that were merged counts as a tie from then on, so one compression to E entries moves the
AUC by at most 2/E, whatever the distribution: there is no grid that a distribution could miss. For a
smooth one it is about 1/E**2. A score that many samples have is not merged with others, so that it
ties with itself in the next list.
"""

from __future__ import annotations

import math
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


def sorted_pairs(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> Keys:
    """Return samples in the order of their scores: key and, in the lowest bit, label.

    Args:
        scores: no NaN, ``(N,)``.
        labels: 0 or 1, ``(N,)``.
    """
    # One sort of plain integers, several times faster than one of positions.
    pairs = keys_of(scores)
    pairs <<= 1
    pairs |= labels.astype(np.int64)
    pairs.sort()
    return pairs


def count_pairs(pairs: Keys) -> ScoreCounts:
    """Count both classes of each score of sorted pairs."""
    positives = (pairs & 1).astype(np.float64)
    return _joined(pairs >> 1, positives, 1.0 - positives)


def count_scores(
    scores: NDArray[np.float32], labels: NDArray[np.float32], weights: Floats
) -> ScoreCounts:
    """Sort weighted samples by score and sum both classes of each score.

    Args:
        scores: no NaN, ``(N,)``.
        labels: 0 or 1, ``(N,)``.
        weights: ``(N,)``.
    """
    keys = keys_of(scores)
    order = _order(keys)
    positives = weights * labels
    return _joined(keys[order], positives[order], (weights - positives)[order])


def merge_counts(parts: Sequence[ScoreCounts]) -> ScoreCounts:
    """Return the counts of all parts together."""
    if len(parts) < 2:
        return parts[0] if parts else no_counts()
    keys, positives, negatives = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = _order(keys)
    return _joined(keys[order], positives[order], negatives[order])


def compress_counts(counts: ScoreCounts, entries: int) -> ScoreCounts:
    """Merge neighbours to groups of about equal share.

    A score whose share is that of a group stays alone. So it keeps its key, and ties with itself
    when lists are merged.

    Args:
        counts: the counts.
        entries: how many to leave; where scores stand alone, up to three times as many.
    """
    # Either class weighs one half, however rare it is.
    share = np.zeros(len(counts.keys))
    for mass in (counts.positives, counts.negatives):
        total = mass.sum()
        if total > 0:
            share += mass * (entries / 2 / total)
    group = (np.cumsum(share) - share).astype(np.int64) + _apart(share >= 1.0)
    starts = _starts(group)
    ends = np.append(starts[1:], len(group)) - 1
    keys = (counts.keys[starts] + counts.keys[ends]) >> 1
    return ScoreCounts(
        keys, np.add.reduceat(counts.positives, starts), np.add.reduceat(counts.negatives, starts)
    )


def compress_pairs(pairs: Keys, entries: int) -> ScoreCounts:
    """Count sorted pairs, with neighbours merged as `compress_counts` does; there is one at least."""
    positives = _positives_up_to(pairs)
    total = int(positives[-1])
    # A class that is not there has no share.
    weights = [entries / 2 / size if size else 0.0 for size in (total, len(pairs) - total)]
    share = positives[:-1] * (weights[0] - weights[1])
    share += np.linspace(weights[1], weights[1] * (len(pairs) - 1), len(pairs) - 1)
    group = np.append(np.int32(0), share.astype(np.int32))
    first, last = _ties(pairs)
    tied = positives[last] - positives[first] + (pairs[first] & 1)
    heavy = tied * weights[0] + (last - first + 1 - tied) * weights[1] >= 1.0
    if max(weights) >= 1.0 or heavy.any():
        alone = np.where(pairs & 1, weights[0], weights[1]) >= 1.0
        alone[_within(first, last)] = False
        alone[last] |= heavy
        apart = _apart(alone)
        group += apart
        group[first] += apart[last] - apart[first]
    group[_within(first, last)] = np.repeat(group[first], last - first + 1)
    ends = np.append(np.flatnonzero(group[1:] != group[:-1]), len(pairs) - 1)
    starts = np.append(0, ends[:-1] + 1)
    size, positives = ends - starts + 1, np.diff(positives[ends], prepend=0)
    return ScoreCounts(
        (pairs[starts] + pairs[ends]) >> 2,
        positives.astype(np.float64),
        (size - positives).astype(np.float64),
    )


def area_under_pairs(pairs: Keys) -> float:
    """Return what `area_under_curve` does, of sorted pairs with both classes."""
    positives = _positives_up_to(pairs)
    total = int(positives[-1])
    # The positives below each negative; those below each positive are 0, 1, 2...
    wrong = float(int(positives.sum(dtype=np.int64)) - total * (total + 1) // 2)
    # Of one score the negatives come first, as if they were in order.
    first, last = _ties(pairs)
    tied = positives[last] - positives[first] + (pairs[first] & 1)
    wrong += 0.5 * float((tied * (last - first + 1 - tied)).sum())
    return 1.0 - wrong / (total * (len(pairs) - total))


def area_under_curve(counts: ScoreCounts) -> float:
    """Return the share of pairs of a positive and a negative that are in order; a tie is half a one.

    Both classes have to be there. Fawcett, https://doi.org/10.1016/j.patrec.2005.10.010.
    """
    below = np.cumsum(counts.negatives) - counts.negatives
    ordered = float((counts.positives * (below + 0.5 * counts.negatives)).sum())
    return ordered / (float(counts.positives.sum()) * float(counts.negatives.sum()))


def area_variance(counts: ScoreCounts) -> float:
    """Return the variance of the AUC by DeLong's method; NaN if a class has fewer than two samples.

    For each positive the share of the negatives below it, for each negative that of the positives above:
    their variances are those of the AUC. https://doi.org/10.2307/2531595.

    Args:
        counts: of samples that weigh 1 each.
    """
    positives, negatives = float(counts.positives.sum()), float(counts.negatives.sum())
    if min(positives, negatives) < 2:
        return math.nan
    below = (np.cumsum(counts.negatives) - 0.5 * counts.negatives) / negatives
    above = 1.0 - (np.cumsum(counts.positives) - 0.5 * counts.positives) / positives
    area = float((counts.positives * below).sum()) / positives
    of_positives = float((counts.positives * (below - area) ** 2).sum()) / (positives - 1)
    of_negatives = float((counts.negatives * (above - area) ** 2).sum()) / (negatives - 1)
    return of_positives / positives + of_negatives / negatives


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


def _positives_up_to(pairs: Keys) -> NDArray[np.int32]:
    """Return how many positives there are up to and with each of some pairs."""
    # Half the width is twice as fast; there are never as many pairs as would overflow.
    up_to: NDArray[np.int32] = np.cumsum((pairs & 1).astype(np.int32), dtype=np.int32)
    return up_to


def _ties(pairs: Keys) -> tuple[Keys, Keys]:
    """Return where runs of one score begin and end in sorted pairs, those of two samples or more."""
    before = np.flatnonzero((pairs[1:] ^ pairs[:-1]).view(np.uint64) <= 1)
    begins = np.diff(before, prepend=-2) > 1
    return before[begins], before[np.append(begins[1:], True)[: len(before)]] + 1


def _within(first: Keys, last: Keys) -> Keys:
    """Return the numbers from each first to each last."""
    sizes = last - first + 1
    return np.repeat(last - np.cumsum(sizes), sizes) + np.arange(1, 1 + sizes.sum())


def _apart(alone: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return ascending numbers that differ on either side of each that is to stand alone."""
    before = np.cumsum(alone, dtype=np.int32)
    before *= 2
    before -= alone
    return before


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
