"""A vocabulary: which row each known id has, and how it is found from a stream of ids."""

from __future__ import annotations

import numpy as np
import torch

from torchrec.datasets.transform.columns import Array, tensor_of
from torchrec.datasets.transform.sketches import DistinctCounter
from torchrec.ops.collision import (
    count_ids,
    find_ids,
    new_history,
    new_id_map,
    rebuild_index,
    reserve,
    restore_history,
)

# A dictionary of more ids than this would take more memory than it saves time.
_SMALL = 1 << 16


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
        self._known: dict[int, int] | None = None
        self._map = new_id_map(max(len(ids), 1))
        if len(ids):
            self._map.ids.copy_(tensor_of(ids))
            self._map.occupied.fill_(True)
            rebuild_index(self._map)

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, before: Vocabulary, most: int | None) -> Vocabulary:
        """Return the ids of an earlier vocabulary in their rows, and those of this one behind them.

        Args:
            before: the earlier one.
            most: how many there are in all at most, where new ones are added. None: any number.

        Example:
            >>> second = Vocabulary(np.array([50, 30, 20]))
            >>> second.after(Vocabulary(np.array([70, 50])), most=3).ids
            array([70, 50, 30])
        """
        new = self.ids[before.rows(self.ids) == len(before)]
        room = len(new) if most is None else max(most - len(before), 0)
        return Vocabulary(np.concatenate([before.ids, new[:room]]))

    def rows(self, ids: Array) -> Array:
        """Return the row of each id, int64; ``len(self)`` for unknown ones."""
        wide = ids.astype(np.int64, copy=False)
        rows: Array = find_ids(self._map, tensor_of(wide), missing=len(self)).numpy()
        return rows

    def rows_of_few(self, ids: list[int]) -> list[int]:
        """Return the row of each of some dozens of ids: the same, and quicker where the vocabulary is small."""
        if len(self) > _SMALL:
            few: list[int] = self.rows(np.array(ids, np.int64)).tolist()
            return few
        if self._known is None:  # several threads may make it, all the same
            self._known = {id: row for row, id in enumerate(self.ids.tolist())}
        known, unknown = self._known, len(self)
        return [known.get(id, unknown) for id in ids]


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
        >>> counter.most_frequent(1, min_count=1)
        array([7])
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        self._capacity = capacity
        self._forgotten: DistinctCounter | None = None
        self._history = new_history(1)
        self._nobody = new_id_map(1)
        self._totals = torch.zeros(3, dtype=torch.int64)

    def __len__(self) -> int:
        """Return how many ids have a count."""
        return int(self._history.size)

    def update(self, ids: Array) -> None:
        """Count int64 ids."""
        self._history = reserve(self._history, len(ids), limit=self._capacity + len(ids))
        count_ids(self._nobody, self._history, tensor_of(ids), 0, self._totals)
        if len(self) > self._capacity:
            self._forget()

    def _forget(self) -> None:
        """Forget the rarer half, but not that these ids were there."""
        history, kept = self._history, self._order()[: self._capacity // 2]
        self._forgotten = self._forgotten or DistinctCounter()
        self._forgotten.update(history.ids[: len(self)].numpy())
        self._history = restore_history(history.ids[kept], history.counts[kept], history.last[kept])

    def estimate(self) -> int:
        """Return the number of distinct ids; an estimate if some were forgotten."""
        if self._forgotten is None:
            return len(self)
        self._forgotten.update(self._history.ids[: len(self)].numpy())
        return self._forgotten.estimate()

    def most_frequent(self, number: int | None, min_count: int) -> Array:
        """Return ids by falling frequency (ids of the same frequency: rising), no more than asked."""
        order = self._order()
        order = order[self._history.counts[order] >= min_count]
        ids: Array = self._history.ids[order[:number]].numpy()
        return ids

    def _order(self) -> torch.Tensor:
        ids, counts = self._history.ids[: len(self)], self._history.counts[: len(self)]
        by_id = ids.argsort()
        return by_id[counts[by_id].argsort(descending=True, stable=True)]
