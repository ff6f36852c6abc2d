"""Sums over the last batches, exact at any time and in a constant number of steps a batch."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

MAX_BATCHES = 1000


class SlidingSum:
    """The sum of what the last batches added.

    Nothing is ever subtracted: sums do not drift, and a NaN leaves with its batch. A queue of two stacks
    instead: ``_before`` holds, for each of the older batches, the sum from it to the last of the older
    ones, and ``_since`` the sum of the newer ones. When the older ones are used up, one cumulative sum
    makes the newer ones the older.

    Args:
        max_size: how many samples fit; the oldest batches leave when there are more.
        max_batches: how many batches fit. Default: 1000.

    Example:
        >>> sums = SlidingSum(max_size=4)
        >>> for value in (1.0, 2.0, 4.0):
        ...     sums.append(torch.tensor([value]), size=2)
        >>> sums.total()
        tensor([6.])
    """

    def __init__(self, max_size: int, max_batches: int = MAX_BATCHES) -> None:
        self._max_size = max_size
        self._max_batches = max_batches
        self.clear()

    def clear(self) -> None:
        """Forget all batches."""
        self._rows: deque[Tensor] = deque()
        self._sizes: deque[int] = deque()
        self._size = 0
        # Row i is of the older batches from the i-th on; as many as `_dropped` are gone.
        self._before: Tensor | None = None
        self._dropped = 0
        self._since: Tensor | None = None

    @property
    def rows(self) -> list[Tensor]:
        """What each batch in the window added, the oldest first."""
        return list(self._rows)

    @property
    def sizes(self) -> list[int]:
        """How many samples each batch in the window has."""
        return list(self._sizes)

    def append(self, row: Tensor, size: int) -> None:
        """Add a batch, and drop the oldest ones that no longer fit.

        Args:
            row: what it adds; kept, so it should not be written to afterwards.
            size: how many samples it has.
        """
        self._rows.append(row)
        self._sizes.append(size)
        self._size += size
        self._since = row.clone() if self._since is None else self._since.add_(row)
        while self._size > self._max_size or len(self._rows) > self._max_batches:
            self._drop_oldest()

    def total(self) -> Tensor | None:
        """Return the sum, a tensor of its own; None if there is no batch."""
        before = None if self._before is None else self._before[self._dropped]
        if self._since is None:
            return None if before is None else before.clone()
        return self._since.clone() if before is None else self._since + before

    def _drop_oldest(self) -> None:
        if self._before is None:
            newest_first = torch.stack(tuple(self._rows)).flip(0).cumsum(0)
            self._before, self._since = newest_first.flip(0), None
        self._dropped += 1
        if self._dropped == len(self._before):
            self._before, self._dropped = None, 0
        self._rows.popleft()
        self._size -= self._sizes.popleft()
