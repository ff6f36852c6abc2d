"""Rows whose ids a policy of the user's chooses, through the metadata contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.modules.collision.policies import MCHEvictionPolicy
from torchrec.modules.collision.rows import MappedRows
from torchrec.ops.collision import erase_rows, find_ids, insert_ids


class PolicyRows(MappedRows):
    """Rows whose ids `MCHEvictionPolicy.update_metadata_and_generate_eviction_scores` chooses.

    Every occurrence since the last eviction is kept, with what the policy recorded of it.

    Args:
        size: rows that ids can hold.
        policy: any policy.
        device: of all tensors.
        name: of the map, for messages.
    """

    def __init__(
        self, size: int, policy: MCHEvictionPolicy, device: torch.device, name: str
    ) -> None:
        super().__init__(size, policy, device, name)
        self._recorded_names = [
            info.metadata_name for info in policy.metadata_info if info.is_history_metadata
        ]
        self._occurrences: list[dict[str, Tensor]] = []

    def learn(
        self, ids: Tensor, now: int, missing: int, exchanges: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Look up a training batch, record its ids, and have the policy choose; see `MappedRows`."""
        recorded = {name: torch.zeros_like(ids) for name in self._recorded_names}
        self.policy.record_history_metadata(now, ids, recorded)
        self._occurrences.append({"ids": ids.clone(), **recorded})
        rows = self.look_up(ids, missing)  # which counts those that had a row before
        if not exchanges:
            return rows, None
        changed = self._evict(now)
        return self.find(ids, missing), changed

    def _evict(self, now: int) -> Tensor:
        came = self.history()
        self._occurrences = []
        ids, counts, rows, inverse = self._distinct(came.pop("ids"))
        mask = self.admission(counts)
        if mask is not None:
            mask |= rows >= 0
        coalesced = self.policy.coalesce_history_metadata(
            now, came, counts, inverse, threshold_mask=mask
        )
        rejected = 0
        if mask is not None:
            rejected = ids.numel() - int(mask.sum())
            ids, counts, rows = ids[mask], counts[mask], rows[mask]
        order = counts.argsort(descending=True, stable=True)
        ids, counts, rows = ids[order], counts[order], rows[order]
        have_row = rows >= 0
        last = torch.iinfo(torch.int64).max  # of the row behind the others, which stays
        metadata = {
            name: torch.cat([kept, kept.new_full((1,), last)])
            for name, kept in self.metadata.items()
        }
        evicted, chosen = self.policy.update_metadata_and_generate_eviction_scores(
            now, self.size + 1, order, counts, have_row, rows[have_row], metadata, coalesced
        )
        candidates = ids[~have_row]
        self._check("rows to evict", evicted, self.size)
        self._check("ids to give rows to", chosen, candidates.numel())
        if evicted.shape != chosen.shape:
            raise self._misfit(f"{evicted.numel()} rows and {chosen.numel()} ids, as many of each")
        for name, kept in self.metadata.items():
            kept.copy_(metadata[name][: self.size])
        taken = evicted[self.occupied[evicted]]
        erase_rows(self.id_map, taken)
        insert_ids(self.id_map, candidates[chosen], evicted)
        counters = self.counters
        counters.inserted += evicted.numel()
        counters.evicted += taken.numel()
        counters.admitted += candidates.numel()
        counters.rejected += rejected
        return evicted

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return distinct ids, their counts and rows (-1: none), and which one each occurrence is.

        First those that hold a row, by row, then the others, by their first appearance: the order in
        which `ScoredRows` has them.
        """
        distinct, inverse, counts = ids.unique(return_inverse=True, return_counts=True)
        rows = find_ids(self.id_map, distinct)
        first = torch.full_like(distinct, ids.numel())
        places = torch.arange(ids.numel(), device=ids.device)
        first.scatter_reduce_(0, inverse, places, "amin")
        order = torch.where(rows >= 0, rows - self.size, first).argsort()
        return distinct[order], counts[order], rows[order], order.argsort()[inverse]

    def _check(self, what: str, numbers: Tensor, end: int) -> None:
        if numbers.dtype != torch.int64 or numbers.dim() != 1:
            raise self._misfit(f"{what} of dtype {numbers.dtype} and shape {tuple(numbers.shape)}")
        outside = (numbers < 0) | (numbers >= end)
        if bool(outside.any()):
            raise self._misfit(f"{int(numbers[outside][0])} among {what}, of which there are {end}")
        if numbers.unique().numel() != numbers.numel():
            raise self._misfit(f"{what} of which some come twice")

    def _misfit(self, received: str) -> ValueError:
        return ValueError(
            f"`update_metadata_and_generate_eviction_scores` of {type(self.policy).__name__} of map "
            f"'{self.name}' should return int64 (N,) rows in [0, {self.size}), distinct, and as many "
            f"distinct positions among the ids without a row. Received {received}."
        )

    def history(self) -> dict[str, Tensor]:
        """Return every occurrence and what was recorded of it; see `MappedRows`."""
        names = ["ids", *self._recorded_names]
        none = torch.empty(0, dtype=torch.int64, device=self.ids.device)
        return {
            name: torch.cat([none, *[part[name] for part in self._occurrences]]) for name in names
        }

    def restore_history(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `history` returned; see `MappedRows`."""
        device = self.ids.device
        self._occurrences = [{k: v.to(device) for k, v in saved.items()}] if "ids" in saved else []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._occurrences = [
            {name: fn(value) for name, value in part.items()} for part in self._occurrences
        ]
        return self
