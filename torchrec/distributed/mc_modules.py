"""Maps of managed collision that are spread over ranks: each part is with the rows that it gives to ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._awaitable import Deferred
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, KJTList
from torchrec.distributed.layout import shards_of
from torchrec.distributed.map_exchange import MapExchange, MapQuestion
from torchrec.distributed.map_layout import MapPart, layouts_of
from torchrec.distributed.map_moves import RowMoves
from torchrec.distributed.map_state import SavedMap
from torchrec.distributed.map_states import MapParts, MapStates
from torchrec.distributed.placement import TablePlacement
from torchrec.distributed.types import (
    Awaitable,
    LazyAwaitable,
    LazyNoWait,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardedModule,
    ShardingEnv,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.collision.features import with_values
from torchrec.modules.collision.interface import FindsRows, JaggedDict, ManagedCollisionModule
from torchrec.modules.mc_modules import ManagedCollisionCollection, ManagedCollisionStats
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = [
    "ManagedCollisionCollectionContext",
    "ManagedCollisionCollectionSharder",
    "ShardedManagedCollisionCollection",
]

ResetRows = Callable[[str, Tensor], None]


class LazyFeatures(LazyNoWait[KeyedJaggedTensor]):
    """Features that are here already."""

    stands_for = KeyedJaggedTensor


class ManagedCollisionCollectionContext(Multistreamable):
    """What the steps of one forward pass hand on to each other.

    Attributes:
        reset_rows: ``(table, rows)``: called where rows change hands; None: `evict` tells which did.
        features: of this rank's batch.
        question: the ids that this rank asks for.
        mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.
        changed: of each part of this rank, rows that changed hands, by number of the part.
        error: what kept this rank from finding rows.
    """

    features: KeyedJaggedTensor
    question: MapQuestion

    def __init__(self, reset_rows: ResetRows | None = None) -> None:
        self.reset_rows = reset_rows
        self.mutate_miss_lengths = True
        self.changed: dict[int, Tensor] = {}
        self.error: Exception | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        self.features.record_stream(stream)
        self.question.record_stream(stream)


class ShardedManagedCollisionCollection(
    ShardedModule[KJTList, KJTList, KeyedJaggedTensor, ManagedCollisionCollectionContext]
):
    """A `ManagedCollisionCollection` whose maps are spread over ranks.

    Each rank has the maps of the rows that it has of a table. An id goes to the rank that has its map, whose rank
    it is asked on does not count, and its row comes back: of the table as a whole. There, maps learn from the ids
    of all ranks, one rank after the other.

    A map of a table that lies whole on one rank, or whose columns are split, does what it would do in one process
    for the batches of all ranks. That of a table whose rows are divided becomes one map for each range of rows,
    to which ids belong by a hash; a `HashZchManagedCollisionModule` is divided between its buckets, and does what
    it would do whole.

    Args:
        module: the maps.
        table_name_to_parameter_sharding: where each table goes.
        env: the ranks.
        device: where this rank has its maps.
        embedding_shardings: must be empty: plans say where rows are.
        qcomm_codecs_registry: must be None: ids and rows are exchanged as they are.
        use_index_dedup: must be False: maps count how often each id comes.
        module_fqn: its path in the model, for errors.

    Raises:
        ValueError: for a map that cannot be divided as its table is.
    """

    def __init__(
        self,
        module: ManagedCollisionCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device,
        embedding_shardings: Sequence[object] = (),
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        use_index_dedup: bool = False,
        *,
        module_fqn: str | None = None,
    ) -> None:
        _refuse_codecs(qcomm_codecs_registry)
        if embedding_shardings or use_index_dedup:
            raise ValueError(
                "`embedding_shardings` should be empty, as plans say where rows are, and `use_index_dedup` False, "
                f"as maps count how often each id comes. Received {list(embedding_shardings)} and {use_index_dedup}."
            )
        super().__init__()
        self._embedding_configs = module.embedding_configs()
        self._features = module.mapped_features
        maps, path = module.maps(), module_fqn or ""
        placements = {
            config.name: TablePlacement(
                config.name,
                shards_of(
                    config.name,
                    (config.num_rows, config.embedding_dim),
                    table_name_to_parameter_sharding[config.name],
                    env.world_size,
                    path,
                ),
            )
            for config in self._embedding_configs
        }
        wire = None
        if env.process_group is not None and env.world_size > 1:
            wire = Wire(env.process_group)
        self._exchange = MapExchange(
            layouts_of(self._features.groups, maps, placements),
            wire,
        )
        self._managed_collision_modules = nn.ModuleDict()
        self._parts = MapParts(self._exchange, self._managed_collision_modules)
        layouts = self._exchange.layouts
        saved = [SavedMap.of(maps[layout.tables[0]], layout) for layout in layouts]
        self._states = MapStates(self._exchange, saved, self._parts)
        for part in self._exchange.mine:
            layout = self._exchange.layout_of[part.number]
            made = _part_of(maps[layout.tables[0]], part, device)
            for table in layout.tables:
                self._managed_collision_modules[self._parts.name_of(table, part)] = made
        if env.process_group is not None:
            self.register_state_dict_post_hook(_show_wholes)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_take_parts)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_post_hook(_settle)  # type: ignore[no-untyped-call]
        self._divide(maps)

    def _divide(self, maps: dict[str, ManagedCollisionModule]) -> None:
        """Deal out what whole maps know already."""
        learnt = {}
        for layout in self._exchange.layouts:
            for table in () if layout.is_whole else layout.tables:
                for name, value in maps[table].state_dict().items():
                    learnt[f"{_MAPS}{table}.{name}"] = value
        if learnt and not any(value.is_meta for value in learnt.values()):
            self.load_state_dict(learnt, strict=False)

    @property
    def row_moves(self) -> dict[str, RowMoves]:
        """What became of ids, by table, when maps were last loaded that had been divided otherwise.

        Who has the tables moves their rows alike, as an embedding collection around the maps does.
        """
        return self._states.row_moves

    def with_rows_moved(self, table: str, value: Tensor) -> Tensor:
        """Return a table, or its state, with rows where `row_moves` say that they are; all ranks call this.

        Args:
            table: its name.
            value: all of it; or sharded: then this rank's parts are written to.
        """
        return self._states.with_rows_moved(table, value)

    @property
    def states(self) -> MapStates:
        """What a state shows of the maps, and how it is loaded."""
        return self._states

    def maps(self) -> dict[str, list[ManagedCollisionModule]]:
        """Return the maps of this rank by table, in order of their rows; none for a table that it has none of."""
        return self._parts.by_table()

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return ManagedCollisionCollection

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the buffers of the maps, which no data-parallel wrapper should make alike.

        Args:
            prefix: written before each. Default none.
        """
        for name, _ in self.named_buffers(prefix):
            yield name

    # A step.

    def create_context(
        self, reset_rows: ResetRows | None = None
    ) -> ManagedCollisionCollectionContext:
        """Return what the steps of one forward pass hand on to each other.

        Args:
            reset_rows: ``(table, rows)``: called on each rank for rows that changed hands, of which it has a
                part. Default: nothing is called, and `evict` tells which rows of this rank's maps did.
        """
        return ManagedCollisionCollectionContext(reset_rows)

    def input_dist(
        self,
        ctx: ManagedCollisionCollectionContext,
        features: KeyedJaggedTensor,
        skip_permute: bool = False,
        mutate_miss_lengths: bool = True,
        error: Exception | None = None,
    ) -> Awaitable[Awaitable[KJTList]]:
        """Send ids to the ranks that have their maps.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch: of all tables, and possibly others, which stay as they are.
            skip_permute: without effect: keys may come in any order.
            mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.
            error: what is wrong with the features already, if anything: all ranks raise it.

        Returns:
            For each map of this rank, the ids of all ranks: a bag for each rank.
        """
        question: MapQuestion | None = None
        try:
            if error is not None:
                raise error
            question = self._exchange.question(self._features.ids_by_key(features))
            ctx.features, ctx.question = features, question
            ctx.mutate_miss_lengths = mutate_miss_lengths
        except Exception as failed:
            if self._exchange.wire is None:
                raise
            error = failed
        sizes = self._exchange.ask(question, error, self.training)

        def sent() -> Awaitable[KJTList]:
            asked = sizes.wait()
            return Deferred(lambda: self._by_part(asked.wait()))

        return Deferred(sent)

    def _by_part(self, asked: Sequence[tuple[Tensor, list[list[int]]]]) -> KJTList:
        found = []
        for part, (ids, counts) in zip(self._exchange.mine, asked, strict=True):
            lengths = torch.tensor(counts).flatten()
            found.append(KeyedJaggedTensor(self._parts.keys_of(part), ids, lengths=lengths))
        return KJTList(found)

    def compute(self, ctx: ManagedCollisionCollectionContext, dist_input: KJTList) -> KJTList:
        """Find the rows of ids; while training, learn from them first, and reset the rows that change hands.

        Args:
            ctx: of the forward pass.
            dist_input: the ids that all ranks ask for.
        """
        found = []
        for part, features in zip(self._exchange.mine, dist_input, strict=True):
            try:
                if ctx.error is None:
                    features = features.with_values(self._rows_of(ctx, part, features))
            except Exception as failed:
                if self._exchange.wire is None:
                    raise
                ctx.error = failed  # which other ranks are told with the rows
            found.append(features)
        return KJTList(found)

    def _rows_of(
        self, ctx: ManagedCollisionCollectionContext, part: MapPart, features: KeyedJaggedTensor
    ) -> Tensor:
        module = self._parts.map_of(part)
        if ctx.reset_rows is None:
            found = module(features.to_dict(), False)
            return torch.cat([found[key].values() for key in self._parts.keys_of(part)])
        parts = features.values().split(features.length_per_key())
        ids = dict(zip(features.keys(), parts, strict=True))
        mapped = module.map_keys(features, ids, False)
        if mapped.changed is not None and mapped.changed.numel():
            ctx.changed[part.number] = mapped.changed
            self._reset(ctx.reset_rows, part.number, mapped.changed)
        return torch.cat(list(mapped.rows))

    def _reset(self, reset_rows: ResetRows, part: int, rows: Tensor) -> None:
        for table in self._exchange.layout_of[part].tables:
            reset_rows(table, rows)

    def output_dist(
        self, ctx: ManagedCollisionCollectionContext, output: KJTList
    ) -> LazyAwaitable[KeyedJaggedTensor]:
        """Send rows back to the ranks that asked for them.

        Args:
            ctx: of the forward pass.
            output: what `compute` returned.

        Returns:
            The features of this rank, with rows of the whole tables in place of ids.
        """
        world_size = self._exchange.world_size
        rows = [(each.values(), each.lengths().view(-1, world_size).tolist()) for each in output]
        by_key, elsewhere = self._exchange.answer(ctx.question, rows, ctx.changed, ctx.error)
        if ctx.reset_rows is not None:
            for part, changed in elsewhere.items():
                self._reset(ctx.reset_rows, part, changed)
        ids = self._features.ids_by_key(ctx.features)
        return LazyFeatures(
            self._features.with_rows(ctx.features, ids, by_key, ctx.mutate_miss_lengths)
        )

    # The maps of this rank.

    def evict(self) -> dict[str, Tensor | None]:
        """Return, for each table, the rows that changed hands in this rank's maps; None: no eviction.

        In calls of `forward`, that is: an embedding collection around the maps has them reset itself.
        """
        evicted = {id(each): each.evict() for maps in self.maps().values() for each in maps}
        found: dict[str, Tensor | None] = {}
        for table, maps in self.maps().items():
            rows = [each for each in (evicted[id(module)] for module in maps) if each is not None]
            found[table] = torch.cat(rows) if rows else None
        return found

    def open_slots(self) -> dict[str, Tensor]:
        """Return, for each table, how many rows of this rank's maps no id holds, ``(1,)``."""
        return {
            table: torch.stack(
                [torch.zeros(1, dtype=torch.int64), *(m.open_slots() for m in maps)]
            ).sum(0)
            for table, maps in self.maps().items()
        }

    def stats(self, reset: bool = True) -> dict[str, ManagedCollisionStats]:
        """Return, for each table that this rank has a map of, how full it is and what it has done; see `FindsRows`.

        Args:
            reset: start to count anew.
        """
        maps = self.maps()
        each = {id(m): m for parts in maps.values() for m in parts if isinstance(m, FindsRows)}
        found = {number: module.stats(reset) for number, module in each.items()}
        stats = {t: [found[id(m)] for m in p if id(m) in found] for t, p in maps.items()}
        return {t: ManagedCollisionStats.of_parts(known) for t, known in stats.items() if known}

    def get_lookup_value(
        self, table: str, features: KeyedJaggedTensor, write_weights: Tensor | None = None
    ) -> dict[str, Any]:
        """Return features with rows in place of ids that belong to this rank's map; nothing is sent.

        Args:
            table: whose map it is.
            features: of the table.
            write_weights: numbers to keep for the rows, where the map does so.

        Raises:
            ValueError: if this rank has not one map of that table.
        """
        maps = self.maps().get(table, [])
        if len(maps) != 1:
            raise ValueError(
                f"`table` should be one that this rank has one map of. Received '{table}', with {len(maps)}."
            )
        return maps[0].remap(features.to_dict(), True, write_weights)

    def global_to_local_index(self, jt_dict: JaggedDict) -> JaggedDict:
        """Return features with rows counted from the first one of this rank's map.

        Args:
            jt_dict: rows of the whole tables, by feature.

        Raises:
            ValueError: for a feature that this rank has no map for.
        """
        local = {}
        for key, jt in jt_dict.items():
            found = [part for part in self._exchange.mine if key in self._parts.keys_of(part)]
            if len(found) != 1:
                raise ValueError(
                    f"Features should be of tables that this rank has one map of. Received '{key}', with "
                    f"{len(found)}."
                )
            local[key] = with_values(jt, jt.values() - found[0].rows.start)
        return local

    def register_post_lookup_tracker_fn(self, record_fn: Callable[..., None]) -> None:
        """Refuse with a NotImplementedError: nobody is told of look-ups.

        Args:
            record_fn: which would be called.
        """
        raise NotImplementedError(
            "`register_post_lookup_tracker_fn` should not be called: nothing tracks look-ups here. "
            f"Received {record_fn!r}."
        )


_MAPS = "_managed_collision_modules."


def _show_wholes(
    maps: ShardedManagedCollisionCollection, state: dict[str, Any], prefix: str, _: object
) -> None:
    maps.states.show_wholes(state, prefix + _MAPS)


def _take_parts(
    maps: ShardedManagedCollisionCollection, state: dict[str, Any], prefix: str, *_: object
) -> None:
    maps.states.take_parts(state, prefix + _MAPS)


def _settle(maps: ShardedManagedCollisionCollection, _: object) -> None:
    maps.states.settle()


def _part_of(
    module: ManagedCollisionModule, part: MapPart, device: torch.device
) -> ManagedCollisionModule:
    """Return the map of some rows; of all rows, the very one that there is."""
    first = module.output_offset
    if part.rows == range(first, first + module.output_size()):
        return module.to_empty(device=device) if module.device.type == "meta" else module.to(device)
    made = module.rebuild_with_output_id_range((part.rows.start, part.rows.stop), None, device)
    return made.train(module.training)


def _refuse_codecs(registry: dict[str, QuantizedCommCodecs] | None) -> None:
    if registry:
        raise ValueError(
            "`qcomm_codecs_registry` of maps should be None, and be given to the sharder of the tables: ids and "
            f"rows are sent as they are. Received codecs of {sorted(registry)}."
        )


class ManagedCollisionCollectionSharder(BaseEmbeddingSharder[ManagedCollisionCollection]):
    """Spreads the maps of a `ManagedCollisionCollection` over ranks.

    Args:
        qcomm_codecs_registry: must be None: ids and rows are exchanged as they are.
    """

    def __init__(self, qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None) -> None:
        _refuse_codecs(qcomm_codecs_registry)
        super().__init__(None, qcomm_codecs_registry)

    def shard(  # type: ignore[override]
        self,
        module: ManagedCollisionCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        embedding_shardings: Sequence[object] = (),
        device: torch.device | None = None,
        use_index_dedup: bool = False,
        *,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionCollection:
        """Return the maps spread over ranks.

        Args:
            module: the maps, which are given away.
            params: where the tables go.
            env: the ranks.
            embedding_shardings: must be empty: ``params`` say where rows are.
            device: where this rank has its maps. Default: the CPU.
            use_index_dedup: must be False: maps count how often each id comes.
            module_fqn: its path in the model, for errors.
        """
        return ShardedManagedCollisionCollection(
            module,
            params,
            env,
            torch.device("cpu") if device is None else device,
            embedding_shardings,
            self.qcomm_codecs_registry,
            use_index_dedup,
            module_fqn=module_fqn,
        )

    @property
    def module_type(self) -> type[ManagedCollisionCollection]:
        """What it shards."""
        return ManagedCollisionCollection

    def shardable_parameters(self, module: ManagedCollisionCollection) -> dict[str, nn.Parameter]:
        """Return nothing: maps have no parameters, and go where the rows of their tables go.

        Args:
            module: the maps.
        """
        return {}
