"""Where there is no plan: the small changes after which there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from torchrec.distributed._units import bytes_to_text, round_up_bytes
from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._shortage import Shortage
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.types import ShardingType

__all__ = ["Change", "changes_that_fit", "with_half_weights"]

# Seconds that are spent on looking for changes.
_SECONDS = 10.0
_BY_COLUMNS = (
    ShardingType.COLUMN_WISE,
    ShardingType.TABLE_COLUMN_WISE,
    ShardingType.GRID_SHARD,
)


@dataclass(frozen=True)
class Change:
    """What is planned for instead.

    Attributes:
        text: the change in words.
        topology: the ranks.
        constraints: wishes, by name of table.
        halved: name of a table whose weights have 16 bits.
    """

    text: str
    topology: Topology
    constraints: Mapping[str, ParameterConstraints]
    halved: str | None = None


def changes_that_fit(
    shortage: Shortage,
    topology: Topology,
    constraints: Mapping[str, ParameterConstraints],
    sharding_types: Sequence[str],
    fits: Callable[[Change], bool],
) -> list[str]:
    """Return the smallest change of each kind after which there is a plan, in words, the smallest first.

    Args:
        shortage: which table does not fit.
        topology: the ranks, with all memory.
        constraints: wishes, by name of table.
        sharding_types: those that the table's sharder knows.
        fits: tries one.
    """
    deadline = time.monotonic() + _SECONDS
    table = shortage.options[0]
    kinds: list[Iterator[Change]] = [
        _other_types(table, topology, constraints, sharding_types),
        _half(table, topology, constraints),
        _more_ranks(topology, constraints),
        _more_memory(shortage.missing, topology, constraints),
    ]
    found = []
    for kind in kinds:
        for change in kind:
            if time.monotonic() > deadline:
                break
            if fits(change):
                found.append(change.text)
                break
    return found


def with_half_weights(space: Sequence[ShardingOption], table: str) -> list[ShardingOption]:
    """Return ways to place tables where the weights of one have 16 bits.

    Args:
        space: all ways of all tables.
        table: its name.
    """
    return [_halved(option) if option.name == table else option for option in space]


def _halved(option: ShardingOption) -> ShardingOption:
    other = copy(option)
    numbers = 2 if option.compute_kernel == "dense" else 1  # a gradient is as wide as its weight
    saved = max(0, option.tensor.element_size() - 2) * numbers
    other.shards = []
    for shard in option.shards:
        storage, size = shard.storage or Storage(0, 0), shard.size[0] * shard.size[1] * saved
        less = Storage(0, size) if storage.hbm < size else Storage(size, 0)
        other.shards.append(replace(shard, storage=storage - less))
    return other


def _other_types(
    table: ShardingOption,
    topology: Topology,
    constraints: Mapping[str, ParameterConstraints],
    sharding_types: Sequence[str],
) -> Iterator[Change]:
    wishes = constraints.get(table.name) or ParameterConstraints()
    columns = table.tensor.shape[1]
    widths = [
        width for width in (128, 64, 32, 16, 8, 4) if width < columns and columns % width == 0
    ]
    for kind in (ShardingType.COLUMN_WISE, ShardingType.ROW_WISE, *_BY_COLUMNS[1:]):
        if kind.value not in sharding_types:
            continue
        known = wishes.sharding_types
        types = None if known is None else [*known, kind.value]
        if kind in _BY_COLUMNS:
            for width in widths:
                text = (
                    f"{kind.value} for table {table.name!r} with min_partition={width}, "
                    f"columns in {columns // width} parts"
                )
                wished = replace(wishes, sharding_types=types, min_partition=width)
                yield Change(text, topology, {**constraints, table.name: wished})
        elif types is not None:
            wished = replace(wishes, sharding_types=types)
            text = f"{kind.value} for table {table.name!r}"
            yield Change(text, topology, {**constraints, table.name: wished})


def _half(
    table: ShardingOption, topology: Topology, constraints: Mapping[str, ParameterConstraints]
) -> Iterator[Change]:
    if table.tensor.element_size() > 2:
        yield Change(f"FP16 for table {table.name!r}", topology, constraints, table.name)


def _more_ranks(
    topology: Topology, constraints: Mapping[str, ParameterConstraints]
) -> Iterator[Change]:
    more = 1
    while more <= max(topology.world_size, 1):
        text = "1 rank more" if more == 1 else f"{more} ranks more"
        yield Change(text, topology.with_ranks(topology.world_size + more), constraints)
        more *= 2


def _more_memory(
    missing: int, topology: Topology, constraints: Mapping[str, ParameterConstraints]
) -> Iterator[Change]:
    on_host = topology.compute_device == "cpu"
    for factor in (1, 1.25, 2, 4, 8, 16):
        more = round_up_bytes(max(missing, 1) * factor)
        extra = Storage(0, more) if on_host else Storage(more, 0)
        yield Change(
            f"{bytes_to_text(more)} more memory on each rank",
            topology.with_storage(lambda storage: storage + extra),  # noqa: B023
            constraints,
        )
