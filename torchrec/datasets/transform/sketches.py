"""Statistics of streams in bounded memory: moments, samples, distinct counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_FEWEST_SLOTS = 4096  # of a table of hashes


@dataclass
class Moments:
    """Count, mean and spread of a stream of numbers, merged piece by piece.

    See Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): nothing is lost when the mean is large beside the spread.

    Attributes:
        count: numbers so far.
        mean: their mean.
        squares: sum of squared distances from it.
        least: the smallest of them.
        most: the largest.

    Example:
        >>> moments = Moments()
        >>> moments.update(np.array([1.0, 2.0]))
        >>> moments.update(np.array([3.0]))
        >>> moments.mean, round(moments.deviation, 4)
        (2.0, 0.8165)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def update(self, values: Array) -> None:
        """Add finite numbers."""
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        count = self.count + len(values)
        difference = mean - self.mean
        self.mean += difference * (len(values) / count)
        self.squares += squares + difference * difference * self.count * (len(values) / count)
        self.count = count
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))

    @property
    def is_constant(self) -> bool:
        """Whether all numbers are one, but for rounding: what deviation there is, is noise."""
        noise = 4 * float(np.finfo(np.float64).eps) * max(abs(self.least), abs(self.most))
        return self.most - self.least <= noise or self.deviation == 0

    @property
    def deviation(self) -> float:
        """The standard deviation, of the numbers themselves (divided by n)."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


class Sample:
    """A uniform sample of a stream of numbers: those with the smallest random keys.

    Args:
        size: numbers kept; all of them while there are no more.
        seed: of the keys.

    Attributes:
        count: numbers so far.
    """

    def __init__(self, size: int = 1 << 18, seed: int = 0) -> None:
        self.count = 0
        self._size = size
        self._random = np.random.default_rng(seed)
        self._keys = np.zeros(0)
        self._values = np.zeros(0)

    def update(self, values: Array) -> None:
        """Add numbers."""
        self.count += len(values)
        keys = self._random.random(len(values))
        if len(self._keys) == self._size:
            near = keys < self._keys.max()
            keys, values = keys[near], values[near]
        self._keys = np.concatenate([self._keys, keys])
        self._values = np.concatenate([self._values, values])
        if len(self._keys) > self._size:
            kept = np.argpartition(self._keys, self._size - 1)[: self._size]
            self._keys, self._values = self._keys[kept], self._values[kept]

    def boundaries(self, buckets: int) -> Array:
        """Return inner boundaries, rising, of equally full buckets: fewer where numbers repeat.

        They lie halfway between neighbours in the sample, so that a number is in one bucket however
        it was rounded: 0.1 as a float32 is not the 0.1 that a request holds.
        """
        values = np.sort(self._values)
        quantiles = np.quantile(values, np.arange(1, buckets) / buckets)
        above = np.searchsorted(values, quantiles)
        # Below the smallest number is nothing to tell apart: it gets a bucket of its own.
        above[above == 0] = np.searchsorted(values, values[0], side="right")
        above = np.unique(above[above < len(values)])
        low, high = values[above - 1], values[above]
        middle = low + (high - low) / 2
        return np.where(middle > low, middle, high)


def scatter(ids: Array) -> Array:
    """Hash int64 to uint64, one to one, with every bit depending on every other.

    See Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    x = ids.astype(np.int64).view(np.uint64)  # a copy, in which all that follows is done
    x += np.uint64(0x9E3779B97F4A7C15)
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


class DistinctCounter:
    """The number of distinct ids of a stream, from the smallest of their hashes.

    Exact up to ``size``; beyond that the standard error is ``1 / sqrt(size)``. See Bar-Yossef and
    others, "Counting distinct elements in a data stream" (2002).

    Example:
        >>> counter = DistinctCounter()
        >>> counter.update(np.array([3, 3, -5]))
        >>> counter.estimate()
        2
    """

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._sorted = np.zeros(0, np.uint64)  # each once, the smallest
        # Most of a stream has come before. To sort takes ten times as long as to see that: so hashes are
        # looked for in tables first, and those that are not found wait until they are many.
        self._tables: list[Array] | None = []  # None: to be made of those that are sorted
        self._waiting: list[Array] = []
        self._waits = 0

    def update(self, ids: Array) -> None:
        """Add int64 ids."""
        if not len(ids):
            return
        ids = ids.astype(np.int64, copy=False)
        low, high = int(ids.min()), int(ids.max())
        if high - low < len(ids):  # in a range that is no longer than they are many
            ids = each_once(ids - low, high - low + 1) + low
        hashes = scatter(ids)
        if len(self._sorted) == self._size:
            hashes = hashes[hashes < self._sorted[-1]]
        if self._tables is None:
            self._tables = _tables_of(self._sorted)
        for table in self._tables:
            hashes = _not_in(table, hashes)
        if len(hashes):
            self._waiting.append(hashes)
        self._waits += len(hashes)
        if self._waits >= self._size:
            self._settle()

    def estimate(self) -> int:
        """Return the number of distinct ids, an estimate beyond ``size``."""
        if self._waiting:
            self._settle()
        if len(self._sorted) < self._size:
            return len(self._sorted)
        return round((self._size - 1) * 2.0**64 / float(self._sorted[-1]))

    def merge(self, other: DistinctCounter) -> None:
        """Add the ids of another counter of the same size."""
        self._waiting.append(other._settle())
        self._settle()

    def _settle(self) -> Array:
        """Take in the hashes that wait; return all: sorted, each once, the smallest of them."""
        if self._waiting:
            # `np.union1d` goes through a hash table, which takes ten times as long.
            merged = np.sort(np.concatenate([self._sorted, *self._waiting]))
            new = np.ones(len(merged), np.bool_)
            np.not_equal(merged[1:], merged[:-1], out=new[1:])
            self._sorted = merged[new][: self._size]
            self._tables, self._waiting, self._waits = None, [], 0
        return self._sorted

    def overlap(self, other: DistinctCounter) -> float:
        """Return which share of the distinct ids of the smaller of two is in the larger, an estimate likewise."""
        ends = [one._settle()[-1] for one in (self, other) if len(one._settle()) == one._size]
        few, many = (
            one._sorted[one._sorted <= min(ends)] if ends else one._sorted
            for one in sorted((self, other), key=DistinctCounter.estimate)
        )
        return float(np.isin(few, many).mean()) if len(few) else 0.0


def each_once(positions: Array, size: int) -> Array:
    """Return positions from 0 to below ``size`` each once, rising, without sorting.

    Example:
        >>> each_once(np.array([3, 1, 3]), 5)
        array([1, 3])
    """
    there = np.zeros(size, np.bool_)
    there[positions.astype(np.intp, copy=False)] = True
    return np.flatnonzero(there)


def _tables_of(hashes: Array) -> list[Array]:
    """Return tables of which one has a hash in its slot, for nearly all of some hashes.

    The second has those that have lost their slot in the first to another, and so on.
    """
    tables, few = [], len(hashes) // 64
    while len(hashes) > few:
        slots = max(_FEWEST_SLOTS, 1 << (2 * len(hashes)).bit_length())
        table = ~np.arange(slots, dtype=np.uint64)  # of which none is in its slot
        table[_slots(hashes, table)] = hashes
        tables.append(table)
        hashes = _not_in(table, hashes)
    return tables


def _not_in(table: Array, hashes: Array) -> Array:
    """Return the hashes that a table does not have."""
    new: Array = hashes[table.take(_slots(hashes, table)) != hashes]
    return new


def _slots(hashes: Array, table: Array) -> Array:
    """Return where hashes would be in a table: their last bits."""
    slots: Array = (hashes & np.uint64(len(table) - 1)).view(np.int64)
    return slots
