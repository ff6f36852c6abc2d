"""A collection whose tables are spread over ranks: what pooled and sequence collections have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.distributed._awaitable import Deferred
from torchrec.distributed.block_tables import new_part
from torchrec.distributed.checks import check_batch, named_collection
from torchrec.distributed.coding import check_codecs
from torchrec.distributed.exchange import LookupOptions
from torchrec.distributed.fused_params import optimizer_of
from torchrec.distributed.initial import fill_block, reset_values
from torchrec.distributed.layout import Shard, checked_sharding, shards_of
from torchrec.distributed.lookup import ShardedLookup, Step
from torchrec.distributed.parts import load_block
from torchrec.distributed.placement import Block, TablePlacement
from torchrec.distributed.replicated_update import ReplicatedTables
from torchrec.distributed.state import as_dtensor, sharded_table, step_elsewhere
from torchrec.distributed.table_store import ShardedTableStore
from torchrec.distributed.types import (
    Awaitable,
    NoWait,
    ParameterSharding,
    ShardedModule,
    ShardingEnv,
    ShardingEnv2D,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.collection import TableStore
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, ShardingType
from torchrec.modules.stray_ids import add_counts
from torchrec.modules.table_collection import TableCollection
from torchrec.modules.tables import Tables
from torchrec.ops.embedding import new_table
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.marks import (
    has_torchs_optimizer_in_backward,
    pass_on_torchs_optimizer_in_backward,
)
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate
from torchrec.optim.wholes import set_whole
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = ["ShardedTableCollection", "ShardedTables", "StepContext", "tables_in"]


class ShardedTables:
    """The tables of a collection, spread over ranks as a plan says.

    Each is looked up in one of two ways: those that every rank has whole (replicated, or of a world
    of one rank) by the rank itself, the others by exchange.

    Args:
        module: the collection; may be on ``meta``.
        sharding: of each table, by name.
        env: the ranks.
        device: of the parts.
        fused_params: see `BaseEmbeddingSharder`.
        prefix: of the names of the weights.
        options: how those are looked up that lie on several ranks.
        path: of the module in its model, for errors.
    """

    def __init__(
        self,
        module: TableCollection,
        sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None,
        fused_params: Mapping[str, Any] | None,
        prefix: str,
        options: LookupOptions,
        path: str,
    ) -> None:
        check_codecs(options.codecs, options.exact)
        self.prefix = prefix
        self.configs = list(module.table_configs())
        self.named = named_collection(path, [config.name for config in self.configs])
        self._output_type, self.dtype = module.output_type, module.output_dtype
        if isinstance(env, ShardingEnv2D):  # its ranks are those of one group, and know of no other
            env = ShardingEnv.from_process_group(env.sharding_pg)
        self._mesh = env.device_mesh if env.output_dtensor else None
        self._shows_parts = env.process_group is not None
        self.world_size, self.rank = env.world_size, env.rank
        self.wire: Wire | None = None
        if env.process_group is not None and self.world_size > 1:
            self.wire = Wire(env.process_group)
        self.sharding = checked_sharding(
            [c.name for c in self.configs], sharding, _named(path), path
        )
        self.placements = {
            config.name: TablePlacement(config.name, self._shards(config, path))
            for config in self.configs
        }
        if self.world_size > 1 and self.wire is None:
            raise ValueError(
                f"{_named(path)} should be given a process group for its {self.world_size} ranks. "
                "Received none."
            )
        self.device = torch.device("cpu") if device is None else device
        sources = {name: shards[0].weight for name, shards in _sources(module).items()}
        self._train_by(fused_params, sources)
        seed = self._common_seed(any(weight.is_meta for weight in sources.values()))
        shared = {
            c.name: self.wire is not None and self.is_replicated(c.name) for c in self.configs
        }
        self._parts = {
            c.name: new_part(c, self._new_part(c, sources[c.name], seed), shared[c.name])
            for c in self.configs
        }
        self.parts = nn.ModuleDict(self._parts)
        here = [c for c in self.configs if self.is_here(c.name)]
        away = [c for c in self.configs if not self.is_here(c.name)]
        holders = [self._parts[config.name] for config in here]
        self.here = ReplicatedTables(here, holders, prefix, self.wire, path)
        self.away: ShardedLookup | None = None
        if away and self.wire is not None:
            self.away = ShardedLookup(
                away,
                [self.placements[c.name] for c in away],
                [self._parts[c.name] for c in away],
                prefix,
                self.wire,
                options,
                self.dtype,
                path,
                self.here.take_part,
            )
        self._elsewhere: dict[str, TableUpdate] = {}  # of tables that this rank has nothing of
        for config in self.configs:
            self._take_over(config, sources[config.name])
            self._make_alike(config.name)
        self._name_wholes()

    def _shards(self, config: BaseEmbeddingConfig, path: str) -> list[Shard]:
        shape = config.num_rows, config.embedding_dim
        return shards_of(config.name, shape, self.sharding[config.name], self.world_size, path)

    def is_replicated(self, table: str) -> bool:
        """Whether every rank has a copy of a table."""
        return self.sharding[table].sharding_type == ShardingType.DATA_PARALLEL.value

    def is_layer(self, table: str) -> bool:
        """Whether a table is trained as layers are: copies whose gradients are added up for an optimizer."""
        owner = owner_of(self._parts[table].weight)
        in_backward = isinstance(owner, TableUpdate) and owner.in_backward
        return self.is_replicated(table) and not in_backward

    def is_here(self, table: str) -> bool:
        """Whether this rank looks a table up by itself: it has all of it."""
        return self.world_size == 1 or self.is_replicated(table)

    def of_all(self, counts: Tensor, here: bool) -> Tensor:
        """Return numbers of all tables, from those of the ones that are looked up here, or by exchange."""
        if len(counts) == len(self.configs):
            return counts
        found = counts.new_zeros(len(self.configs))
        found[[self.is_here(config.name) == here for config in self.configs]] = counts
        return found

    def check_here(self, features: KeyedJaggedTensor) -> None:
        """Refuse what the look-up of replicated tables will refuse, while all ranks can still be told."""
        if self.wire is not None and self.here.configs:
            check_batch(self.here.configs, features)

    def block(self, config: BaseEmbeddingConfig) -> Block | None:
        """Return what this rank holds of a table; None: nothing."""
        if self.is_here(config.name):
            return Block((range(config.num_rows),), (range(config.embedding_dim),))
        return self.placements[config.name].block(self.rank)

    def _common_seed(self, needed: bool) -> int:
        """Return what first weights are drawn by, the same on all ranks."""
        if needed and self.wire is not None:
            return int(self.wire.share(torch.initial_seed(), 0, "first weights"))
        return torch.initial_seed()

    def _new_part(self, config: BaseEmbeddingConfig, source: Tensor, seed: int) -> Tensor:
        """Return this rank's part of a table: of the weights there are, or of new ones."""
        block = self.block(config)
        if block is None:
            return torch.empty((0, config.embedding_dim), dtype=source.dtype, device=self.device)
        weight = new_table(block.num_rows, block.num_columns, source.dtype, self.device)
        with torch.no_grad():
            if source.is_meta:
                fill_block(config, block, weight, seed)
            else:
                shape = config.num_rows, config.embedding_dim
                load_block(config.name, block, weight, source.detach(), shape)
        return weight

    # How the tables are trained.

    def _train_by(
        self, fused_params: Mapping[str, Any] | None, sources: Mapping[str, Tensor]
    ) -> None:
        """Have tables without an optimizer of their own updated in the backward pass, if it is asked for."""
        if not fused_params:
            return
        optimizer, options = optimizer_of(fused_params)
        for name, source in sources.items():
            owner = owner_of(source)
            own = isinstance(owner, TableUpdate) and owner.rule is not None
            own = own or has_torchs_optimizer_in_backward(source)
            if not own and not self.is_replicated(name) and isinstance(source, nn.Parameter):
                apply_optimizer_in_backward(optimizer, [source], options)

    def _take_over(self, config: BaseEmbeddingConfig, source: Tensor) -> None:
        """Train a part as the table was trained: by the same rule, with its part of the state."""
        former, weight = owner_of(source), self._parts[config.name].weight
        block = self.block(config)
        if self.is_replicated(config.name) and config.optimizer is None:
            return  # whatever else was asked for gives way to the optimizer around the model
        pass_on_torchs_optimizer_in_backward(source, weight)
        if not isinstance(former, TableUpdate):
            return
        if block is None:
            # No optimizer should take the part that is not here, and all ranks know its rule.
            self._elsewhere[config.name] = TableUpdate(config.name, former.rule)
            self._elsewhere[config.name].own(weight)
        if former.applied is not None:
            apply_optimizer_in_backward(former.applied[0], [weight], former.applied[1])
        owner = owner_of(weight)
        if not isinstance(owner, TableUpdate) or owner.group is None or former.group is None:
            return
        owner.group.update({name: v for name, v in former.group.items() if name != "params"})
        owner.place()
        owner.step.copy_(former.step)
        for name, state in owner.states.items():
            kept = former.states.get(name)
            if block is not None and kept is not None and not kept.is_meta:
                columns = block.columns if kept.shape[1] > 1 else (range(1),)
                shape = config.num_rows, kept.shape[1]
                load_block(config.name, Block(block.rows, columns), state, kept, shape)

    def _make_alike(self, table: str) -> None:
        """Give all copies of a table that the backward pass updates what the first rank has."""
        weight = self._parts[table].weight
        owner = owner_of(weight)
        if self.wire is None or not self.is_replicated(table) or self.is_layer(table):
            return
        states = owner.states.values() if isinstance(owner, TableUpdate) else ()
        for tensor in (weight.detach(), *states):
            self.wire.broadcast(tensor, 0, f"the first weights of table '{table}'")

    def updates(self, names: Mapping[str, str] | None = None) -> dict[str, TableUpdate]:
        """Return who trains each table that the backward pass updates, by name of the parameter; here or not.

        Args:
            names: of the parameters, by table. Default: those that collections give them.
        """
        found = {}
        for config in self.configs:
            owner = owner_of(self._parts[config.name].weight)
            if isinstance(owner, TableUpdate) and owner.rule is not None:
                usual = f"{self.prefix}.{config.name}.weight"
                found[usual if names is None else names[config.name]] = owner
        return found

    def optimizer(self, names: Mapping[str, str] | None = None) -> EmbeddingFusedOptimizer:
        """Return the optimizer of the tables that the backward pass updates; of each, this rank's part.

        Args:
            names: see `updates`.
        """
        split = None if self.away is None else self.away.tables.split
        return EmbeddingFusedOptimizer(self.updates(names), together=split, shown=self._whole_state)

    def _whole_state(self, update: TableUpdate) -> Mapping[str, Tensor]:
        """Return the state of a table as a whole, of which this rank has some parts."""
        if not self._shows_parts or update.rule is None:
            return update.named_state()
        update.place()
        is_per_row = RULES[update.rule.optimizer].state
        states = {**update.states, "step": update.step}
        return {
            name: self.whole_state(update.table, name, state, is_per_row.get(name, False))
            for name, state in states.items()
        }

    def whole_state(self, table: str, name: str, state: Tensor, is_per_row: bool) -> Tensor:
        """Return what ``state_dict()`` shows of a state of a table's optimizer; one number is as it is."""
        rank, what = self.rank, f"State '{name}' of table '{table}'"
        if not self._shows_parts or self.is_replicated(table):
            return state
        placement = self.placements[table]
        if not state.dim():
            held = placement.block(rank) is not None
            return state if held else step_elsewhere(what, state, self.wire)
        config = next(config for config in self.configs if config.name == table)
        shape = config.num_rows, 1 if is_per_row else config.embedding_dim
        return sharded_table(what, state, shape, placement, rank, self.wire, is_per_row)

    def _name_wholes(self) -> None:
        """Have optimizers of parts show their states as those of the tables."""
        for config in self.configs if self._shows_parts else ():
            if not self.is_replicated(config.name):
                set_whole(self._parts[config.name].weight, self, config.name)

    def _lookups(self) -> list[Tables]:
        return [self.here] if self.away is None else [self.here, self.away.tables]

    def bind(self) -> None:
        """Meet the weights that there are now, those of a copy say, or ones that were cast."""
        for tables in self._lookups():
            tables.bind()
        dtypes = [
            part.weight.dtype for part in self._parts.values()
        ]  # empty ones as well: on all ranks alike
        if dtypes:
            self.dtype = self._output_type.of(reduce(torch.promote_types, dtypes))
        if self.away is not None:
            self.away.dtype = self.dtype
        self._name_wholes()
        for name, elsewhere in self._elsewhere.items():
            if not elsewhere.trains(self._parts[name].weight):
                elsewhere.own(self._parts[name].weight)

    def restart(self) -> None:
        """Meet weights that were loaded: what waits was for the former ones."""
        for tables in self._lookups():
            tables.restart()
        self._name_wholes()

    def discard_gradients(self) -> None:
        """Drop the gradients that were accumulated and not applied."""
        for tables in self._lookups():
            tables.discard_gradients()

    def reset(self) -> None:
        """Give every part its initial weights anew, and no state."""
        seed = self._common_seed(True)
        for config in self.configs:
            block = self.block(config)
            if block is not None:
                with torch.no_grad():
                    fill_block(config, block, self._parts[config.name].weight, seed)
        for tables in self._lookups():
            tables.reset_states()
            tables.restart()

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training, as far as this rank has them."""
        (config,) = (each for each in self.configs if each.name == table)
        block = self.block(config)
        if block is None:
            return
        tables = self.here if self.away is None or self.is_here(table) else self.away.tables
        _, weight, update = tables.table(table)
        places, values = reset_values(config, block, rows, weight.dtype)
        with torch.no_grad():
            weight.index_copy_(0, places, values)
        update.forget_rows(places)

    # State.

    def value_of(self, config: BaseEmbeddingConfig, weight: Tensor) -> Any:
        """Return what ``state_dict()`` shows of a table: the weight, or the whole that it is a part of."""
        if not self._shows_parts or self.is_replicated(config.name):
            return weight
        shape, placement = (config.num_rows, config.embedding_dim), self.placements[config.name]
        name = f"Table '{config.name}'"
        table = sharded_table(name, weight, shape, placement, self.rank, self.wire)
        return table if self._mesh is None else as_dtensor(table, self._mesh)

    def load(self, config: BaseEmbeddingConfig, value: object) -> Tensor:
        """Load this rank's part of a table that was saved, and return it."""
        weight, block = self._parts[config.name].weight, self.block(config)
        if block is not None:
            shape = config.num_rows, config.embedding_dim
            load_block(config.name, block, weight.detach(), value, shape)
        return weight


def tables_in(model: nn.Module) -> list[ShardedTables]:
    """Return the tables of all sharded collections of a model, in its order."""
    found = (
        getattr(child, "tables", None)
        for child in model.modules()
        if isinstance(child, ShardedModule)
    )
    return list(dict.fromkeys(each for each in found if isinstance(each, ShardedTables)))


def append_prefix(prefix: str, name: str) -> str:
    """Join two parts of a name by a dot, if there are two."""
    return f"{prefix}.{name}" if prefix and name else prefix + name


def _named(path: str) -> str:
    return f"Module '{path}'" if path else "The collection"


def _once_agreed(agreement: Awaitable[None], ctx: StepContext) -> Awaitable[StepContext]:
    """Return a step that asks no rank for rows, unless one of them has failed."""
    agreement.wait()
    return NoWait(ctx)


def _sources(module: TableCollection) -> dict[str, Any]:
    return {config.name: module.table_shards(config.name) for config in module.table_configs()}


class StepContext(Multistreamable):
    """What the parts of one forward pass of a sharded collection hand on to each other.

    Attributes:
        features: of this rank's batch.
        step: what is looked up by exchange; None: nothing is.
    """

    features: KeyedJaggedTensor
    step: Step | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        self.features.record_stream(stream)
        if self.step is not None:
            self.step.record_stream(stream)


class ShardedTableCollection(nn.Module):
    """What a collection does whose tables are spread over ranks; its classes are sharded modules as well.

    Its parameters have the names of the unsharded collection; each is this rank's part of the table,
    empty where it has none.
    """

    _tables: ShardedTables
    _out_of_range: Tensor

    def _set_tables(self, tables: ShardedTables) -> None:
        self._tables = tables
        self.add_module(tables.prefix, tables.parts)
        counts = torch.zeros(len(tables.configs), dtype=torch.int64, device="cpu")
        self.register_buffer("_out_of_range", counts, persistent=False)
        self.register_state_dict_post_hook(_show_wholes)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_parts)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    @property
    def tables(self) -> ShardedTables:
        """The tables, and where their parts are."""
        return self._tables

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the parts of tables that this rank updates in the backward pass."""
        return self._tables.optimizer()

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that no data-parallel wrapper should take.

        These are spread over ranks, or updated in the backward pass by all ranks together.

        Args:
            prefix: written before each. Default none.
        """
        for config in self._tables.configs:
            if not self._tables.is_layer(config.name):
                yield append_prefix(prefix, f"{self._tables.prefix}.{config.name}.weight")

    def create_context(self) -> StepContext:
        """Return what the parts of one forward pass hand on to each other."""
        return StepContext()

    def input_dist(
        self, ctx: StepContext, features: KeyedJaggedTensor, error: Exception | None = None
    ) -> Awaitable[Awaitable[StepContext]]:
        """Send ids to the ranks that have their rows.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch.
            error: what is wrong with them already, if anything: all ranks raise it.
        """
        try:
            if error is not None:
                raise error
            require_type(features, "`features`", KeyedJaggedTensor)
            ctx.features = self._full_batch(features)
            self._tables.check_here(ctx.features)
        except Exception as failed:
            if self._tables.wire is None:
                raise
            error = failed
        wire = self._tables.wire
        if self._tables.away is not None:
            asked = self._tables.away.ask(features, error)
            return Deferred(lambda: self._asked(ctx, asked.wait()))
        if wire is not None:
            agreement = wire.start_agreeing(error, f"a look-up of {self._tables.named}")
            return Deferred(lambda: _once_agreed(agreement, ctx))
        return NoWait(NoWait(ctx))

    def _asked(self, ctx: StepContext, step: Awaitable[Step]) -> Awaitable[StepContext]:
        def here() -> StepContext:
            ctx.step = step.wait()
            self._count_away(ctx.step.out_of_range)
            return ctx

        return Deferred(here)

    def table_store(self) -> TableStore:
        """Return the tables, of which this rank has some parts."""
        return ShardedTableStore(self._tables, self._out_of_range)

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids of this rank's batches were outside the rows of each table.

        Args:
            reset: start again from 0.
        """
        return self.table_store().out_of_range_counts(reset)

    def _count_here(self, out_of_range: Tensor) -> None:
        add_counts(self._out_of_range, self._tables.of_all(out_of_range, True))

    def _count_away(self, out_of_range: Tensor) -> None:
        add_counts(self._out_of_range, self._tables.of_all(out_of_range, False))

    def _full_batch(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Bring features with batches of their own to the full batch, where they say how."""
        if features.inverse_indices_or_none() is not None:
            return features.expand_inverse()
        return features

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that fused tables have accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        super().zero_grad(set_to_none)
        self._tables.discard_gradients()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tables.bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tables.bind()  # a copy's tables are trained in the backward pass before it has been called, too

    def reset_parameters(self) -> None:
        """Give every table its initial weights anew; and no state."""
        self._tables.reset()

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training: their weights, waiting gradients and states.

        Args:
            table: name of the table.
            rows: of the whole table, int64 ``(N,)``, distinct. Those that this rank has none of are left.
        """
        self._tables.reset_rows(table, rows)

    def weights_loaded(self) -> None:
        """Meet weights that were loaded: what waits, such as gradients, was for the former ones."""
        self._tables.restart()


def _show_wholes(
    collection: ShardedTableCollection, state: dict[str, Any], prefix: str, _: object
) -> None:
    """Have ``state_dict()`` show the whole tables that a rank's parts are of."""
    tables = collection.tables
    for config in tables.configs:
        name = f"{prefix}{tables.prefix}.{config.name}.weight"
        if name in state:
            state[name] = tables.value_of(config, state[name])


def _take_parts(
    collection: ShardedTableCollection, state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Load this rank's parts of tables: at once, so that no second copy of all of them is held."""
    tables = collection.tables
    for config in tables.configs:
        name = f"{prefix}{tables.prefix}.{config.name}.weight"
        if name in state:
            state[name] = tables.load(config, state[name])


def _weights_loaded(collection: ShardedTableCollection, _: object) -> None:
    collection.weights_loaded()
