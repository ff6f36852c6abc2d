"""Embedding collections for ids without bounds: maps and tables that are looked up as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import require_type
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules._private import ddp_around, outside_graphs, reduced_by_ddp
from torchrec.modules.collection import Collection, TableStore
from torchrec.modules.collision.interface import FindsRows
from torchrec.modules.collision.module import MCHManagedCollisionModule
from torchrec.modules.collision.saved_state import LoadReport
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.modules.table_collection import TableCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = [
    "BaseManagedCollisionEmbeddingCollection",
    "ManagedCollisionEmbeddingBagCollection",
    "ManagedCollisionEmbeddingCollection",
    "evict",
    "return_custom_metadata",
    "return_remapped_lengths_as_mask",
]


def evict(evictions: dict[str, Tensor | None], ebc: nn.Module) -> None:
    """Make rows that changed hands as new: initial weights, no gradient, no optimizer state.

    Args:
        evictions: table -> rows, int64 ``(N,)``, distinct; None: no eviction.
        ebc: a collection of tables, such as an `EmbeddingBagCollection` or `EmbeddingCollection`.

    Raises:
        TypeError: for another module, or rows that are no integers.
        ValueError: for an unknown table.
        IndexError: for a row that is out of range; no table is changed then.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(
        ...     3, 1, "t", feature_names=["f"], init_fn=torch.nn.init.zeros_
        ... )
        >>> ebc = EmbeddingBagCollection(tables=[table])
        >>> ebc.load_rows("t", torch.tensor([0, 1, 2]), torch.tensor([[1.0], [2.0], [3.0]]))
        >>> evict({"t": torch.tensor([0, 2])}, ebc)
        >>> ebc.embedding_bags["t"].weight.tolist()
        [[0.0], [2.0], [0.0]]
    """
    if not isinstance(ebc, Collection):
        raise TypeError(
            "`ebc` should be a collection of tables, such as an EmbeddingBagCollection or an "
            f"EmbeddingCollection. Received {type(ebc).__name__}."
        )
    require_type(evictions, "`evictions`", dict)
    tables = ebc.table_store()
    changed = {table: rows for table, rows in evictions.items() if rows is not None}
    for table, rows in changed.items():
        _check_rows(tables, table, rows)
    for table, rows in changed.items():
        tables.reset_rows(table, rows)


def _check_rows(tables: TableStore, table: str, rows: Tensor) -> None:
    require_type(rows, f"Rows of table {table!r}", Tensor)
    end = max(shard.rows.stop for shard in tables.table_shards(table))
    if rows.dtype is not torch.int64:
        raise TypeError(f"Rows of table '{table}' should be int64. Received {rows.dtype}.")
    outside = (rows < 0) | (rows >= end)
    if bool(outside.any()):
        raise IndexError(
            f"Rows of table '{table}' should be in [0, {end}). Received {int(rows[outside][0])}."
        )


def return_remapped_lengths_as_mask(features: KeyedJaggedTensor) -> Tensor:
    """Return which bags are not empty.

    Args:
        features: rows, as a map returned them.

    Returns:
        Bool, ``(F * B,)``.

    Example:
        >>> return_remapped_lengths_as_mask(KeyedJaggedTensor.from_lists({"f": [[5, 7], []]}))
        tensor([ True, False])
    """
    require_type(features, "`features`", KeyedJaggedTensor)
    return features.lengths() > 0


def return_custom_metadata(runtime_meta: Tensor) -> Tensor:
    """Return what it is given: a place for tracing tools to take hold of.

    Args:
        runtime_meta: any.

    Example:
        >>> return_custom_metadata(torch.tensor([3]))
        tensor([3])
    """
    return runtime_meta


def _check_same_tables(
    looked_up: Sequence[BaseEmbeddingConfig], mapped: Sequence[BaseEmbeddingConfig]
) -> None:
    known = {config.name: config for config in mapped}
    for config in looked_up:
        other = known.pop(config.name, None)
        if other is None:
            raise ValueError(
                f"`managed_collision_collection` should have table '{config.name}' (with the map None "
                f"if its ids are rows). Received {[c.name for c in mapped]}."
            )
        for name in ("feature_names", "num_embeddings"):
            if getattr(config, name) != getattr(other, name):
                raise ValueError(
                    f"`{name}` of table '{config.name}' should be the same in both collections "
                    f"({getattr(config, name)}). Received {getattr(other, name)}."
                )
    if known:
        raise ValueError(
            f"`managed_collision_collection` should have the tables {[c.name for c in looked_up]}. "
            f"Received '{next(iter(known))}', too."
        )


Output = tuple[KeyedTensor | dict[str, JaggedTensor], KeyedJaggedTensor | None]


class BaseManagedCollisionEmbeddingCollection(nn.Module, LeafModule):
    """A collection of tables, and maps that give their rows to ids without bounds.

    A row that changes hands starts as a new one: its weights, its waiting gradient and its optimizer
    state, in the backward pass or in an optimizer of yours. Such an optimizer forgets the row's state
    when it next steps. Between a look-up and its backward pass there should be no other look-up that
    evicts: the gradient would go to the id that has the row now. Where activation checkpointing runs
    the look-up again, it finds the rows of the first time, or is refused if they have other ids.

    ``state_dict`` holds maps and tables. It can be loaded where ``zch_size`` and
    ``num_embeddings`` are others: rows move with their ids; see `load_reports`.

    Args:
        embedding_module: the tables.
        managed_collision_collection: a map (or None) for each of them.
        return_remapped_features: return the rows, too.
        allow_in_place_embed_weight_update: without effect: evicted rows are written in place.

    Raises:
        ValueError: for collections of different tables.
        TypeError: for collections of other kinds.
    """

    def __init__(
        self,
        embedding_module: EmbeddingBagCollection | EmbeddingCollection,
        managed_collision_collection: ManagedCollisionCollection,
        return_remapped_features: bool = False,
        allow_in_place_embed_weight_update: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(managed_collision_collection, ManagedCollisionCollection):
            raise TypeError(
                "`managed_collision_collection` should be a ManagedCollisionCollection. "
                f"Received {type(managed_collision_collection).__name__}."
            )
        if not isinstance(embedding_module, TableCollection):
            raise TypeError(
                "`embedding_module` should be an EmbeddingBagCollection or an EmbeddingCollection. "
                f"Received {type(embedding_module).__name__}."
            )
        _check_same_tables(
            embedding_module.table_configs(), managed_collision_collection.embedding_configs()
        )
        self._managed_collision_collection = managed_collision_collection
        self._embedding_module = embedding_module
        self._return_remapped_features = return_remapped_features
        self._allow_in_place_embed_weight_update = allow_in_place_embed_weight_update
        self._load_reports: dict[str, LoadReport] = {}
        self._saved_rows: dict[str, int] = {}

    def forward(self, features: KeyedJaggedTensor, mutate_miss_lengths: bool = True) -> Output:
        """Map ids to rows, reset the rows that changed hands, and look up.

        Args:
            features: ids of all features of the tables, and possibly others, in any order.
            mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.

        Returns:
            What the collection of tables returns; and the features with rows in place of ids, if
            asked for, else None.
        """
        if not isinstance(features, KeyedJaggedTensor):
            if not is_proxy(features):
                require_type(features, "`features`", KeyedJaggedTensor)
            traced: Output = self.recorded(features, mutate_miss_lengths)
            return traced
        mapped = self._mapped_outside if is_compiling() else self._mapped
        rows = mapped(features, mutate_miss_lengths)
        embeddings = self._embedding_module(rows)
        return embeddings, rows if self._return_remapped_features else None

    def _mapped(self, features: KeyedJaggedTensor, mutate_miss_lengths: bool) -> KeyedJaggedTensor:
        """Map ids to rows, and reset the rows that changed hands."""
        around = ddp_around()
        if around is not None and around.process_group.size() > 1:
            self._check_not_reduced()
        maps = self._managed_collision_collection
        return maps.map_ids(features, self._embedding_module.reset_rows, mutate_miss_lengths)

    def _check_not_reduced(self) -> None:
        """Refuse maps that learn on each rank by themselves, where ranks add the gradients of rows up."""
        reduced = {id(param) for param in reduced_by_ddp()}
        for table, module in self._managed_collision_collection.maps().items():
            shards = self._embedding_module.table_shards(table)
            if module.training and any(id(shard.weight) in reduced for shard in shards):
                raise RuntimeError(
                    f"The map of table '{table}' should not learn within DistributedDataParallel: each "
                    "rank gives the rows to ids of its own, and gradients of different ids would be "
                    "added up. Leave map and table out of it, or switch the map to `eval()`."
                )

    # Evictions depend on the data: a graph of torch.compile ends before the maps, and a new one
    # begins behind them.
    _mapped_outside = outside_graphs(_mapped)

    def table_store(self) -> TableStore:
        """Return the tables: there, ids are rows."""
        return self._embedding_module

    def managed_collision_collection(self) -> ManagedCollisionCollection:
        """Return the maps."""
        return self._managed_collision_collection

    def returns_remapped_features(self) -> bool:
        """Return whether look-ups give the rows, too."""
        return self._return_remapped_features

    def stats(self, reset: bool = True) -> dict[str, ManagedCollisionStats]:
        """Return, for each table, how full its map is and what it has done since the last call.

        Args:
            reset: start to count anew.
        """
        return self._managed_collision_collection.stats(reset)

    def lookup_remapped_lengths_mask(self, features: KeyedJaggedTensor) -> Tensor:
        """Return which bags are not empty once ids are mapped; nothing is learnt.

        Args:
            features: ids.
        """
        return return_remapped_lengths_as_mask(self._managed_collision_collection.remap(features))

    def lookup_remapped_lengths_mask_and_runtime_meta(
        self, features: KeyedJaggedTensor
    ) -> tuple[Tensor, Tensor]:
        """Return which bags are not empty once ids are mapped, and what the maps keep for the rows.

        Args:
            features: ids.

        Returns:
            Bool ``(F * B,)``; int64 ``(N, D)``, see `HashZchManagedCollisionModule`.

        Raises:
            ValueError: for a table whose map keeps nothing.
        """
        rows = self._managed_collision_collection.remap(features)
        meta = self._managed_collision_collection.lookup_custom_runtime_meta(rows)
        return return_remapped_lengths_as_mask(rows), meta

    # Rows by the original id.

    def export_rows(self, table: str, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read rows by the ids that hold them.

        Args:
            table: name of the table.
            ids: ``(N,)``, integers. Default: all that hold a row, by row; where the map has an
                ``input_hash_func``, they are what it made of them.

        Returns:
            The ids, int64 ``(N,)``, and a copy of their vectors, ``(N, D)``.

        Raises:
            ValueError: for an unknown table.
            IndexError: for an id that holds no row.
        """
        module = self._map(table)
        if module is None:
            return self._embedding_module.export_rows(table, ids)
        if ids is None:
            rows, ids = module.held()
        else:
            require_type(ids, f"`ids` of table '{table}'", Tensor)
            rows = module.rows_of(ids)
            ids = ids.long()
            if bool((rows < 0).any()):
                raise IndexError(
                    f"`ids` of table '{table}' should hold rows. "
                    f"Received {int(ids[rows < 0][0])}, which holds none."
                )
        return ids, self._embedding_module.export_rows(table, rows)[1]

    def load_rows(
        self, table: str, ids: Tensor, vectors: Tensor, reset_state: bool = False
    ) -> None:
        """Write rows by ids. An id that holds no row is given a free one, as if it had come once.

        Args:
            table: name of the table.
            ids: ``(N,)``, integers, distinct.
            vectors: ``(N, D)``, of any floating type.
            reset_state: also reset the state of the fused optimizer for ids that hold a row already.

        Raises:
            ValueError: for an unknown table, shapes that do not fit, an id that comes twice, or
                fewer free rows than needed.
        """
        module = self._map(table)
        if module is None:
            self._embedding_module.load_rows(table, ids, vectors, reset_state)
            return
        for name, tensor in (("ids", ids), ("vectors", vectors)):
            require_type(tensor, f"`{name}` of table '{table}'", Tensor)
        rows = module.rows_of(ids)
        if ids.unique().numel() != ids.numel():
            raise ValueError(f"`ids` of table '{table}' should be distinct.")
        expected = (ids.numel(), self._weight(table).shape[1])
        if tuple(vectors.shape) != expected:
            raise ValueError(
                f"`vectors` of table '{table}' should have the shape {expected}. "
                f"Received {tuple(vectors.shape)}."
            )
        new = rows < 0
        if bool(new.any()):
            rows[new] = given = module.give_rows(ids[new])
            for sharing in self._managed_collision_collection.tables_of(module):
                self._embedding_module.reset_rows(sharing, given)
        self._embedding_module.load_rows(table, rows, vectors, reset_state)

    def _map(self, table: str) -> FindsRows | None:
        self._weight(table)  # raises for an unknown one
        module = self._managed_collision_collection.maps().get(table)
        if module is not None and not isinstance(module, FindsRows):
            raise TypeError(
                f"The map of table '{table}' should be one such as an MCHManagedCollisionModule to find rows by "
                f"id. Received {type(module).__name__}."
            )
        return module

    def _weight(self, table: str) -> Tensor:
        (shard,) = self._embedding_module.table_shards(table)
        return shard.weight

    # State of another size.

    @property
    def load_reports(self) -> dict[str, LoadReport]:
        """What became of the ids of each table whose map had another size when it was last loaded."""
        return self._load_reports

    def fit_optimizer_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the saved state of an optimizer with its rows where those of the tables are now.

        After a state of another size was loaded, state that was saved with it needs this.

        Args:
            state_dict: of an optimizer with names, such as ``fused_optimizer`` of the tables: its
                ``"state"`` has the names of parameters, or these with something in front.
        """
        state = {}
        names = self._weight_names()
        for param, values in state_dict["state"].items():
            tensors = dict(values)
            for table, report in self._load_reports.items():
                name = names[table]
                if str(param) != name and not str(param).endswith(f".{name}"):
                    continue
                rows = self._weight(table).shape[0]
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape[:1] == (self._saved_rows[table],):
                        tensors[key] = report.move(value, value.new_zeros(rows, *value.shape[1:]))
            state[param] = tensors
        return {**state_dict, "state": state}

    def _weight_names(self) -> dict[str, str]:
        """Return, for each table, the name of its weight in the collection of tables."""
        names = {weight: name for name, weight in self._embedding_module.named_parameters()}
        return {
            config.name: names[weight]
            for config in self._embedding_module.table_configs()
            if isinstance(weight := self._weight(config.name), nn.Parameter)
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Move the rows of the tables to where their ids will be; the maps move the ids."""
        self._load_reports = {}
        names = self._weight_names()
        for table, module in self._managed_collision_collection.maps().items():
            if not isinstance(module, MCHManagedCollisionModule):
                continue
            start = f"{prefix}_managed_collision_collection._managed_collision_modules.{table}."
            report = module.fit(state_dict, start)
            key = f"{prefix}_embedding_module.{names[table]}"
            if report is None or key not in state_dict:
                continue
            self._load_reports[table] = report
            self._saved_rows[table] = state_dict[key].shape[0]
            weight = self._weight(table).detach()
            if weight.is_meta and weight.shape == state_dict[key].shape:
                weight = state_dict[key]  # which is assigned: there are no other rows
            state_dict[key] = report.move(state_dict[key], weight)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ManagedCollisionEmbeddingBagCollection(BaseManagedCollisionEmbeddingCollection):
    """An `EmbeddingBagCollection` for ids without bounds; see the class that it derives from.

    Args:
        embedding_bag_collection: the tables.
        managed_collision_collection: a map (or None) for each of them.
        return_remapped_features: return the rows, too.
        allow_in_place_embed_weight_update: without effect: evicted rows are written in place.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> from torchrec.modules.mc_modules import LFU_EvictionPolicy
        >>> tables = [EmbeddingBagConfig(1000, 8, "user", feature_names=["user"])]
        >>> maps = {
        ...     "user": MCHManagedCollisionModule(
        ...         1000, "cpu", LFU_EvictionPolicy(), eviction_interval=1, name="user"
        ...     )
        ... }
        >>> mc_ebc = ManagedCollisionEmbeddingBagCollection(
        ...     EmbeddingBagCollection(tables=tables),
        ...     ManagedCollisionCollection(maps, tables),
        ...     return_remapped_features=True,
        ... )
        >>> pooled, rows = mc_ebc(KeyedJaggedTensor.from_lists({"user": [[2**60, -1], [2**60]]}))
        >>> pooled["user"].shape, rows.to_lists()
        (torch.Size([2, 8]), {'user': [[0, 1], [0]]})
        >>> ids, vectors = mc_ebc.export_rows("user")
        >>> ids
        tensor([1152921504606846976,                  -1])
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        managed_collision_collection: ManagedCollisionCollection,
        return_remapped_features: bool = False,
        allow_in_place_embed_weight_update: bool = False,
    ) -> None:
        _require(embedding_bag_collection, EmbeddingBagCollection, "embedding_bag_collection")
        super().__init__(
            embedding_bag_collection,
            managed_collision_collection,
            return_remapped_features,
            allow_in_place_embed_weight_update,
        )


class ManagedCollisionEmbeddingCollection(BaseManagedCollisionEmbeddingCollection):
    """An `EmbeddingCollection` for ids without bounds; see the class that it derives from.

    Args:
        embedding_collection: the tables.
        managed_collision_collection: a map (or None) for each of them.
        return_remapped_features: return the rows, too.
        allow_in_place_embed_weight_update: without effect: evicted rows are written in place.

    Example:
        >>> from torchrec import EmbeddingConfig
        >>> from torchrec.modules.mc_modules import LRU_EvictionPolicy
        >>> tables = [EmbeddingConfig(1000, 8, "user", feature_names=["user"])]
        >>> maps = {
        ...     "user": MCHManagedCollisionModule(
        ...         1000, "cpu", LRU_EvictionPolicy(), eviction_interval=1, name="user"
        ...     )
        ... }
        >>> mc_ec = ManagedCollisionEmbeddingCollection(
        ...     EmbeddingCollection(tables=tables), ManagedCollisionCollection(maps, tables)
        ... )
        >>> embeddings, _ = mc_ec(KeyedJaggedTensor.from_lists({"user": [[2**60, -1], [2**60]]}))
        >>> embeddings["user"].values().shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        embedding_collection: EmbeddingCollection,
        managed_collision_collection: ManagedCollisionCollection,
        return_remapped_features: bool = False,
        allow_in_place_embed_weight_update: bool = False,
    ) -> None:
        _require(embedding_collection, EmbeddingCollection, "embedding_collection")
        super().__init__(
            embedding_collection,
            managed_collision_collection,
            return_remapped_features,
            allow_in_place_embed_weight_update,
        )


def _require(module: object, kind: type[nn.Module], name: str) -> None:
    if not isinstance(module, kind):
        raise TypeError(f"`{name}` should be an {kind.__name__}. Received {type(module).__name__}.")
