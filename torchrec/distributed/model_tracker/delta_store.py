"""Rows that were looked up, batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.distributed.model_tracker.types import IndexedLookup, UniqueRows, UpdateMode

__all__ = ["DeltaStore", "DeltaStoreTrec"]


class DeltaStore(ABC):
    """Keeps rows that were looked up, by table.

    Args:
        updateMode: which state is kept of a row that was looked up more than once. Default: none.
    """

    def __init__(self, updateMode: UpdateMode = UpdateMode.NONE) -> None:
        self.updateMode = updateMode

    @abstractmethod
    def append(
        self,
        batch_idx: int,
        fqn: str,
        ids: Tensor,
        states: Tensor | None = None,
        raw_ids: Tensor | None = None,
        runtime_meta: Tensor | None = None,
    ) -> None:
        """Keep rows of a table; batches come in order."""

    @abstractmethod
    def delete(self, up_to_idx: int | None = None) -> None:
        """Forget batches before one. Default: all."""

    @abstractmethod
    def compact(self, start_idx: int, end_idx: int) -> None:
        """Keep each row of some batches once."""

    @abstractmethod
    def get_unique(self, from_idx: int = 0) -> dict[str, UniqueRows]:
        """Return the rows of each table from a batch on, each once."""


class DeltaStoreTrec(DeltaStore):
    """Keeps rows that were looked up in memory.

    Example:
        >>> store = DeltaStoreTrec()
        >>> store.append(0, "user", torch.tensor([7, 2, 7]))
        >>> store.append(1, "user", torch.tensor([2, 5]))
        >>> store.get_unique()["user"].ids, store.get_unique(from_idx=1)["user"].ids
        (tensor([2, 5, 7]), tensor([2, 5]))
    """

    def __init__(self, updateMode: UpdateMode = UpdateMode.NONE) -> None:
        super().__init__(updateMode)
        self._lookups: dict[str, list[IndexedLookup]] = {}

    def append(
        self,
        batch_idx: int,
        fqn: str,
        ids: Tensor,
        states: Tensor | None = None,
        raw_ids: Tensor | None = None,
        runtime_meta: Tensor | None = None,
    ) -> None:
        """Keep rows of a table; batches come in order.

        Args:
            batch_idx: number of the batch.
            fqn: of the table.
            ids: the rows, int64 ``(N,)``.
            states: of each, where they are kept.
            raw_ids: not supported; must be None.
            runtime_meta: not supported; must be None.

        Raises:
            ValueError: for states where none are kept, or none where they are.
        """
        if raw_ids is not None or runtime_meta is not None:
            raise ValueError("`raw_ids` and `runtime_meta` should be None. Received some.")
        if (states is None) != (self.updateMode is UpdateMode.NONE):
            raise ValueError(
                f"`states` should be given where the store keeps some, which says {self.updateMode}. "
                f"Received {'none' if states is None else 'some'}."
            )
        self._lookups.setdefault(fqn, []).append(IndexedLookup(batch_idx, ids, states))

    def delete(self, up_to_idx: int | None = None) -> None:
        """Forget batches before one.

        Args:
            up_to_idx: the first that stays. Default: all are forgotten.
        """
        self._lookups = {
            fqn: [each for each in lookups if up_to_idx is not None and each.batch_idx >= up_to_idx]
            for fqn, lookups in self._lookups.items()
        }

    def compact(self, start_idx: int, end_idx: int) -> None:
        """Keep each row of some batches once, as of the first of them.

        Args:
            start_idx: the first.
            end_idx: the one behind the last.
        """
        for fqn, lookups in self._lookups.items():
            chosen = [each for each in lookups if start_idx <= each.batch_idx < end_idx]
            if len(chosen) < 2 and all(each.compact for each in chosen):
                continue
            rows = self._unique(chosen)
            before = [each for each in lookups if each.batch_idx < start_idx]
            after = [each for each in lookups if each.batch_idx >= end_idx]
            one = IndexedLookup(start_idx, rows.ids, rows.states, compact=True)
            self._lookups[fqn] = [*before, one, *after]

    def get_indexed_lookups(self, start_idx: int, end_idx: int) -> dict[str, list[IndexedLookup]]:
        """Return what is kept of some batches, by table.

        Args:
            start_idx: the first.
            end_idx: the one behind the last.
        """
        return {
            fqn: [each for each in lookups if start_idx <= each.batch_idx < end_idx]
            for fqn, lookups in self._lookups.items()
        }

    def get_unique(self, from_idx: int = 0) -> dict[str, UniqueRows]:
        """Return the rows of each table that has some from a batch on, each once, in their order.

        Args:
            from_idx: the batch.
        """
        chosen = {
            fqn: [each for each in lookups if each.batch_idx >= from_idx]
            for fqn, lookups in self._lookups.items()
        }
        return {fqn: self._unique(lookups) for fqn, lookups in chosen.items() if lookups}

    def _unique(self, lookups: Sequence[IndexedLookup]) -> UniqueRows:
        ids, inverse = torch.cat([each.ids for each in lookups]).unique(return_inverse=True)
        if self.updateMode is UpdateMode.NONE:
            return UniqueRows(ids, None)
        states = torch.cat([each.states for each in lookups if each.states is not None])
        at, reduce = torch.arange(len(inverse)), "amin"
        if self.updateMode is UpdateMode.LAST:
            reduce = "amax"
        chosen = torch.empty_like(ids).scatter_reduce(0, inverse, at, reduce, include_self=False)
        return UniqueRows(ids, states[chosen])
