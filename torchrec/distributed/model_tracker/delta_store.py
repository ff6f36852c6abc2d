"""Rows that were looked up, batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

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
            raw_ids: the ids that a map gave these rows to, int64 ``(N,)``. Of a row that is looked up more than once,
                that of the last time is told, whatever `updateMode` says of states. Default: not known.
            runtime_meta: what a map keeps of each of these ids, ``(N, M)``, of one size and dtype a table; told as
                `raw_ids` are. Default: nothing.

        Raises:
            ValueError: for states where none are kept, or none where they are, and for values of another number of
                rows.
        """
        beside = {"states": states, "raw_ids": raw_ids, "runtime_meta": runtime_meta}
        for name, value in beside.items():
            if value is not None and len(value) != len(ids):
                raise ValueError(
                    f"`{name}` should have a value for each of the {len(ids)} rows of table '{fqn}'. Received "
                    f"{len(value)}."
                )
        if (states is None) != (self.updateMode is UpdateMode.NONE):
            raise ValueError(
                f"`states` should be given where the store keeps some, which says {self.updateMode}. "
                f"Received {'none' if states is None else 'some'}."
            )
        self._lookups.setdefault(fqn, []).append(
            IndexedLookup(batch_idx, ids, states, raw_ids=raw_ids, runtime_meta=runtime_meta)
        )

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
            one = IndexedLookup(
                start_idx, rows.ids, rows.states, True, rows.raw_ids, rows.runtime_meta
            )
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
        found = UniqueRows(
            ids,
            None,
            _latest(
                [each.ids for each in lookups], [each.raw_ids for each in lookups], inverse, ids, -1
            ),
            _latest(
                [each.ids for each in lookups],
                [each.runtime_meta for each in lookups],
                inverse,
                ids,
                0,
            ),
        )
        if self.updateMode is UpdateMode.NONE:
            return found
        states = torch.cat([each.states for each in lookups if each.states is not None])
        at, reduce = torch.arange(len(inverse)), "amin"
        if self.updateMode is UpdateMode.LAST:
            reduce = "amax"
        chosen = torch.empty_like(ids).scatter_reduce(0, inverse, at, reduce, include_self=False)
        return replace(found, states=states[chosen])


def _latest(
    ids: Sequence[Tensor],
    values: Sequence[Tensor | None],
    inverse: Tensor,
    unique: Tensor,
    missing: int,
) -> Tensor | None:
    """Return the last value of each row that has been given one, and another for rows that have none.

    Args:
        ids: rows of each look-up.
        values: of each of them; None: none were given.
        inverse: where rows of all look-ups are among the distinct ones.
        unique: these.
        missing: what is returned for rows without values.
    """
    like = next((value for value in values if value is not None), None)
    if like is None:
        return None
    given = [
        like.new_full((len(rows), *like.shape[1:]), missing) if value is None else value
        for rows, value in zip(ids, values, strict=True)
    ]
    # Before all others, the value for rows that have none.
    every = torch.cat([like.new_full((1, *like.shape[1:]), missing), *given])
    places = torch.cat(
        [
            torch.full_like(rows, int(value is not None))
            for rows, value in zip(ids, values, strict=True)
        ]
    )
    places *= torch.arange(1, len(places) + 1)
    chosen = torch.zeros_like(unique).scatter_reduce(0, inverse, places, "amax")
    return every[chosen]
