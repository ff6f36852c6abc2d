"""The tables of a collection, spread over ranks: their parts, who trains them, and what a state has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchrec.distributed.block_tables import Part, new_part
from torchrec.distributed.checks import check_batch, named_collection
from torchrec.distributed.coding import check_codecs
from torchrec.distributed.exchange import LookupOptions
from torchrec.distributed.fused_params import optimizer_of
from torchrec.distributed.initial import fill_block, reset_values
from torchrec.distributed.layout import Shard, checked_sharding, shards_of
from torchrec.distributed.lookup import ShardedLookup
from torchrec.distributed.parts import load_block
from torchrec.distributed.placement import Block, TablePlacement
from torchrec.distributed.replicated_update import ReplicatedTables
from torchrec.distributed.state import ShardedTable, sharded_table, step_elsewhere
from torchrec.distributed.table_dtensor import as_dtensor
from torchrec.distributed.types import (
    ParameterSharding,
    ShardingEnv,
    ShardingEnv2D,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.collection import TableShard
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, ShardingType
from torchrec.modules.tables import OutputType, Tables
from torchrec.ops.embedding import Ids, choose_rows, new_table
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.embedding_optimizer import ShownUpdates
from torchrec.optim.marks import (
    has_torchs_optimizer_in_backward,
    pass_on_torchs_optimizer_in_backward,
)
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate
from torchrec.optim.wholes import set_whole
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["ShardedTables"]


class _TableSource(Protocol):
    """What tables are made of: a collection, or tables that are sharded already."""

    @property
    def output_type(self) -> OutputType: ...

    @property
    def output_dtype(self) -> torch.dtype: ...

    def table_configs(self) -> Sequence[BaseEmbeddingConfig]: ...

    def table_shards(self, table: str) -> list[TableShard]: ...


@dataclass(frozen=True)
class _Former:
    """Sharded tables as others are made of them: of the same kinds, with none of the weights."""

    configs: Sequence[BaseEmbeddingConfig]
    dtypes: Mapping[str, torch.dtype]
    output_type: OutputType
    output_dtype: torch.dtype

    def table_configs(self) -> Sequence[BaseEmbeddingConfig]:
        return self.configs

    def table_shards(self, table: str) -> list[TableShard]:
        (config,) = (each for each in self.configs if each.name == table)
        rows, columns = range(config.num_rows), range(config.embedding_dim)
        shape = len(rows), len(columns)
        weight = torch.empty(shape, dtype=self.dtypes[table], device="meta")
        return [TableShard(rows, columns, weight)]


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
        former: the same tables, under another plan. These keep the parts of those that stay where they are, and have
            memory, of no values yet, for the others. Default: the weights are those of the module.
    """

    def __init__(
        self,
        module: _TableSource,
        sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None,
        fused_params: Mapping[str, Any] | None,
        prefix: str,
        options: LookupOptions,
        path: str,
        former: ShardedTables | None = None,
    ) -> None:
        check_codecs(options.codecs, options.exact)
        self.prefix, self._options, self.path = prefix, options, path
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
            config.name: TablePlacement(
                config.name, self.shards_under(config, self.sharding[config.name])
            )
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
        seed = None
        if former is None:
            seed = self._common_seed(any(weight.is_meta for weight in sources.values()))
        kept = {} if former is None else self._parts_in_place(former)
        self._parts = {
            c.name: kept.get(c.name) or self._new_part(c, sources[c.name], seed)
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
            name = config.name
            if former is None:
                self._take_over(config, sources[name])
                self._make_alike(name)
            elif name not in kept:
                self._train_as(config, former.parameter(name))
            elif name in former._elsewhere:
                self._elsewhere[name] = former._elsewhere[name]
        if former is None:
            self._name_wholes()

    def shards_under(self, config: BaseEmbeddingConfig, sharding: ParameterSharding) -> list[Shard]:
        """Return where the parts of a table are under a plan, once that has been checked."""
        shape = config.num_rows, config.embedding_dim
        return shards_of(config.name, shape, sharding, self.world_size, self.path)

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

    def rows_here(self, features: KeyedJaggedTensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the rows that this rank looks up by itself, of tables that it has whole: int64 ``(N,)``."""
        if not self.here.configs:
            return
        _, spec, _ = self.here.lookup_of(features.keys())
        starts, sizes = features.offset_per_key(), features.length_per_key()
        counts = [sizes[slot.key] for slot in spec.slots]
        first = [starts[slot.key] for slot in spec.slots]
        ids = Ids(features.values(), first, counts, features.stride())
        rows = choose_rows(spec, ids, features.offsets())[0].long()
        for slot, chosen in zip(spec.slots, rows.split(counts), strict=True):
            yield self.here.configs[slot.table].name, chosen[chosen >= 0]

    def rows_of(self, table: str, rows: Tensor, state: str | None = None) -> Tensor:
        """Return copies of rows that this rank has, as far as it has their columns.

        Args:
            table: its name.
            rows: of the whole table, int64 ``(N,)``.
            state: of these rows, in place of their weights, see `state_of`. Default: weights.
        """
        values = self.parameter(table).detach() if state is None else self.state_of(table, state)
        return values.index_select(0, self._places(table, rows))

    def rows_held(self, table: str, rows: Tensor) -> Tensor:
        """Return those of some rows that this rank has something of.

        Args:
            table: its name.
            rows: of the whole table, int64 ``(N,)``.
        """
        return rows[self._places(table, rows) >= 0]

    def _places(self, table: str, rows: Tensor) -> Tensor:
        """Return where rows are in this rank's part of a table; -1: elsewhere."""
        (config,) = (each for each in self.configs if each.name == table)
        block, places, at = self.block(config), torch.full_like(rows, -1), 0
        for there in () if block is None else block.rows:
            inside = (rows >= there.start) & (rows < there.stop)
            places = torch.where(inside, rows - there.start + at, places)
            at += len(there)
        return places

    def state_of(self, table: str, state: str) -> Tensor:
        """Return a state of this rank's part of a table that the backward pass updates, in its memory.

        Args:
            table: its name.
            state: its name: ``"sum"``, say.

        Returns:
            ``(rows, columns)``, or ``(rows, 1)`` of a state that has one number a row.
        """
        owner = owner_of(self.parameter(table))
        if not isinstance(owner, TableUpdate) or not owner.in_backward:
            raise ValueError(
                f"Table '{table}' should be updated in the backward pass. Received one that is not."
            )
        owner.place()
        return owner.states[state]

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

    def _new_part(self, config: BaseEmbeddingConfig, source: Tensor, seed: int | None) -> Part:
        """Return this rank's part of a table: of the weights there are, or of new ones; of none without a seed."""
        block = self.block(config)
        if block is None:
            weight = torch.empty((0, config.embedding_dim), dtype=source.dtype, device=self.device)
        else:
            weight = new_table(block.num_rows, block.num_columns, source.dtype, self.device)
            with torch.no_grad():
                if not source.is_meta:
                    shape = config.num_rows, config.embedding_dim
                    load_block(config.name, block, weight, source.detach(), shape)
                elif seed is not None:
                    fill_block(config, block, weight, seed)
        is_copy = self.wire is not None and self.is_replicated(config.name)
        part = new_part(config, weight, is_copy)
        if isinstance(source, nn.Parameter):  # which may have been frozen since it was made
            part.weight.requires_grad_(source.requires_grad)
        return part

    def _parts_in_place(self, former: ShardedTables) -> dict[str, Part]:
        """Return the parts of tables that lie where they lay, on every rank."""
        return {
            name: part
            for name, part in former._parts.items()
            if self.is_here(name) or former.placements[name].shards == self.placements[name].shards
        }

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
        former, owner = owner_of(source), self._train_as(config, source)
        block = self.block(config)
        if owner is None or not isinstance(former, TableUpdate):
            return
        owner.step.copy_(former.step)
        for name, state in owner.states.items():
            kept = former.states.get(name)
            if block is not None and kept is not None and not kept.is_meta:
                columns = block.columns if kept.shape[1] > 1 else (range(1),)
                shape = config.num_rows, kept.shape[1]
                load_block(config.name, Block(block.rows, columns), state, kept, shape)

    def _train_as(self, config: BaseEmbeddingConfig, source: Tensor) -> TableUpdate | None:
        """Train a part by the rule of a weight; return what does, if the backward pass updates it."""
        former, weight = owner_of(source), self._parts[config.name].weight
        block = self.block(config)
        if self.is_replicated(config.name) and config.optimizer is None:
            return None  # whatever else was asked for gives way to the optimizer around the model
        pass_on_torchs_optimizer_in_backward(source, weight)
        if not isinstance(former, TableUpdate):
            return None
        if block is None:
            # No optimizer should take the part that is not here, and all ranks know its rule.
            self._elsewhere[config.name] = TableUpdate(config.name, former.rule)
            self._elsewhere[config.name].own(weight)
        if former.applied is not None:
            apply_optimizer_in_backward(former.applied[0], [weight], former.applied[1])
        owner = owner_of(weight)
        if not isinstance(owner, TableUpdate) or owner.group is None or former.group is None:
            return None
        owner.group.update({name: v for name, v in former.group.items() if name != "params"})
        owner.place()
        return owner

    def under(self, sharding: Mapping[str, ParameterSharding], env: ShardingEnv) -> ShardedTables:
        """Return the same tables under another plan, with memory for parts that are to come; nothing is sent.

        Args:
            sharding: of each table, by name.
            env: the ranks, the same ones.
        """
        dtypes = {name: part.weight.dtype for name, part in self._parts.items()}
        former = _Former(self.configs, dtypes, self._output_type, self.dtype)
        made = ShardedTables(
            former, sharding, env, self.device, None, self.prefix, self._options, self.path, self
        )
        for name, part in self._parts.items():
            made.parameter(name).requires_grad_(part.weight.requires_grad)
        return made

    def retire(self, heir: ShardedTables) -> None:
        """Leave training to tables under another plan; what was looked up before has no backward pass any more.

        Args:
            heir: what `under` has returned, with all values.
        """
        for tables in self._lookups():
            for update in dict.fromkeys(tables.updates()):
                update.leave(tables)  # the heir has joined those of tables that stay
        if self.away is not None:
            self.away.retire()
        heir._name_wholes()

    def parameter(self, table: str) -> nn.Parameter:
        """Return this rank's part of a table; empty if it has none.

        Args:
            table: its name.
        """
        return self._parts[table].weight

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

    def shown_updates(self, names: Mapping[str, str] | None = None) -> ShownUpdates:
        """Return what an optimizer shows of the tables that the backward pass updates; of each, this rank's part.

        Args:
            names: see `updates`.
        """
        split = None if self.away is None else self.away.tables.split
        return ShownUpdates.of(self.updates(names), split, self.whole_states)

    def whole_states(self, update: TableUpdate) -> Mapping[str, Tensor]:
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
        table = self._sharded(config, weight)
        return table if self._mesh is None else as_dtensor(table, self._mesh)

    def whole(self, config: BaseEmbeddingConfig) -> Tensor:
        """Return a table of which this rank has some parts, in their memory, or the copy that it has."""
        weight = self._parts[config.name].weight.detach()
        is_part = self._shows_parts and not self.is_replicated(config.name)
        return self._sharded(config, weight) if is_part else weight

    def _sharded(self, config: BaseEmbeddingConfig, weight: Tensor) -> ShardedTable:
        shape, placement = (config.num_rows, config.embedding_dim), self.placements[config.name]
        name = f"Table '{config.name}'"
        return sharded_table(name, weight, shape, placement, self.rank, self.wire)

    def load(self, config: BaseEmbeddingConfig, value: object) -> Tensor:
        """Load this rank's part of a table that was saved, and return it."""
        weight, block = self._parts[config.name].weight, self.block(config)
        # Without a block as well, so that what does not fit is refused by all ranks.
        shape = config.num_rows, config.embedding_dim
        load_block(config.name, block or Block((), ()), weight.detach(), value, shape)
        return weight


def _named(path: str) -> str:
    return f"Module '{path}'" if path else "The collection"


def _sources(module: _TableSource) -> dict[str, Any]:
    return {config.name: module.table_shards(config.name) for config in module.table_configs()}
