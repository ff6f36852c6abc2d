"""The search for a plan that fits as a whole, not only table by table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner._dense import Layers
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._search_space import SearchSpace, search_space_of
from torchrec.distributed.planner._solutions import Solution, solve
from torchrec.distributed.planner._step_memory import rank_memory
from torchrec.distributed.planner._topology import Storage, Topology

__all__ = ["Fitting", "solve_within"]

_MOST_SEARCHES = 4


@dataclass(frozen=True)
class Fitting:
    """What came of a search.

    Attributes:
        solution: a plan; None: none fits.
        space: of the last search.
    """

    solution: Solution | None
    space: SearchSpace


def solve_within(
    options: Sequence[ShardingOption],
    topology: Topology,
    layers: Layers,
    deadline: float | None,
) -> Fitting:
    """Look for a plan, with less memory again while steps under it take more than tables do one by one.

    Args:
        options: all ways of all tables.
        topology: the ranks, with the memory that is left for tables.
        layers: of the model.
        deadline: when to stop, as `time.monotonic` has it.

    Raises:
        PlannerError: if wishes leave a table no rank.
    """
    on_host, excess = topology.compute_device == "cpu", 0
    for _ in range(_MOST_SEARCHES):
        taken = Storage(0, excess) if on_host else Storage(excess, 0)
        left = topology.with_storage(lambda storage: storage - taken)  # noqa: B023
        space = search_space_of(options, left)
        solution = solve(space, deadline)
        if solution is None:
            break
        found = rank_memory(solution.options, topology, layers)
        rooms = [
            device.storage.ddr if on_host else device.storage.hbm for device in topology.devices
        ]
        more = max(each.num_bytes - room for each, room in zip(found, rooms, strict=True))
        if more <= 0:
            break
        solution, excess = None, excess + more
    return Fitting(solution, space)
