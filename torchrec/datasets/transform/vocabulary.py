"""A vocabulary: which row each known id has."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Vocabulary:
    """Rows of known ids; all others share the row behind them.

    Args:
        ids: int64, distinct; id ``ids[i]`` has row i.

    Example:
        >>> Vocabulary(np.array([70, 50])).rows(np.array([50, 60, 70]))
        array([1, 2, 0])
    """

    def __init__(self, ids: Array) -> None:
        self.ids = ids
        order = np.argsort(ids)
        self._sorted = ids[order]
        # One more entry, for ids that would come behind the last.
        self._row = np.append(order, len(ids))

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Array) -> Array:
        """Return the row of each id, int64; ``len(self)`` for unknown ones."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64)
        at = np.searchsorted(self._sorted, ids)
        known = self._sorted[np.minimum(at, len(self.ids) - 1)] == ids
        return np.where(known, self._row[at], len(self.ids))
