"""What a step takes beside tables: messages, which depend on the kinds of all tables of a collection together.

Messages are not of one table: rows that lie apart cost some more once, however many tables have them. So each way says
what it has of each kind, which adds up, and a step takes what comes of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from torchrec.distributed.planner._bandwidths import CollectionStep
from torchrec.distributed.planner._cost import BY_ROWS
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._problem import Counts, SharedNs
from torchrec.distributed.planner._rates import rates_of
from torchrec.distributed.planner._storage import adds_squares
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import ShardingType

__all__ = ["messages_ms", "messages_ns", "shares_of"]

_COPIES = ShardingType.DATA_PARALLEL  # these are not exchanged


def messages_ms(options: Sequence[ShardingOption], topology: Topology) -> float:
    """Return what a step takes beside tables.

    Args:
        options: a way for each table.
        topology: the ranks.
    """
    of_step = messages_ns(options, topology)
    found: dict[str, tuple[int, ...]] = {}
    for option in options:
        path, counts = shares_of(option, topology.world_size)
        before = found.get(path, (0,) * len(counts))
        found[path] = tuple(a + b for a, b in zip(before, counts, strict=True))
    return sum(of_step(path, counts) for path, counts in found.items()) / 1e6


def messages_ns(space: Sequence[ShardingOption], topology: Topology) -> SharedNs:
    """Return what says how long messages of a collection take, from what its tables have of each kind.

    Args:
        space: all ways of all tables, or one of each.
        topology: the ranks.
    """
    rates = rates_of(topology)
    collections: dict[str, list[ShardingOption]] = {}
    for first, *_ in by_table(space):
        collections.setdefault(first.path, []).append(first)
    is_pooled = {path: all(o.is_pooled for o in found) for path, found in collections.items()}
    vector_bytes = {path: sum(map(_vector_bytes, found)) for path, found in collections.items()}

    @cache
    def found(path: str, counts: tuple[int, ...]) -> int:
        tables, parts, by_rows, squares, rows, sums, numbers = counts
        step = CollectionStep(
            topology.world_size if tables else 1,
            tables=tables,
            parts=parts,
            by_rows=by_rows > 0,
            adds_squares=squares > 0,
            is_pooled=is_pooled[path],
            vector_bytes=vector_bytes[path],
        )
        # Who is asked for rows of some features and for sums of others updates the rows of both together.
        gathered = numbers / topology.world_size if rows and sums else 0.0
        return round((rates.step_ms(step) + rates.gather_ms(gathered)) * 1e6)

    return found


def shares_of(option: ShardingOption, world_size: int) -> Counts:
    """Return what a way to place a table has of what messages depend on: its collection, and numbers of each kind.

    These are tables that are exchanged, their parts, tables whose rows lie apart, those whose updates add up squares,
    features of which rows are sent, those of which sums are, and numbers of their gradients that all ranks gather.

    Args:
        option: the way; if its parts have no ranks, they may lie on several.
        world_size: how many ranks there are.
    """
    kind = ShardingType(option.sharding_type)
    if kind is _COPIES:
        return option.path, (0,) * 7
    rows, sums, numbers = _gathered(option, world_size)
    return option.path, (
        1,
        len(option.shards),
        int(kind in BY_ROWS),
        int(adds_squares(option)),
        rows,
        sums,
        numbers,
    )


def _gathered(option: ShardingOption, world_size: int) -> tuple[int, int, int]:
    """Return features of which rows are sent, those of which sums are, and numbers of gradients of their rows."""
    lookup = option.lookup
    if lookup is None or option.compute_kernel != "fused" or world_size < 2:
        return 0, 0, 0
    bands = max(1, len({shard.offset[0] for shard in option.shards}))
    of_rows = lookup.sends_rows(bands)
    height, width = option.tensor.shape
    # Each row that is chosen counts once.
    numbers = (
        -height * width * math.expm1(-world_size * sum(lookup.ids) / height) if height else 0.0
    )
    return sum(of_rows), len(of_rows) - sum(of_rows), round(numbers)


def _vector_bytes(option: ShardingOption) -> float:
    """Return the bytes of the vectors that a rank gets of a table; 0 where that is not known."""
    lookup = option.lookup
    if lookup is None:
        return 0.0
    return 4.0 * option.tensor.shape[1] * sum(lookup.bags if lookup.is_pooled else lookup.ids)
