"""The rows of a map and the ids that hold them: counting, evictions, what is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.modules.collision.divided_state import waiting_only
from torchrec.modules.collision.policies import MCHEvictionPolicy
from torchrec.modules.collision.stats import Counters, ManagedCollisionStats
from torchrec.ops.collision import (
    IdMap,
    find_ids,
    insert_ids,
    new_id_map,
    rebuild_index,
)

LAST = "last_access_iter"
COUNTS = "counts"


class MappedRows(nn.Module, ABC):
    """Which id holds which row, and what a policy knows of each.

    What is saved is by row: ``ids``, ``occupied`` and the metadata of the policy; and the ids that
    came since the last eviction, so that a run that is resumed in between goes on as if it had not
    stopped. The index from id to row follows from these and is made anew.

    Args:
        size: rows that ids can hold.
        policy: decides which ids hold them.
        device: of all tensors.
        name: of the map, for messages.
    """

    ids: Tensor
    occupied: Tensor
    entries: Tensor

    def __init__(
        self, size: int, policy: MCHEvictionPolicy, device: torch.device, name: str
    ) -> None:
        super().__init__()
        self.policy = policy
        self.name = name
        self.counters = Counters()
        id_map = new_id_map(size, device)
        self.register_buffer("ids", id_map.ids)
        self.register_buffer("occupied", id_map.occupied)
        self.register_buffer("entries", id_map.entries, persistent=False)
        self.metadata_names = [i.metadata_name for i in policy.metadata_info if i.is_mch_metadata]
        for metadata in self.metadata_names:
            if hasattr(self, metadata):
                raise ValueError(
                    f"`metadata_name` of {type(policy).__name__} of map '{name}' should be another: "
                    f"'{metadata}' is taken."
                )
            self.register_buffer(metadata, torch.zeros(size, dtype=torch.int64, device=device))

    @property
    def size(self) -> int:
        """Rows that ids can hold."""
        return self.ids.numel()

    @property
    def id_map(self) -> IdMap:
        """The map, as the operators take it."""
        # Asked directly: a module looks for attributes everywhere else before.
        buffers = self._buffers
        return IdMap(buffers["ids"], buffers["occupied"], buffers["entries"])  # type: ignore[arg-type]

    @property
    def metadata(self) -> dict[str, Tensor]:
        """Name -> what the policy keeps of each row."""
        return {name: self._buffers[name] for name in self.metadata_names}  # type: ignore[misc]

    @abstractmethod
    def learn(
        self, ids: Tensor, now: int, missing: int, exchanges: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Look up a training batch, remember that its ids came, and exchange ids if it is time.

        Then the policy gives rows to the ids that it chooses, and what came since the last time is forgotten.

        Args:
            ids: int64 ``(N,)``.
            now: number of the batch, from 1.
            missing: what stands for an id without a row.
            exchanges: whether it is time.

        Returns:
            Rows, int64 ``(N,)``, as they are after the exchange; and those that another id holds now, int64, None
            if it was not time.
        """

    def clear(self) -> None:
        """Free all rows, and forget everything: as at the start."""
        for buffer in self.buffers():
            buffer.zero_()
        self.counters = Counters()
        self.restore_history({})

    @abstractmethod
    def history(self) -> dict[str, Tensor]:
        """Return what came since the last eviction, to be saved; the same length each."""

    @abstractmethod
    def restore_history(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `history` returned. What is not there is as at the start."""

    def admission(self, counts: Tensor) -> Tensor | None:
        """Ask the policy's filter which ids may have a row; None: it has no filter.

        Args:
            counts: how often each id came since the last eviction.

        Raises:
            ValueError: if it returns no mask.
        """
        function = self.policy.threshold_filtering_func
        if function is None:
            return None
        mask, _ = function(counts)
        if mask.dtype != torch.bool or mask.shape != counts.shape:
            raise ValueError(
                f"`threshold_filtering_func` of map '{self.name}' should return a bool mask of shape "
                f"{tuple(counts.shape)}. Received {mask.dtype} of shape {tuple(mask.shape)}."
            )
        return mask

    def find(self, ids: Tensor, missing: int) -> Tensor:
        """Look up the rows of ids; nothing changes.

        Args:
            ids: int64 ``(N,)``.
            missing: what stands for an id without a row.
        """
        return find_ids(self.id_map, ids, missing)

    def look_up(self, ids: Tensor, missing: int) -> Tensor:
        """Look up the rows of ids, and count how many had one."""
        rows = self.find(ids, missing)
        if is_compiling():  # a program that was exported keeps no counts
            return rows
        self.counters.ids += rows.numel()
        self.counters.hits += int((rows != missing).sum())
        return rows

    def stats(self, reset: bool) -> ManagedCollisionStats:
        """Return how full the map is, and what it did since it was last asked with ``reset``."""
        numbers = vars(self.counters)
        if reset:
            self.counters = Counters()
        return ManagedCollisionStats(self.size, int(self.occupied.count_nonzero()), **numbers)

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the rows that are held, ascending, and their ids."""
        rows = self.occupied.nonzero().squeeze(1)
        return rows, self.ids[rows]

    def give(self, ids: Tensor, now: int) -> Tensor:
        """Give free rows to ids that have none, as if each had come once; return these rows.

        Args:
            ids: distinct.
            now: number of the last batch.
        """
        rows = (~self.occupied).nonzero().squeeze(1)[: ids.numel()]
        insert_ids(self.id_map, ids, rows)
        for name, kept in self.metadata.items():
            kept[rows] = max(now, 1) if name == LAST else 1
        self.counters.inserted += rows.numel()
        return rows

    def ranking(self, metadata: Mapping[str, Tensor], now: int) -> Tensor:
        """Return scores of ids by which a smaller map chooses among them.

        Those of the policy if it is built in; else how often an id came, or when it came last, or
        nothing, as far as these are kept.
        """
        scores = getattr(self.policy, "scores", None)
        if scores is not None:
            found: Tensor = scores(now, metadata)
            return found
        for name in (COUNTS, LAST):
            if name in metadata:
                return metadata[name]
        return torch.zeros_like(next(iter(metadata.values())))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        was_meta = self.ids.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.ids.is_meta:
            self.clear()  # `to_empty` left the memory as it was
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.history().items():
            destination[f"{prefix}history_{name}"] = value

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = f"{prefix}history_"
        keys = [key for key in state_dict if key.startswith(start)]
        saved = {key[len(start) :]: state_dict.pop(key) for key in keys}
        saved = waiting_only(saved, "ids")
        expected = self.history()
        if saved and saved.keys() != expected.keys():
            error_msgs.append(
                f"{prefix}history should hold {list(expected)}. Received {list(saved)}, of another "
                "policy."
            )
            saved = {}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self._non_persistent_buffers_set:
            buffer = self.get_buffer(name)
            if buffer.device != self.ids.device:  # the state's tensors were assigned to a meta map
                setattr(self, name, torch.zeros_like(buffer, device=self.ids.device))
        self.restore_history(saved)
        try:
            rebuild_index(self.id_map)
        except ValueError as error:
            error_msgs.append(f"{prefix}ids: {error}")
