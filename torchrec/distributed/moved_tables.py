"""The tables of a collection, brought from where they are under one plan to where they are under another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from torchrec.distributed.layout import checked_sharding
from torchrec.distributed.moves import move_parts
from torchrec.distributed.placement import Block, TablePlacement
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.state import ShardedTable
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, ShardingType
from torchrec.ops.embedding.updates import RULES

__all__ = ["described_moves", "moved_tables", "replace"]


def described_moves(
    tables: ShardedTables, changes: Mapping[str, ParameterSharding]
) -> dict[str, str]:
    """Return where tables go, by what that is, as all ranks should be given it.

    Args:
        tables: as they are.
        changes: where some of them go, by name.

    Raises:
        ValueError: for a table that there is not, a plan that does not fit, copies that come or go, a table that
            moves and that an optimizer around the model trains, and while gradients are accumulated.
    """
    for name, sharding in changes.items():
        if name not in tables.sharding:
            raise ValueError(
                f"Changes should be of tables of {tables.named}. Received '{name}', which it does not have."
            )
        kinds = tables.sharding[name].sharding_type, sharding.sharding_type
        if kinds[0] != kinds[1] and ShardingType.DATA_PARALLEL.value in kinds:
            raise ValueError(
                f"Table '{name}' of {tables.named} should be spread over ranks before and after. "
                f"Received a change from {kinds[0]} to {kinds[1]}."
            )
    checked_sharding(list(changes), changes, tables.named, tables.path)
    updates = {update.table: update for update in tables.updates().values()}
    for config in tables.configs:
        name, update = config.name, updates.get(config.name)
        if update is not None and (update.waiting or update.collecting):
            received = "some, of a backward pass" if update.waiting else "a call"
            raise ValueError(
                f"Table '{name}' should have no gradients that wait, or will, where tables are brought to other "
                f"ranks. Received {received} within `accumulate()`."
            )
        if name not in changes:
            continue
        shards = TablePlacement(name, tables.shards_under(config, changes[name])).shards
        stays = tables.is_here(name) or tables.placements[name].shards == shards
        in_backward = update is not None and update.in_backward
        if not stays and not in_backward and tables.parameter(name).requires_grad:
            raise ValueError(
                f"Table '{name}' should be updated in the backward pass, to be brought to other ranks: an "
                "optimizer around the model has its former part. Received one without such an optimizer."
            )
    return {
        f"the new sharding of table '{name}' of {tables.named}": str(sharding)
        for name, sharding in changes.items()
    }


def moved_tables(
    tables: ShardedTables, changes: Mapping[str, ParameterSharding], env: ShardingEnv
) -> ShardedTables:
    """Return tables with the same weights and states that lie elsewhere; all ranks call this.

    Those that stay where they are keep their parts. The others are whole beside the former ones, which are as they were
    until `replace` is called.

    Args:
        tables: as they are.
        changes: where some of them go, which `described_moves` has found nothing wrong with.
        env: the ranks, the same ones.

    Raises:
        Exception: on all ranks, if one of them has no memory for its parts, say; nothing has changed then.
    """
    new_tables = partial(tables.under, {**tables.sharding, **changes}, env)
    if tables.wire is None:
        moved = new_tables()
        _bring_all(tables, moved)
        return moved
    made: list[ShardedTables] = []
    try:
        tables.wire.attempt(
            lambda: made.append(new_tables()),
            f"memory for other parts of the tables of {tables.named}",
        )
        _bring_all(tables, made[0])
    except Exception:
        for moved in made:
            moved.retire(tables)
        raise
    return made[0]


def replace(tables: ShardedTables, moved: ShardedTables) -> None:
    """Train tables that lie elsewhere from now on: a change of this rank alone, which nothing can fail in.

    What was looked up before has no backward pass any more.

    Args:
        tables: that train nothing afterwards.
        moved: what `moved_tables` has made of them.
    """
    former = tables.updates()
    for name, update in moved.updates().items():
        if update is not former[name] and update.rule is not None:
            update.take_group(former[name])
    tables.retire(moved)


def _bring_all(tables: ShardedTables, moved: ShardedTables) -> None:
    """Write all weights and states of the tables that move."""
    configs = {config.name: config for config in tables.configs}
    for name, config in configs.items():
        if moved.parameter(name) is not tables.parameter(name):
            _bring(moved, config, tables.whole(config), moved.whole(config))
    former = tables.updates()
    for name, update in moved.updates().items():
        if update is former[name] or update.rule is None:
            continue
        config, is_per_row = configs[update.table], RULES[update.rule.optimizer].state
        states = moved.whole_states(update)
        for state, value in tables.whole_states(former[name]).items():
            if state == "step":
                update.step.copy_(_shared(tables.whole(config), former[name].step))
            else:
                _bring(moved, config, value, states[state], is_per_row.get(state, False))


def _bring(
    tables: ShardedTables,
    config: BaseEmbeddingConfig,
    source: Tensor,
    target: Tensor,
    is_per_row: bool = False,
) -> None:
    """Write a table, or a state, that lies elsewhere into the parts that these ranks have of it."""
    assert isinstance(source, ShardedTable)
    assert isinstance(target, ShardedTable)
    blocks = [tables.placements[config.name].block(rank) for rank in range(tables.world_size)]
    if is_per_row:
        blocks = [b if b is None else Block(b.rows, (range(1),)) for b in blocks]
    move_parts(source, target, blocks, tables.wire)


def _shared(whole: Tensor, step: Tensor) -> Tensor:
    """Return a step count, which ranks have that have something of a table, on all."""
    assert isinstance(whole, ShardedTable)
    return whole.shared_number(step)
