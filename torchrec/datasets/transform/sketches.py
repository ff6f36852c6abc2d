"""Statistics of streams in bounded memory: moments, samples, distinct counts, frequent ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Moments:
    """Count, mean and spread of a stream of numbers, merged piece by piece.

    See Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): nothing is lost when the mean is large beside the spread.

    Attributes:
        count: numbers so far.
        mean: their mean.
        squares: sum of squared distances from it.

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
        """Return the ``buckets - 1`` inner boundaries of that many equally full buckets."""
        at = np.arange(1, buckets) / buckets
        return np.asarray(np.quantile(self._values, at))


def scatter(ids: Array) -> Array:
    """Hash int64 to uint64, one to one, with every bit depending on every other.

    See Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: Array = x ^ (x >> np.uint64(31))
    return scattered


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
        self._hashes = np.zeros(0, np.uint64)

    def update(self, ids: Array) -> None:
        """Add int64 ids."""
        hashes = scatter(ids)
        if len(self._hashes) == self._size:
            hashes = hashes[hashes < self._hashes[-1]]
        if len(hashes):
            self._hashes = np.union1d(self._hashes, hashes)[: self._size]

    def estimate(self) -> int:
        """Return the number of distinct ids."""
        if len(self._hashes) < self._size:
            return len(self._hashes)
        return round((self._size - 1) * 2.0**64 / float(self._hashes[-1]))


class IdCounter:
    """How often each id of a stream came, for the most frequent ones.

    Exact while the distinct ids are at most ``capacity``. Then the rarer half is forgotten, again
    and again, so that an id's count may lack what it had when it was forgotten: only ids that are
    rare for long are at risk. See Manku and Motwani, "Approximate frequency counts over data
    streams" (2002).

    Args:
        capacity: most ids whose counts are kept between updates.

    Example:
        >>> counter = IdCounter()
        >>> counter.update(np.array([7, 5, 7]))
        >>> counter.most_frequent(1, min_count=1).tolist()
        [7]
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        self._capacity = capacity
        self._ids = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._pending: list[tuple[Array, Array]] = []
        self._num_pending = 0

    def update(self, ids: Array) -> None:
        """Count int64 ids."""
        found = pa.array(ids).value_counts()
        self._pending.append((found.field(0).to_numpy(), found.field(1).to_numpy()))
        self._num_pending += len(found)
        if self._num_pending > max(len(self._ids), 1 << 17):
            self._merge()

    def _merge(self) -> None:
        ids = np.concatenate([self._ids, *(ids for ids, _ in self._pending)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        self._pending, self._num_pending = [], 0
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], counts[order]
        first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1)) if len(ids) else order
        self._ids = ids[first]
        self._counts = np.add.reduceat(counts, first) if len(first) else counts
        if len(self._ids) > self._capacity:
            kept = np.sort(_most_frequent(self._ids, self._counts)[: self._capacity // 2])
            self._ids, self._counts = self._ids[kept], self._counts[kept]

    def most_frequent(self, number: int | None, min_count: int) -> Array:
        """Return ids by falling frequency (ids of the same frequency: rising), no more than asked."""
        self._merge()
        order = _most_frequent(self._ids, self._counts)
        order = order[self._counts[order] >= min_count]
        return self._ids[order[:number]]


def _most_frequent(ids: Array, counts: Array) -> Array:
    return np.lexsort((ids, -counts))
