"""What to say where there is no plan: which table lacks how many bytes on which rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed._units import bytes_to_text
from torchrec.distributed.planner._options import PlannerError, PlannerErrorType, ShardingOption
from torchrec.distributed.planner._placing import by_room, least_missing, take
from torchrec.distributed.planner._problem import Load
from torchrec.distributed.planner._search_space import SearchSpace, part_of
from torchrec.distributed.planner._topology import Topology

__all__ = ["Shortage", "shortage_of"]

# Ranks that a message lists one by one.
_MOST_RANKS = 8


@dataclass(frozen=True)
class Shortage:
    """A table that does not fit beside larger ones.

    Attributes:
        options: the ways that it could be placed in.
        missing: bytes that are missing at least.
        rank: where.
        free: bytes that each rank has left.
        needed: bytes of all tables, each in the way that takes least.
        room: bytes that all ranks have for them.
    """

    options: tuple[ShardingOption, ...]
    missing: int
    rank: int
    free: tuple[int, ...]
    needed: int
    room: int

    def error(self, changes: Sequence[str], all_tried: bool) -> PlannerError:
        """Return what is raised.

        Args:
            changes: after which there is a plan, in words, the smallest first.
            all_tried: whether there was time for all others.
        """
        first = self.options[0]
        tried = ", ".join(f"{option.sharding_type} {_total(option)}" for option in self.options)
        free = ", ".join(
            f"rank {rank} {bytes_to_text(max(size, 0))}"
            for rank, size in enumerate(self.free[:_MOST_RANKS])
        )
        more = f", {len(self.free) - _MOST_RANKS} more" if len(self.free) > _MOST_RANKS else ""
        would_do = (
            "Nothing small would do." if all_tried else "There was no time to find what would do."
        )
        if changes:
            would_do = f"What would do: {'; or '.join(changes)}."
        return PlannerError(
            f"Table {first.name!r} of module {first.path!r} should fit into the memory that larger tables leave: "
            f"{free}{more}. Received {tried}: rank {self.rank} lacks {bytes_to_text(self.missing)}. {would_do}",
            PlannerErrorType.INSUFFICIENT_STORAGE,
        )


def shortage_of(
    search_space: SearchSpace, topology: Topology, lacking: tuple[int, int] | None
) -> Shortage:
    """Return the first table that does not fit, large ones placed first, in the smallest parts that they may have.

    Args:
        search_space: all ways of all tables, of which there is no plan.
        topology: the ranks, with the memory that there was for tables in the first search.
        lacking: bytes that a plan lacks, as its steps take them, and the rank; None: there is none.
    """
    items = search_space.problem.items
    load = Load(search_space.problem.room)
    order = sorted(range(len(items)), key=lambda i: (-items[i][0].total.num_bytes, i))
    last = order[-1]
    for last in order:
        candidates = sorted(
            items[last], key=lambda candidate: (candidate.largest, candidate.total.ns)
        )
        if not any(take(load, candidate, by_room) for candidate in candidates):
            break
    one_by_one = [least_missing(load, candidate) for candidate in items[last]]
    missing, rank = min([*one_by_one, *([] if lacking is None else [lacking])])
    free = tuple(room.num_bytes - load.num_bytes(r) for r, room in enumerate(load.room))
    options = {
        option.options[0].sharding_type: option.options[0] for option in search_space.groups[last]
    }
    needed = sum(min(candidate.total.num_bytes for candidate in ways) for ways in items)
    room = sum(part_of(device.storage).num_bytes for device in topology.devices)
    return Shortage(tuple(options.values()), missing, rank, free, needed, room)


def _total(option: ShardingOption) -> str:
    storage = option.total_storage
    return bytes_to_text(storage.hbm + storage.ddr)
