"""Where there is no plan: the small changes after which there is one."""

from __future__ import annotations

import math
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

# Seconds that are spent on looking for a change of a kind; one is tried in any case.
_SECONDS = 4.0
# How often the range is halved in which the least memory is that would do.
_HALVINGS = 4
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
) -> tuple[list[str], bool]:
    """Return the smallest change of each kind after which there is a plan, in words, the smallest first.

    Args:
        shortage: which table does not fit.
        topology: the ranks, with all memory.
        constraints: wishes, by name of table.
        sharding_types: those that the table's sharder knows.
        fits: tries one.

    Returns:
        the changes, and whether there was time to try all others.
    """
    table = shortage.options[0]
    kinds: list[Iterator[Change]] = [
        _other_types(table, topology, constraints, sharding_types),
        _half(table, topology, constraints),
        _more_ranks(shortage, topology, constraints),
    ]
    found, all_tried = list[str](), True
    for kind in kinds:
        deadline = time.monotonic() + _SECONDS
        for number, change in enumerate(kind):
            if number and time.monotonic() > deadline:
                all_tried = False
                break
            if fits(change):
                found.append(change.text)
                break
    factor, tried = _least_factor(
        lambda factor: fits(_more_memory(factor, shortage, topology, constraints))
    )
    if factor is not None:
        found.append(_more_memory(factor, shortage, topology, constraints).text)
    return found, all_tried and tried


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
    shortage: Shortage, topology: Topology, constraints: Mapping[str, ParameterConstraints]
) -> Iterator[Change]:
    """Up to twice as many, from what all tables need together on."""
    ranks = topology.world_size
    least = math.ceil(shortage.needed * ranks / shortage.room) if shortage.room > 0 else 2 * ranks
    for more in range(max(1, least - ranks), ranks + 1):
        text = "1 rank more" if more == 1 else f"{more} ranks more"
        yield Change(text, topology.with_ranks(ranks + more), constraints)


def _least_factor(fits: Callable[[float], bool]) -> tuple[float | None, bool]:
    """Return about the least number that fits, and whether there was time to find out that none does."""
    deadline, low = time.monotonic() + _SECONDS, 1.0
    for high in (1.0, 1.25, 2.0, 4.0, 8.0, 16.0):
        if high > 1 and time.monotonic() > deadline:
            return None, False
        if fits(high):
            break
        low = high
    else:
        return None, True
    for _ in range(_HALVINGS):
        if high == low or time.monotonic() > deadline:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high, True


def _more_memory(
    factor: float,
    shortage: Shortage,
    topology: Topology,
    constraints: Mapping[str, ParameterConstraints],
) -> Change:
    """So many times what is missing for the table, or on average for all."""
    average = math.ceil((shortage.needed - shortage.room) / topology.world_size)
    more = round_up_bytes(max(shortage.missing, average, 1) * factor)
    extra = Storage(0, more) if topology.compute_device == "cpu" else Storage(more, 0)
    return Change(
        f"{bytes_to_text(more)} more memory on each rank",
        topology.with_storage(lambda storage: storage + extra),
        constraints,
    )
