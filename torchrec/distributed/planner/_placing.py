"""Who gets which part: the largest tables first, each part to the rank that has least so far and room for it."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.distributed.planner._candidates import Candidates
from torchrec.distributed.planner._options import (
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
)
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.planner._units import bytes_to_text
from torchrec.distributed.types import ShardingType


def place(candidates: Sequence[Candidates], topology: Topology) -> list[ShardingOption]:
    """Choose one way for each table, and ranks for its parts.

    Args:
        candidates: for each table its ways.
        topology: the ranks, with the memory that is left for tables.

    Returns:
        the ways chosen, in the order of the tables, with ranks.

    Raises:
        PlannerError: if a table fits nowhere.
    """
    ranks = _Ranks(topology)
    chosen: dict[int, ShardingOption] = {}
    order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].num_bytes, i))
    for i in order:
        option = next((option for option in candidates[i] if ranks.take(option)), None)
        if option is None:
            raise _no_room(candidates[i], ranks)
        chosen[i] = option
    return [chosen[i] for i in range(len(candidates))]


class _Ranks:
    """What each rank has so far."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._room = [device.storage for device in topology.devices]
        self.used = [Storage(0, 0) for _ in topology.devices]

    @property
    def free(self) -> list[Storage]:
        """What is left of each."""
        return [room - used for room, used in zip(self._room, self.used, strict=True)]

    def take(self, option: ShardingOption) -> bool:
        """Place all parts of a table, or none if there is no room for one."""
        before = list(self.used)
        if self._take(option):
            return True
        self.used = before
        for shard in option.shards:
            shard.rank = None
        return False

    def _take(self, option: ShardingOption) -> bool:
        everyone = range(len(self._room))
        by = PartitionByType(option.partition_by)
        if by is PartitionByType.UNIFORM:
            return self._in_turn(option.shards, everyone)
        if by is PartitionByType.DEVICE:
            return self._by_load(option.shards, everyone)
        if by is PartitionByType.MULTI_HOST:  # the rows of some columns after those of others
            size = self._topology.local_world_size
            groups = [option.shards[i : i + size] for i in range(0, len(option.shards), size)]
            return all(self._on_a_host(group, in_turn=True) for group in groups)
        in_turn = option.sharding_type == ShardingType.TABLE_ROW_WISE.value
        return self._on_a_host(option.shards, in_turn)

    def _on_a_host(self, shards: Sequence[Shard], in_turn: bool) -> bool:
        starts = range(0, len(self._room), self._topology.local_world_size)
        hosts = [self._topology.host_of(start) for start in starts]
        for host in sorted(hosts, key=lambda host: (sum(self._load(r) for r in host), host.start)):
            before = list(self.used)
            if self._in_turn(shards, host) if in_turn else self._by_load(shards, host):
                return True
            self.used = before
        return False

    def _in_turn(self, shards: Sequence[Shard], ranks: range) -> bool:
        return len(shards) == len(ranks) and all(
            self._put(shard, rank) for shard, rank in zip(shards, ranks, strict=True)
        )

    def _by_load(self, shards: Sequence[Shard], ranks: range) -> bool:
        return all(
            any(self._put(shard, rank) for rank in sorted(ranks, key=self._load))
            for shard in shards
        )

    def _put(self, shard: Shard, rank: int) -> bool:
        used = self.used[rank] + (shard.storage or Storage(0, 0))
        if not used.fits_in(self._room[rank]):
            return False
        self.used[rank], shard.rank = used, rank
        return True

    def _load(self, rank: int) -> int:
        return self.used[rank].hbm + self.used[rank].ddr


def _total(option: ShardingOption) -> str:
    storage = option.total_storage
    return bytes_to_text(storage.hbm + storage.ddr)


def _no_room(table: Candidates, ranks: _Ranks) -> PlannerError:
    tried = ", ".join(f"{option.sharding_type} {_total(option)}" for option in table)
    free = ", ".join(
        f"rank {rank} {bytes_to_text(storage.hbm or storage.ddr)}"
        for rank, storage in enumerate(ranks.free)
    )
    return PlannerError(
        f"{table.title} should fit into the memory that larger tables leave: "
        f"{free}. Received {tried}. More ranks, a smaller table or fewer constraints would help.",
        PlannerErrorType.INSUFFICIENT_STORAGE,
    )
