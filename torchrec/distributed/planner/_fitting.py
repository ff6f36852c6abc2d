"""The search for a plan that fits as a whole, not only table by table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchrec.distributed._plan_report import Optimality
from torchrec.distributed.planner._dense import Layers
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._search_space import SearchSpace, search_space_of
from torchrec.distributed.planner._solutions import Solution, solve
from torchrec.distributed.planner._step_memory import rank_memory
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Storage, Topology

__all__ = ["Fitting", "solve_within"]

_MOST_SEARCHES = 8


@dataclass(frozen=True)
class Fitting:
    """What came of a search.

    Attributes:
        solution: a plan; None: none fits.
        space: of the search with the memory that there is.
        lacking: of plans that do not fit, the least bytes that one lacks, and the rank; None: there was none.
    """

    solution: Solution | None
    space: SearchSpace
    lacking: tuple[int, int] | None = None


def solve_within(
    options: Sequence[ShardingOption],
    topology: Topology,
    layers: Layers,
    deadline: float | None,
) -> Fitting:
    """Look for a plan by what tables take one by one, until steps under it take no more memory than there is.

    Where steps take more than that, the search goes on with less memory. Where it finds nothing, with more: steps may
    take less. In between, memory is halved.

    Args:
        options: all ways of all tables.
        topology: the ranks, with the memory that is left for tables.
        layers: of the model.
        deadline: when to stop, as `time.monotonic` has it.

    Raises:
        PlannerError: if wishes leave a table no rank.
    """
    on_host = topology.compute_device == "cpu"
    rooms = [device.storage.ddr if on_host else device.storage.hbm for device in topology.devices]
    # Bytes more than there are with which nothing was found, and with which what was found did not fit.
    too_few: int | None = None
    too_many: int | None = None
    more, may_fit = 0, _least_bytes(options, of_step=False) <= sum(rooms)
    first: SearchSpace | None = None
    least: tuple[int, int] | None = None
    for _ in range(_MOST_SEARCHES):
        given = Storage(0, more) if on_host else Storage(more, 0)
        space = search_space_of(options, topology.with_storage(lambda storage: storage + given))  # noqa: B023
        first = first or space
        solution = solve(space, deadline)
        if solution is None:
            too_few = more
            if too_many is not None:
                more = (too_few + too_many) // 2
            elif not more:
                more = max(rooms) if may_fit else _least_bytes(options)
            else:
                break
        else:
            found = rank_memory(solution.options, topology, layers)
            lacks = [each.num_bytes - room for each, room in zip(found, rooms, strict=True)]
            if max(lacks) <= 0:
                if more:  # others may fit, or not, than those that the search has looked at
                    solution = replace(solution, optimality=Optimality.UNKNOWN)
                return Fitting(solution, first)
            lacking = max(lacks), lacks.index(max(lacks))
            least = min(least or lacking, lacking)
            if not may_fit:
                break
            too_many = more
            more -= lacking[0]
            if too_few is not None and more <= too_few:
                more = (too_few + too_many) // 2
        if deadline is not None and time.monotonic() > deadline:
            break
    assert first is not None
    return Fitting(None, first, least)


def _least_bytes(options: Sequence[ShardingOption], of_step: bool = True) -> int:
    """Return the bytes of all tables, each in the way that takes least, with or without what a step has."""
    return sum(
        min(
            sum(
                shard.storage.ddr + shard.storage.hbm - (0 if of_step else shard.step_bytes)
                for shard in way.shards
                if shard.storage
            )
            for way in ways
        )
        for ways in by_table(options)
    )
