"""What the transform did to the data without being asked: counted by feature, never silent."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class FeatureCounts:
    """Counts of one feature since the last `TransformCounts.take`.

    Attributes:
        samples: samples transformed.
        values: ids or numbers that they had, before anything was dropped.
        missing: samples whose value was null or (a number) NaN; empty bags do not count.
        infinite: infinite numbers, taken as missing.
        nulls: nulls inside lists, dropped. Missing and infinite weights count here too.
        unknown: ids that the vocabulary does not hold.
        truncated: ids cut off by ``max_length``.

    Example:
        >>> FeatureCounts(samples=2, values=1, missing=1) + FeatureCounts(samples=1, values=1)
        FeatureCounts(samples=3, values=2, missing=1, infinite=0, nulls=0, unknown=0, truncated=0)
    """

    samples: int = 0
    values: int = 0
    missing: int = 0
    infinite: int = 0
    nulls: int = 0
    unknown: int = 0
    truncated: int = 0

    def __add__(self, other: FeatureCounts) -> FeatureCounts:
        """Return the sums of both."""
        return FeatureCounts(*map(operator.add, _numbers(self), _numbers(other)))


_numbers = operator.attrgetter(*(field.name for field in dataclasses.fields(FeatureCounts)))


class TransformCounts:
    """Counts by feature, added to by any number of threads.

    Args:
        features: names of the features.

    Example:
        >>> counts = TransformCounts(["user"])
        >>> counts.add({"user": FeatureCounts(samples=2, values=1, missing=1)})
        >>> counts.take()["user"].missing, counts.take()["user"].missing
        (1, 0)
    """

    def __init__(self, features: list[str]) -> None:
        self._lock = threading.Lock()
        self._counts = {name: FeatureCounts() for name in features}
        self._rows = 0  # that were added of all features at once

    def add(self, counts: Mapping[str, FeatureCounts]) -> None:
        """Add the counts of some samples."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def add_rows(self, rows: int, other: Mapping[str, FeatureCounts]) -> None:
        """Add samples of all features with one value each, and what is otherwise.

        Args:
            rows: how many samples.
            other: by feature, what differs from that.
        """
        with self._lock:
            self._rows += rows
            for name, count in other.items():
                self._counts[name] += count

    def peek(self) -> dict[str, FeatureCounts]:
        """Return the counts since the last `take`, by feature."""
        with self._lock:
            return self._sums()

    def _sums(self) -> dict[str, FeatureCounts]:
        rows = FeatureCounts(samples=self._rows, values=self._rows)
        return {name: count + rows for name, count in self._counts.items()}

    def take(self) -> dict[str, FeatureCounts]:
        """Return the counts since the last `take`, by feature, and start again from zero."""
        with self._lock:
            taken = self._sums()
            self._counts = {name: FeatureCounts() for name in taken}
            self._rows = 0
            return taken

    def __getstate__(self) -> dict[str, FeatureCounts]:
        """Copy and pickle without the lock."""
        return self.peek()

    def __setstate__(self, state: dict[str, FeatureCounts]) -> None:
        """Restore what `__getstate__` gave, with a lock of its own."""
        self._lock = threading.Lock()
        self._counts = state
        self._rows = 0
