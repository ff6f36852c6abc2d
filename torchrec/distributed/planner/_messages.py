"""What a step takes beside tables: messages, which depend on the kinds of all tables of a collection together.

The search adds up what tables take the ranks, one by one. Messages are not of one table: rows that lie apart cost some
more once, however many tables have them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torchrec.distributed.planner._bandwidths import CollectionStep
from torchrec.distributed.planner._cost import BY_ROWS
from torchrec.distributed.planner._options import PlannerError, ShardingOption
from torchrec.distributed.planner._problem import Load, Unit
from torchrec.distributed.planner._rates import rates_of
from torchrec.distributed.planner._search_space import part_of, search_space_of
from torchrec.distributed.planner._solutions import Solution, solve
from torchrec.distributed.planner._storage import adds_squares
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.types import ShardingType

__all__ = ["messages_ms", "with_fewer_messages"]

_COPIES = ShardingType.DATA_PARALLEL  # these are not exchanged


def messages_ms(options: Sequence[ShardingOption], topology: Topology) -> float:
    """Return what a step takes beside tables.

    Args:
        options: a way for each table.
        topology: the ranks.
    """
    rates = rates_of(topology)
    collections: dict[str, list[ShardingOption]] = {}
    for option in options:
        collections.setdefault(option.path, []).append(option)
    found = 0.0
    for of_path in collections.values():
        sent = [option for option in of_path if ShardingType(option.sharding_type) is not _COPIES]
        step = CollectionStep(
            topology.world_size if sent else 1,
            tables=len(sent),
            parts=sum(len(option.shards) for option in sent),
            by_rows=any(ShardingType(option.sharding_type) in BY_ROWS for option in sent),
            adds_squares=any(adds_squares(option) for option in of_path),
            is_pooled=all(option.is_pooled for option in of_path),
            vector_bytes=sum(map(_vector_bytes, of_path)),
        )
        found += rates.step_ms(step)
        found += rates.gather_ms(_gathered(sent, topology.world_size))
    return found


def _gathered(sent: Sequence[ShardingOption], world_size: int) -> float:
    """Return how many numbers of gradients a rank gathers, on the average, before it updates.

    Where it is asked for rows of some features and for sums of others, these are two look-ups, and the rows of both
    are updated together.
    """
    kinds: set[bool] = set()
    numbers = 0.0
    for option in sent:
        lookup = option.lookup
        if lookup is None or option.compute_kernel != "fused" or world_size < 2:
            continue
        bands = max(1, len({shard.offset[0] for shard in option.shards}))
        kinds.update(lookup.sends_rows(bands))
        height, width = option.tensor.shape
        if height:  # each row that is chosen counts once
            numbers -= height * width * math.expm1(-world_size * sum(lookup.ids) / height)
    return numbers / world_size if len(kinds) > 1 else 0.0


def _vector_bytes(option: ShardingOption) -> float:
    """Return the bytes of the vectors that a rank gets of a table; 0 where that is not known."""
    lookup = option.lookup
    if lookup is None:
        return 0.0
    return 4.0 * option.tensor.shape[1] * sum(lookup.bags if lookup.is_pooled else lookup.ids)


def with_fewer_messages(
    solution: Solution, space: Sequence[ShardingOption], topology: Topology, deadline: float | None
) -> Solution:
    """Return a plan, or one without rows that lie apart if a step takes less under that.

    Args:
        solution: the plan that is best but for messages.
        space: all ways of all tables.
        topology: the ranks, with the memory that is left for tables.
        deadline: when to stop, as `time.monotonic` has it.
    """
    fewer = _without_rows(space)
    # The first way of each table: copies, which have no messages here, come last.
    each = {(option.path, option.name): option for option in reversed(fewer)}
    if messages_ms(list(each.values()), topology) >= messages_ms(solution.options, topology):
        return solution
    try:
        found = solve(search_space_of(fewer, topology), deadline)
    except PlannerError:  # wishes for ranks ask for rows that lie apart
        found = None
    if found is None:
        return solution
    better = _step_ms(found.options, topology) < _step_ms(solution.options, topology)
    return replace(
        found if better else solution,
        # Of several collections, rows of all lie apart where they may, or of none.
        is_best=solution.is_best and found.is_best and len({option.path for option in space}) == 1,
        num_proposals=solution.num_proposals + found.num_proposals,
    )


def _without_rows(space: Sequence[ShardingOption]) -> list[ShardingOption]:
    """Return the ways under which rows do not lie apart; all, of a collection in which a table has none of them."""
    whole = [option for option in space if ShardingType(option.sharding_type) not in BY_ROWS]
    tables = {(option.path, option.name) for option in space}
    lacking = {path for path, _ in tables - {(option.path, option.name) for option in whole}}
    return [
        option
        for option in space
        if option.path in lacking or ShardingType(option.sharding_type) not in BY_ROWS
    ]


def _step_ms(options: Sequence[ShardingOption], topology: Topology) -> float:
    load = Load([part_of(device.storage) for device in topology.devices])
    for option in options:
        for shard in option.shards:
            if shard.rank is not None:
                part = part_of(shard.storage or Storage(0, 0), shard.perf)
                load.add(Unit((part,), ()), (shard.rank,))
    return messages_ms(options, topology) + load.score[0] / 1e6
