"""Rows whose ids a built-in policy chooses: counted and exchanged by operators, in one pass each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.modules.collision.policies import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
)
from torchrec.modules.collision.rows import COUNTS, LAST, MappedRows
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.ops.collision import (
    History,
    IdMap,
    count_ids,
    counted_in,
    exchange_ids,
    new_history,
    reserve,
    restore_history,
)

_HISTORY = [f"_history_{name}" for name in History._fields]  # names of buffers

ScoredPolicy = LFU_EvictionPolicy | LRU_EvictionPolicy | DistanceLFU_EvictionPolicy


class ScoredRows(MappedRows):
    """Rows that the ids with the highest scores hold.

    An id that holds a row is counted there, any other in the history. With an admission filter, the
    rows also count since the last eviction (``recent``), as the filter looks at all ids that came.

    Args:
        size: rows that ids can hold.
        policy: one of the built-in ones.
        device: of all tensors.
        name: of the map, for messages.
    """

    policy: ScoredPolicy
    recent: Tensor | None
    _totals: Tensor

    def __init__(self, size: int, policy: ScoredPolicy, device: torch.device, name: str) -> None:
        super().__init__(size, policy, device, name)
        filtered = policy.threshold_filtering_func is not None
        recent = torch.zeros(size, dtype=torch.int64, device=device) if filtered else None
        self.register_buffer("recent", recent)
        self.register_buffer(
            "_totals", torch.zeros(3, dtype=torch.int64, device=device), persistent=False
        )
        self._set_history(new_history(1, device))

    def _set_history(self, history: History) -> None:
        for name, tensor in zip(_HISTORY, history, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def _history(self) -> History:
        # The buffers are asked each time: moving or loading a module may put others in their place.
        return History(*map(self._buffers.__getitem__, _HISTORY))  # type: ignore[arg-type]

    def learn(
        self, ids: Tensor, now: int, missing: int, exchanges: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Count the ids of a batch, and let those that came compete for rows; see `MappedRows`."""
        find: Any = self._buffers.get  # None for what the policy does not keep
        id_map, known, recent = IdMap(*map(find, IdMap._fields)), self._history, self.recent
        history = reserve(known, ids.numel())
        if history is not known:
            self._set_history(history)
        counts, last = find(COUNTS), find(LAST)
        rows = count_ids(
            id_map,
            history,
            ids,
            now,
            self._totals,
            counts=counts if recent is None else recent,
            last=last,
            missing=missing,
        )
        if not exchanges:
            return rows, None
        came, scores = counted_in(history), self.policy.scores
        admitted = None if recent is None else self._admitted(came.counts, recent)
        exchanged = exchange_ids(
            id_map,
            history,
            scores(now, {COUNTS: counts, LAST: last}),
            scores(now, {COUNTS: came.counts, LAST: came.last}),
            ids,
            rows,
            counts=counts,
            last=last,
            admitted=admitted,
            missing=missing,
        )
        candidates = came.ids.numel() if admitted is None else int(admitted.count_nonzero())
        counters = self.counters
        counters.inserted += exchanged.rows.numel()
        counters.evicted += exchanged.evicted
        counters.admitted += candidates
        counters.rejected += came.ids.numel() - candidates
        return rows, exchanged.rows

    def _admitted(self, counts: Tensor, recent: Tensor) -> Tensor:
        """Ask the filter which of the ids without a row may have one, and start to count anew."""
        with_row = recent[recent > 0]
        mask = self.admission(torch.cat([with_row, counts]))
        assert mask is not None
        if COUNTS in self.metadata_names:
            self.metadata[COUNTS].add_(recent)
        recent.zero_()
        return mask[with_row.numel() :]

    def give(self, ids: Tensor, now: int) -> Tensor:
        """Give free rows to ids, which from now on are counted there; see `MappedRows`."""
        rows = super().give(ids, now)
        came = self.history()
        moves = torch.isin(came["ids"], ids)
        to = self.find(came["ids"][moves], -1)
        if COUNTS in self.metadata_names or self.recent is not None:
            kept = self.metadata[COUNTS] if self.recent is None else self.recent
            kept[to] += came[COUNTS][moves]
        self.restore_history({name: value[~moves] for name, value in came.items()})
        return rows

    def stats(self, reset: bool) -> ManagedCollisionStats:
        """Return what the operators counted, too; see `MappedRows`."""
        hits, misses, _ = self._totals.tolist()
        self._totals.zero_()
        self.counters.ids += hits + misses
        self.counters.hits += hits
        return super().stats(reset)

    def history(self) -> dict[str, Tensor]:
        """Return the ids without a row that came, how often, and when last; see `MappedRows`."""
        history = self._history
        came = 0 if history.size.is_meta else int(history.size)
        return {
            "ids": history.ids[:came],
            COUNTS: history.counts[:came],
            LAST: history.last[:came],
        }

    def restore_history(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `history` returned; see `MappedRows`."""
        device = self.ids.device
        if "ids" not in saved:
            self._set_history(new_history(1, device))
            return
        parts = [saved[name].to(device) for name in ("ids", COUNTS, LAST)]
        self._set_history(restore_history(*parts))
