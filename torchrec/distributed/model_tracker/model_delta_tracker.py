"""Tells which rows of a sharded model were looked up since somebody last asked: what a server has to be sent anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor, nn

from torchrec.distributed.collection import ShardedTableCollection, append_prefix
from torchrec.distributed.model_tracker.delta_store import DeltaStoreTrec
from torchrec.distributed.model_tracker.types import TrackingMode, UniqueRows, UpdateMode

__all__ = ["ModelDeltaTracker", "ModelDeltaTrackerTrec"]

_ONLY = "default"  # the consumer, where none is named


class ModelDeltaTracker(ABC):
    """Tells which rows of tables were looked up since somebody last asked."""

    @abstractmethod
    def step(self) -> None:
        """Count a batch."""

    @abstractmethod
    def get_unique_ids(self, consumer: str | None = None) -> dict[str, Tensor]:
        """Return the rows of each table that are new to a consumer."""

    @abstractmethod
    def get_unique(
        self,
        consumer: str | None = None,
        top_percentage: float | None = 1.0,
        per_table_percentage: Mapping[str, tuple[float, str]] | None = None,
        sorted_by_indices: bool | None = True,
    ) -> dict[str, UniqueRows]:
        """Return the rows of each table that are new to a consumer, with their states."""

    @abstractmethod
    def clear(self, consumer: str | None = None) -> None:
        """Forget what a consumer has not been told."""


class ModelDeltaTrackerTrec(ModelDeltaTracker):
    """Tells which rows of sharded tables were looked up since somebody last asked, in evaluation too.

    Each rank tells of the rows that it has, looked up for the batches of all ranks, by their numbers in the whole
    table; of copies, of those that its own batches have. The ranks together tell what one process would. Of a table
    whose columns are divided, all ranks with some of a row tell of it.

    Args:
        model: whose sharded collections (`EmbeddingBagCollection`, `EmbeddingCollection`) are tracked.
        consumers: see `DeltaTrackerConfig`, as the others.
        delete_on_read: see there.
        auto_compact: see there.
        mode: see there.
        fqns_to_skip: see there.

    Raises:
        ValueError: for a mode that is not supported, or a path of nothing that would be tracked.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.distributed import DistributedModelParallel
        >>> from torchrec.distributed.model_tracker import DeltaTrackerConfig
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"])
        >>> model = DistributedModelParallel(EmbeddingBagCollection([table], device="meta"))
        >>> tracker = model.init_torchrec_delta_tracker(DeltaTrackerConfig())
        >>> _ = model(KeyedJaggedTensor.from_lists({"f": [[7, 1], [7]]}))
        >>> tracker.get_unique_ids(), tracker.get_unique_ids()
        ({'embedding_bags.t': tensor([1, 7])}, {})
    """

    def __init__(
        self,
        model: nn.Module,
        consumers: list[str] | None = None,
        delete_on_read: bool = True,
        auto_compact: bool = False,
        mode: TrackingMode = TrackingMode.ID_ONLY,
        fqns_to_skip: Iterable[str] = (),
    ) -> None:
        if mode not in (TrackingMode.ID_ONLY, TrackingMode.EMBEDDING):
            raise ValueError(
                f"`mode` should be ID_ONLY or EMBEDDING: states are in `fused_optimizer`. Received {mode}."
            )
        self._mode, self._delete_on_read, self._auto_compact = mode, delete_on_read, auto_compact
        keeps = UpdateMode.FIRST if mode is TrackingMode.EMBEDDING else UpdateMode.NONE
        self._store, self._batch = DeltaStoreTrec(keeps), 0
        self._next = dict.fromkeys(consumers or [_ONLY], 0)
        found = {
            path: child
            for path, child in model.named_modules()
            if isinstance(child, ShardedTableCollection)
        }
        self._features: dict[str, list[str]] = {}
        unmatched = set(fqns_to_skip)
        for path, child in found.items():
            observed = dict[str, str]()
            for config in child.tables.configs:
                fqn = append_prefix(path, f"{child.tables.prefix}.{config.name}")
                if unmatched_here := {fqn, path} & set(fqns_to_skip):
                    unmatched -= unmatched_here
                    continue
                observed[config.name] = fqn
                self._features[fqn] = list(config.feature_names)
            child.observe_lookups(partial(self._record, child, observed) if observed else None)
        if unmatched:
            raise ValueError(
                "`fqns_to_skip` should be paths of sharded tables or of their modules. "
                f"Received '{min(unmatched)}'."
            )
        self._modules: dict[str, nn.Module] = dict(found)

    def _record(
        self,
        collection: ShardedTableCollection,
        observed: Mapping[str, str],
        table: str,
        rows: Tensor,
    ) -> None:
        fqn = observed.get(table)
        if fqn is None or not len(rows):
            return
        if self._mode is TrackingMode.EMBEDDING:
            rows = rows.unique()
            self._store.append(self._batch, fqn, rows, collection.tables.rows_of(table, rows))
        else:
            self._store.append(self._batch, fqn, rows)

    def step(self) -> None:
        """Count a batch, and put those that nobody has been told of together, if that was asked for."""
        self._batch += 1
        if self._auto_compact:
            self.trigger_compaction()

    def trigger_compaction(self) -> None:
        """Keep each row once of the batches that no consumer has been told of."""
        self._store.compact(max(self._next.values()), self._batch + 1)

    def compact(self, start_idx: int, end_idx: int) -> None:
        """Keep each row of some batches once.

        Args:
            start_idx: the first.
            end_idx: the one behind the last.
        """
        self._store.compact(start_idx, end_idx)

    def get_unique_ids(self, consumer: str | None = None) -> dict[str, Tensor]:
        """Return the rows of each table that are new to a consumer, by path of the table, int64, in their order.

        Args:
            consumer: who asks. Default: the only one there is.
        """
        return {fqn: rows.ids for fqn, rows in self.get_unique(consumer).items()}

    def get_unique(
        self,
        consumer: str | None = None,
        top_percentage: float | None = 1.0,
        per_table_percentage: Mapping[str, tuple[float, str]] | None = None,
        sorted_by_indices: bool | None = True,
    ) -> dict[str, UniqueRows]:
        """Return the rows of each table that are new to a consumer, with their states, where these are kept.

        Args:
            consumer: who asks. Default: the only one there is.
            top_percentage: not supported; must be 1.
            per_table_percentage: not supported; must be None.
            sorted_by_indices: rows come in their order either way.

        Raises:
            ValueError: for another consumer than those that were named, or a part of the rows.
        """
        if top_percentage not in (None, 1.0) or per_table_percentage is not None:
            raise ValueError(
                "All rows should be asked for: `top_percentage` 1, no `per_table_percentage`. "
                f"Received {top_percentage} and {per_table_percentage}."
            )
        name = self._named(consumer)
        found = self._store.get_unique(self._next[name])
        self._told(name)
        return found

    def clear(self, consumer: str | None = None) -> None:
        """Forget what a consumer has not been told.

        Args:
            consumer: whose. Default: that of all.
        """
        for name in self._next if consumer is None else [self._named(consumer)]:
            self._told(name)

    def fqn_to_feature_names(self) -> dict[str, list[str]]:
        """Return the features of each table, by its path."""
        return self._features

    def get_tracked_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose tables are tracked, by path."""
        return self._modules

    def _named(self, consumer: str | None) -> str:
        name = next(iter(self._next)) if consumer is None and len(self._next) == 1 else consumer
        if name not in self._next:
            raise ValueError(
                f"`consumer` should be one of {list(self._next)}. Received {consumer!r}."
            )
        return name

    def _told(self, consumer: str) -> None:
        """Have what is looked up from now on be new to a consumer."""
        self._batch += 1
        self._next[consumer] = self._batch
        if self._delete_on_read:
            self._store.delete(min(self._next.values()))
