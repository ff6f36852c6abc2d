"""Tells which rows of a sharded model were looked up since somebody last asked: what a server has to be sent anew."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchrec.distributed.collection import ShardedTableCollection, append_prefix
from torchrec.distributed.mc_embedding_modules import (
    BaseShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.model_tracker.delta_store import DeltaStoreTrec
from torchrec.distributed.model_tracker.types import TrackingMode, UniqueRows, UpdateMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import OptimizerType

__all__ = ["ModelDeltaTracker", "ModelDeltaTrackerTrec"]

_TOP, _RANDOM = "top", "random"  # ways to choose a part of the rows
_ONLY = "default"  # the consumer, where none is named
_MOMENTUM: tuple[str, ...] = ("exp_avg", "momentum_buffer")
_ROW_STATES: tuple[str, ...] = ("sum",)  # of one number a row, of the rules that are tracked


class ModelDeltaTracker(ABC):
    """Tells which rows of tables were looked up since somebody last asked."""

    @abstractmethod
    def record_lookup(
        self,
        kjt: KeyedJaggedTensor,
        states: Tensor,
        emb_module: nn.Module | None = None,
        raw_ids: Tensor | None = None,
    ) -> None:
        """Take note of rows that a program has looked up."""

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


@dataclass
class _Observer:
    """Tells a tracker of the look-ups of one collection.

    Attributes:
        tracker: who is told.
        tables: path of each table that is tracked, by its name.
    """

    tracker: ModelDeltaTrackerTrec
    tables: dict[str, str]

    def looked_up(self, table: str, rows: Tensor) -> None:
        """Take note of rows that are looked up."""
        if table in self.tables and len(rows):
            self.tracker.record(self.tables[table], rows)

    def check_moves(self) -> None:
        """Refuse moves of tables of whose rows there are states that nobody has asked for."""
        self.tracker.check_told(self.tables.values())


class _Table(NamedTuple):
    """A table that is tracked.

    Attributes:
        collection: whose it is.
        name: of the table there.
        state: that is told, if one is.
        maps: that give ids its rows, if any do.
    """

    collection: ShardedTableCollection
    name: str
    state: str | None
    maps: BaseShardedManagedCollisionEmbeddingCollection | None

    def raw_ids(self, rows: Tensor) -> Tensor | None:
        """Return the ids that hold rows now, -1: none does; None: this rank has no map of the table."""
        found = None if self.maps is None else self.maps.held(self.name)
        if found is None:
            return None
        # Behind all others, a row that no table has.
        held, ids = (torch.cat([each.long(), each.new_full((1,), -1)]) for each in found)
        at = torch.searchsorted(held[:-1], rows)
        return torch.where(held[at] == rows, ids[at], -1)

    def values(self, rows: Tensor) -> Tensor:
        """Return what is told of rows, as it is now: ``(N, D)``, or ``(N,)`` of a state of one number a row."""
        values = self.collection.tables.rows_of(self.name, rows, self.state)
        return values.squeeze(1) if self.state in _ROW_STATES else values


class ModelDeltaTrackerTrec(ModelDeltaTracker):
    """Tells which rows of sharded tables were looked up since somebody last asked, in evaluation too.

    Each rank tells of the rows that it has, looked up for the batches of all ranks, by their numbers in the whole
    table; of copies, of those that its own batches have. The ranks together tell what one process would. Of a table
    whose columns are divided, all ranks with some of a row tell of it, each of its columns. Rows whose ids were evicted
    from a map count as looked up. Beside rows of a table with a map, the ranks that have it tell the ids that hold them
    by then. Rows that change otherwise do not count: an optimizer with ``lazy=False`` updates all.

    Batches are numbered from 0: calls of `step`, `get_unique`, `get_unique_ids` and `clear` begin the next one.

    Args:
        model: whose sharded collections (`EmbeddingBagCollection`, `EmbeddingCollection`) are tracked.
        consumers: see `DeltaTrackerConfig`, as the others.
        delete_on_read: see there.
        auto_compact: see there.
        mode: see there.
        fqns_to_skip: see there.

    Raises:
        ValueError: for a path of nothing that would be tracked, or a table without the state that the mode tells of.

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
        self._mode, self._delete_on_read, self._auto_compact = mode, delete_on_read, auto_compact
        # What changes with training is told by what it was at first.
        keeps_first = mode not in (TrackingMode.ID_ONLY, TrackingMode.MOMENTUM_LAST)
        self._store = DeltaStoreTrec(UpdateMode.FIRST if keeps_first else UpdateMode.NONE)
        self._generator = torch.Generator().manual_seed(
            0
        )  # of its own: what is trained draws from another
        self._batch, self._next = 0, dict.fromkeys(consumers or [_ONLY], 0)
        self._left: dict[str, dict[str, UniqueRows]] = {name: {} for name in self._next}
        found = {
            path: child
            for path, child in model.named_modules()
            if isinstance(child, ShardedTableCollection)
        }
        maps = {
            path: child
            for path, child in model.named_modules()
            if isinstance(child, BaseShardedManagedCollisionEmbeddingCollection)
        }
        self._features: dict[str, list[str]] = {}
        self._tables: dict[str, _Table] = {}
        unmatched, observers = set(fqns_to_skip), dict[str, _Observer]()
        for path, child in found.items():
            observed = observers.setdefault(path, _Observer(self, {})).tables
            for config in child.tables.configs:
                fqn = append_prefix(path, f"{child.tables.prefix}.{config.name}")
                if unmatched_here := {fqn, path} & set(fqns_to_skip):
                    unmatched -= unmatched_here
                    continue
                observed[config.name] = fqn
                self._features[fqn] = list(config.feature_names)
                state = _state_name(child, config.name, mode)
                around = maps.get(path.rpartition(".")[0])
                self._tables[fqn] = _Table(child, config.name, state, around)
        if unmatched:
            raise ValueError(
                "`fqns_to_skip` should be paths of sharded tables or of their modules. "
                f"Received '{min(unmatched)}'."
            )
        self._modules: dict[str, nn.Module] = dict(found)
        # Once all is known to be right: who was told before is told no more.
        for path, child in found.items():
            child.observe_lookups(observers[path] if observers[path].tables else None)

    def record(self, fqn: str, rows: Tensor) -> None:
        """Take note of rows of a table that this rank has, as they are looked up.

        Args:
            fqn: path of the table.
            rows: of the whole table, int64 ``(N,)``.
        """
        self._record(fqn, rows if self._store.updateMode is UpdateMode.NONE else rows.unique())

    def record_lookup(
        self,
        kjt: KeyedJaggedTensor,
        states: Tensor,
        emb_module: nn.Module | None = None,
        raw_ids: Tensor | None = None,
    ) -> None:
        """Take note of rows that a program has looked up otherwise than by calling a collection, or give ids to rows.

        Args:
            kjt: the rows, by features of the tables; each in the whole table, and this rank has it. Other features, and
                those of tables that are left out, are passed over.
            states: the weights of each of these rows before the update, ``(N, D)``, for tables of one dimension; told
                with ``EMBEDDING``. Other modes tell what this rank has.
            emb_module: only tables of this collection. Default: of all that have the features.
            raw_ids: the ids that a map gave these rows to, int64 ``(N,)``: told as `UniqueRows.raw_ids`. Default: not
                known.

        Raises:
            ValueError: for a row that this rank has nothing of, and ``states`` or ``raw_ids`` of another number.

        Example:
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
            >>> from torchrec.distributed import DistributedModelParallel
            >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"])
            >>> model = DistributedModelParallel(EmbeddingBagCollection([table], device="meta"))
            >>> tracker = ModelDeltaTrackerTrec(model.module)
            >>> rows = KeyedJaggedTensor.from_lists({"f": [[7, 1], [7]]})
            >>> tracker.record_lookup(rows, torch.empty(3, 2), raw_ids=torch.tensor([70, 10, 77]))
            >>> tracker.get_unique()["embedding_bags.t"].raw_ids
            tensor([10, 77])
        """
        before = {"states": states} if self._mode is TrackingMode.EMBEDDING else {}
        self._record_rows(kjt, emb_module, {**before, "raw_ids": raw_ids})

    def record_ids(self, kjt: KeyedJaggedTensor) -> None:
        """Take note of rows; see `record_lookup`.

        Args:
            kjt: the rows.

        Raises:
            ValueError: if the tracker tells more than their ids.
        """
        self._require_mode(TrackingMode.ID_ONLY)
        self._record_rows(kjt, None, {})

    def record_embeddings(self, kjt: KeyedJaggedTensor, embeddings: Tensor) -> None:
        """Take note of rows and their weights; see `record_lookup`.

        Args:
            kjt: the rows.
            embeddings: their weights before the update, ``(N, D)``.

        Raises:
            ValueError: if the tracker does not tell weights, or for weights of another number of rows.
        """
        self._require_mode(TrackingMode.EMBEDDING)
        self._record_rows(kjt, None, {"states": embeddings})

    def record_momentum(self, emb_module: nn.Module, kjt: KeyedJaggedTensor) -> None:
        """Take note of rows whose momentum is told; see `record_lookup`.

        Args:
            emb_module: their collection.
            kjt: the rows.

        Raises:
            ValueError: if the tracker does not tell momentum.
        """
        self._require_mode(TrackingMode.MOMENTUM_LAST, TrackingMode.MOMENTUM_DIFF)
        self._record_rows(kjt, emb_module, {})

    def record_rowwise_optim_state(self, emb_module: nn.Module, kjt: KeyedJaggedTensor) -> None:
        """Take note of rows whose state of row-wise Adagrad is told; see `record_lookup`.

        Args:
            emb_module: their collection.
            kjt: the rows.

        Raises:
            ValueError: if the tracker does not tell that state.
        """
        self._require_mode(TrackingMode.ROWWISE_ADAGRAD)
        self._record_rows(kjt, emb_module, {})

    def _require_mode(self, *modes: TrackingMode) -> None:
        if self._mode not in modes:
            raise ValueError(
                f"`mode` should be {' or '.join(map(str, modes))} for what is recorded. Received {self._mode}."
            )

    def _record_rows(
        self,
        kjt: KeyedJaggedTensor,
        emb_module: nn.Module | None,
        beside: Mapping[str, Tensor | None],
    ) -> None:
        for name, given in beside.items():
            if given is not None and len(given) != len(kjt.values()):
                raise ValueError(
                    f"`{name}` should have a value for each of the {len(kjt.values())} rows. Received {len(given)}."
                )
        starts = dict(zip(kjt.keys(), pairwise(kjt.offset_per_key()), strict=True))
        for fqn, (collection, name, *_) in self._tables.items():
            spans = [slice(*starts[key]) for key in self._features[fqn] if key in starts]
            if not spans or emb_module not in (None, collection):
                continue
            rows, before, raw = (
                None if each is None else torch.cat([each[span] for span in spans])
                for each in (kjt.values(), beside.get("states"), beside.get("raw_ids"))
            )
            assert rows is not None
            if len(collection.tables.rows_held(name, rows)) < len(rows):
                raise ValueError(
                    f"`kjt` should have rows of '{fqn}' that rank {collection.tables.rank} has something of. Received "
                    "others."
                )
            if len(rows):
                self._record(fqn, rows, before, raw)

    def _record(
        self, fqn: str, rows: Tensor, states: Tensor | None = None, raw_ids: Tensor | None = None
    ) -> None:
        if self._store.updateMode is UpdateMode.NONE:
            states = None
        elif states is None:
            states = self._tables[fqn].values(rows)
        self._store.append(self._batch, fqn, rows, states, raw_ids)

    def check_told(self, fqns: Iterable[str]) -> None:
        """Refuse to have tables moved of whose rows there are states to tell: of the columns that a rank has now.

        Args:
            fqns: paths of the tables.

        Raises:
            ValueError: naming a table and a consumer.
        """
        if self._mode is TrackingMode.ID_ONLY:
            return
        for consumer, first in self._next.items():
            rows = {**self._store.get_unique(first), **self._left[consumer]}
            untold = [fqn for fqn in fqns if fqn in rows]
            if untold:
                raise ValueError(
                    f"Consumer '{consumer}' should ask for the rows of table '{untold[0]}' before it is brought to "
                    f"other ranks, or `clear`: their states are told where they are. Received {self._mode}, and "
                    f"{len(rows[untold[0]].ids)} rows that it was not told of."
                )

    def step(self) -> None:
        """Count a batch, and put those that nobody has been told of together, if that was asked for."""
        self._batch += 1
        if self._auto_compact:
            self.trigger_compaction()

    def trigger_compaction(self) -> None:
        """Keep each row once of the batches that a consumer has not been told of."""
        self.compact(min(self._next.values()), self._batch + 1)

    def compact(self, start_idx: int, end_idx: int) -> None:
        """Keep each row of some batches once, or once for each time that a consumer was told of some of them.

        Args:
            start_idx: the first.
            end_idx: the one behind the last.
        """
        told = {number for number in self._next.values() if start_idx < number < end_idx}
        for start, end in pairwise([start_idx, *sorted(told), end_idx]):
            self._store.compact(start, end)

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
            top_percentage: which part of the rows of each table that this rank has, from 0 to 1, rounded up: those
                whose states are largest, as vectors; with ``EMBEDDING``, whose weights have changed most. The others
                are left to the next time. Default: 1, all of them.
            per_table_percentage: another part for some tables, by path, and how these are chosen: ``"top"``, as
                `top_percentage` has it, or ``"random"``, each with the same chance, which takes no states:
                ``{"embedding_bags.user": (0.1, "random")}``. Default: none.
            sorted_by_indices: whether rows come in their order, or, where states are told, as `top_percentage` ranks
                them. Default True.

        Raises:
            ValueError: for another consumer than those that were named, a table that is not tracked, another way to
                choose, for the top where no states are told, and for a part of the rows of a table whose columns are
                divided: ranks would choose different ones.
        """
        shares = self._shares(top_percentage, per_table_percentage)
        name, told = self._named(consumer), dict[str, UniqueRows]()
        found, left = self._store.get_unique(self._next[name]), self._left[name]
        for fqn in self._tables:
            parts = [rows[fqn] for rows in (left, found) if fqn in rows]
            if parts:
                told[fqn], rest = self._chosen(
                    fqn, _first_of(parts), *shares[fqn], bool(sorted_by_indices)
                )
                left = {**left, fqn: rest}
        self._told(name)
        self._left[name] = {fqn: rest for fqn, rest in left.items() if len(rest.ids)}
        return {fqn: rows for fqn, rows in told.items() if len(rows.ids)}

    def _shares(
        self, share: float | None, of_tables: Mapping[str, tuple[float, str]] | None
    ) -> dict[str, tuple[float, str]]:
        """Return which part of the rows of each table is told, and how these are chosen, once that is checked."""
        every = 1.0 if share is None else share
        shares = {**dict.fromkeys(self._tables, (every, _TOP)), **(of_tables or {})}
        for fqn, (part, strategy) in shares.items():
            if fqn not in self._tables:
                raise ValueError(
                    f"`per_table_percentage` should be of tables that are tracked, {list(self._tables)}. "
                    f"Received '{fqn}'."
                )
            if not 0.0 <= part <= 1.0 or strategy not in (_TOP, _RANDOM):
                raise ValueError(
                    "`top_percentage`, and those of `per_table_percentage`, should be from 0 to 1, chosen by "
                    f"'{_TOP}' or '{_RANDOM}'. Received {part} by '{strategy}' for '{fqn}'."
                )
            tables, name = self._tables[fqn].collection.tables, self._tables[fqn].name
            is_split = tables.placements[name].splits_columns and not tables.is_replicated(name)
            if part < 1.0 and (
                is_split or (strategy == _TOP and self._mode is TrackingMode.ID_ONLY)
            ):
                raise ValueError(
                    f"All rows of '{fqn}' should be asked for, where its columns are divided, or no states are told to "
                    f"choose the top by. Received {part} by '{strategy}', with {self._mode}."
                )
        return shares

    def _chosen(
        self, fqn: str, rows: UniqueRows, share: float, strategy: str, in_order: bool
    ) -> tuple[UniqueRows, UniqueRows]:
        """Return the rows of a table that are told with what is told of them, and those that are left."""
        first, mode, all_rows = rows.states, self._mode, len(rows.ids)
        every = share == 1.0 and in_order
        changed = None
        if mode is not TrackingMode.ID_ONLY and not (every and mode is TrackingMode.EMBEDDING):
            now = self._tables[fqn].values(rows.ids)
            changed = now if first is None else now - first
        if strategy == _RANDOM:
            ranking = torch.randperm(all_rows, generator=self._generator)
        elif changed is None or every:
            ranking = torch.arange(all_rows)
        else:
            norms = changed.float().reshape(all_rows, -1).norm(dim=1)
            ranking = norms.argsort(descending=True, stable=True)
        top, rest = ranking.tensor_split([math.ceil(share * all_rows)])
        if in_order:
            top = top.sort().values
        states = first if mode is TrackingMode.EMBEDDING else changed
        told = replace(rows, states=states).at(top)
        if told.raw_ids is None:
            told = replace(told, raw_ids=self._tables[fqn].raw_ids(told.ids))
        return told, rows.at(rest.sort().values)

    def get_latest(self) -> dict[str, Tensor]:
        """Return what is told of rows, for all rows of this rank's part of each table, as it is now, by path.

        In the memory of the table or its optimizer: not to be written to. Empty where no states are told.
        """
        if self._mode is TrackingMode.ID_ONLY:
            return {}
        found = dict[str, Tensor]()
        for fqn, (collection, name, state, _) in self._tables.items():
            tables = collection.tables
            if state is None:
                found[fqn] = tables.parameter(name).detach()
            else:
                values = tables.state_of(name, state)
                found[fqn] = values.squeeze(1) if state in _ROW_STATES else values
        return found

    def clear(self, consumer: str | None = None) -> None:
        """Forget what a consumer has not been told.

        Args:
            consumer: whose. Default: that of all.
        """
        for name in self._next if consumer is None else [self._named(consumer)]:
            self._told(name)
            self._left[name] = {}

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


def _state_name(collection: ShardedTableCollection, table: str, mode: TrackingMode) -> str | None:
    """Return the state of a table's optimizer that a mode tells of; None: it tells of none."""
    if mode in (TrackingMode.ID_ONLY, TrackingMode.EMBEDDING):
        return None
    updates = collection.tables.updates().values()
    rules = {each.table: each.rule for each in updates if each.in_backward}
    rule, wanted, by = rules.get(table), _MOMENTUM, "an optimizer with momentum"
    if mode is TrackingMode.ROWWISE_ADAGRAD:
        wanted, by = _ROW_STATES, "row-wise Adagrad"
        if rule is not None and rule.optimizer is not OptimizerType.ROWWISE_ADAGRAD:
            wanted = ()
    found = [] if rule is None else [name for name in rule.state_names if name in wanted]
    if not found:
        raise ValueError(
            f"Table '{table}' should be updated in the backward pass by {by}, of whose state {mode} tells, or be among "
            f"`fqns_to_skip`. Received {None if rule is None else rule.optimizer}."
        )
    return found[0]


def _first_of(parts: Sequence[UniqueRows]) -> UniqueRows:
    """Return rows that come several times once, as they were in the first of some parts."""
    if len(parts) == 1:
        return parts[0]
    store = DeltaStoreTrec(UpdateMode.NONE if parts[0].states is None else UpdateMode.FIRST)
    for number, part in enumerate(parts):
        store.append(number, "", part.ids, part.states, part.raw_ids, part.runtime_meta)
    return store.get_unique()[""]
