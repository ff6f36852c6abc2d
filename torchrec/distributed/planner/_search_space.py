"""From ways to place tables, as planners know them, to the plain numbers of the search, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

from torchrec.distributed.planner._messages import messages_ns, shares_of
from torchrec.distributed.planner._options import (
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
)
from torchrec.distributed.planner._problem import Candidate, Choice, Part, Problem, Unit
from torchrec.distributed.planner._topology import Perf, Storage, Topology
from torchrec.distributed.types import ShardingType

__all__ = [
    "GroupOption",
    "SearchSpace",
    "candidates_of",
    "own_unit",
    "part_of",
    "search_space_of",
    "with_ranks",
]


@dataclass(frozen=True)
class GroupOption:
    """Tables that go together, each in one way; most often, one table.

    Attributes:
        options: one for each.
        candidate: the same in numbers.
    """

    options: tuple[ShardingOption, ...]
    candidate: Candidate

    def taken(self, choice: Choice) -> list[ShardingOption]:
        """Return the options with ranks."""
        ranks = [rank for seat in choice.table_seats for rank in seat]
        if len(self.options) > 1:  # each is whole, on the same rank
            return [with_ranks(option, ranks) for option in self.options]
        return [with_ranks(self.options[0], ranks)]


@dataclass(frozen=True)
class SearchSpace:
    """All ways to place the tables of a model.

    Attributes:
        groups: for each group of tables that go together.
        problem: the same in numbers.
        order: of the tables, paths and names.
    """

    groups: tuple[tuple[GroupOption, ...], ...]
    problem: Problem
    order: tuple[tuple[str, str], ...]

    def taken(self, choices: Sequence[Choice]) -> list[ShardingOption]:
        """Return a way for each table, with ranks, in the order of the model."""
        found: dict[tuple[str, str], ShardingOption] = {}
        for groups, choice in zip(self.groups, choices, strict=True):
            for option in groups[choice.candidate.label].taken(choice):
                found[option.path, option.name] = option
        return [found[table] for table in self.order]


def with_ranks(option: ShardingOption, ranks: Sequence[int]) -> ShardingOption:
    """Return a way to place a table with a rank for each part."""
    other = copy(option)
    other.shards = [
        replace(shard, rank=rank) for shard, rank in zip(option.shards, ranks, strict=True)
    ]
    return other


def search_space_of(options: Sequence[ShardingOption], topology: Topology) -> SearchSpace:
    """Return what the search is to choose from.

    Args:
        options: all ways of all tables, with what they take.
        topology: the ranks, with the memory that is left for tables.

    Raises:
        PlannerError: if the wishes for a table leave it no rank, or it should be on the rank of one that is not there.
    """
    tables: dict[tuple[str, str], list[ShardingOption]] = {}
    for option in options:
        tables.setdefault((option.path, option.name), []).append(option)
    groups = []
    for group in _groups(tables):
        of_group = list(_group_options([tables[table] for table in group], topology))
        if not of_group:
            first = tables[group[0]][0]
            names = ", ".join(repr(tables[table][0].name) for table in group[1:])
            ranks = range(topology.world_size)
            allowed = [r for r in ranks if all(_is_allowed(tables[t][0], [r]) for t in group)]
            raise PlannerError(
                f"Table {first.name!r} of module {first.path!r} should be allowed on ranks that one of its sharding "
                f"types can use{f', as should {names} with it' if names else ''}. "
                f"Received {sorted({option.sharding_type for option in tables[group[0]]})} and ranks {allowed}.",
                PlannerErrorType.STRICT_CONSTRAINTS,
            )
        groups.append(tuple(of_group))
    least = sum(min(option.own_bytes for option in of_table) for of_table in tables.values())
    room = tuple(part_of(device.storage - _own(least, topology)) for device in topology.devices)
    items = tuple(tuple(option.candidate for option in group) for group in groups)
    problem = Problem(items, room, messages_ns(options, topology))
    return SearchSpace(tuple(groups), problem, tuple(tables))


def _groups(
    tables: dict[tuple[str, str], list[ShardingOption]],
) -> list[list[tuple[str, str]]]:
    """Return tables that go together, in the order of the first of each group."""
    named = {name: (path, name) for path, name in reversed(tables)}
    leader = {table: table for table in tables}

    def lead(table: tuple[str, str]) -> tuple[str, str]:
        while leader[table] != table:
            table = leader[table]
        return table

    for table, options in tables.items():
        wanted = options[0].dependency
        if wanted is None:
            continue
        if wanted not in named:
            raise PlannerError(
                f"Table {table[1]!r} of module {table[0]!r} should go together with a table of the model, "
                f"{', '.join(sorted(named))}. Received together_with={wanted!r}.",
                PlannerErrorType.INPUT_VALIDATION,
            )
        leader[lead(table)] = lead(named[wanted])
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for table in tables:
        groups.setdefault(lead(table), []).append(table)
    return list(groups.values())


def _group_options(
    group: Sequence[Sequence[ShardingOption]], topology: Topology
) -> Iterator[GroupOption]:
    if len(group) > 1:
        yield from _together(group, topology)
        return
    least = min(option.own_bytes for option in group[0])
    candidates = [
        (option, candidate)
        for option in group[0]
        for candidate in candidates_of(option, topology, least)
    ]
    for label, (option, candidate) in enumerate(candidates):
        yield GroupOption((option,), replace(candidate, label=label))


def _together(
    group: Sequence[Sequence[ShardingOption]], topology: Topology
) -> Iterator[GroupOption]:
    whole = []
    for options in group:
        found = [o for o in options if o.sharding_type == ShardingType.TABLE_WISE.value]
        if not found:
            first = options[0]
            raise PlannerError(
                f"Table {first.name!r} of module {first.path!r} should be allowed to be table_wise, as tables are that "
                f"go together. Received sharding types {[option.sharding_type for option in options]}.",
                PlannerErrorType.STRICT_CONSTRAINTS,
            )
        whole.append(found[0])
    total = Part(0, 0, 0)
    for option in whole:
        total += _part_of(option.shards[0])
    ranks = [r for r in range(topology.world_size) if all(_is_allowed(o, [r]) for o in whole)]
    if ranks:
        unit = Unit((total,), tuple((rank,) for rank in ranks))
        least = sum(min(option.own_bytes for option in options) for options in group)
        own = own_unit(sum(option.own_bytes for option in whole) - least, topology)
        shares = tuple(shares_of(option, topology.world_size) for option in whole)
        yield GroupOption(tuple(whole), Candidate((unit, *own), 0, shares, shares))


def candidates_of(
    option: ShardingOption, topology: Topology, own_bytes: int = 0
) -> list[Candidate]:
    """Return a way to place a table in numbers; several, where its parts have to choose the same host.

    Args:
        option: the way.
        topology: the ranks.
        own_bytes: of what each rank has for its own batch, those that were counted already.
    """
    apart = one_seat = shares_of(option, topology.world_size)
    if len({shard.offset[1] for shard in option.shards}) > 1:  # on one seat, rows are whole
        together = with_ranks(option, [0] * len(option.shards))
        one_seat = shares_of(together, topology.world_size)
    own = own_unit(option.own_bytes - own_bytes, topology)
    return [
        Candidate((*units, *own), 0, (one_seat,), (apart,))
        for units in _units(option, topology)
        if all(unit.seats for unit in units)
    ]


def own_unit(num_bytes: int, topology: Topology) -> list[Unit]:
    """Return what every rank has for its own batch, whoever has the table; nothing, if that is nothing.

    Args:
        num_bytes: of each rank.
        topology: the ranks.
    """
    if not num_bytes:
        return []
    part = part_of(_own(num_bytes, topology))
    ranks = range(topology.world_size)
    return [Unit((part,) * len(ranks), (tuple(ranks),), is_own=True)]


def _own(num_bytes: int, topology: Topology) -> Storage:
    return Storage(0, num_bytes) if topology.compute_device == "cpu" else Storage(num_bytes, 0)


def _units(option: ShardingOption, topology: Topology) -> Iterator[list[Unit]]:
    """Yield what takes a seat each; several times where all have to choose the same host."""
    everyone = range(topology.world_size)
    hosts = [topology.host_of(rank) for rank in everyone[:: topology.local_world_size]]
    parts = [_part_of(shard) for shard in option.shards]

    def seats(found: Sequence[Sequence[int]], size: int) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(seat) for seat in found if len(seat) == size and _is_allowed(option, seat)
        )

    def one_each(ranks: Sequence[int]) -> list[Unit]:
        singles = seats([(rank,) for rank in ranks], 1)
        return [Unit((part,), singles) for part in parts]

    by = PartitionByType(option.partition_by)
    if by is PartitionByType.UNIFORM:
        yield [Unit(tuple(parts), seats([everyone], len(parts)))]
    elif by is PartitionByType.DEVICE:
        yield one_each(everyone)
    elif by is PartitionByType.MULTI_HOST:  # the rows of some columns after those of others
        size = topology.local_world_size
        of_hosts = seats(hosts, size)
        yield [Unit(tuple(parts[i : i + size]), of_hosts) for i in range(0, len(parts), size)]
    elif option.sharding_type == ShardingType.TABLE_ROW_WISE.value:
        yield [Unit(tuple(parts), seats(hosts, len(parts)))]
    else:
        for host in hosts:
            yield one_each(host)


def _is_allowed(option: ShardingOption, seat: Sequence[int]) -> bool:
    return option.allowed_ranks is None or option.allowed_ranks.issuperset(seat)


def _part_of(shard: Shard) -> Part:
    return part_of(shard.storage or Storage(0, 0), shard.perf)


def part_of(storage: Storage, perf: Perf | None = None) -> Part:
    """Return a part of a table in numbers, or memory alone.

    Args:
        storage: that it takes.
        perf: milliseconds that it takes. Default: none.
    """
    found = Part(0, storage.hbm, storage.ddr, storage.ssd)
    if perf is None:
        return found
    exchange = round(perf.comms * 1e6)
    return replace(
        found,
        ns=round(perf.compute * 1e6) + exchange,
        exchange_ns=exchange,
        alike_ns=round(perf.alike * 1e6),
    )
