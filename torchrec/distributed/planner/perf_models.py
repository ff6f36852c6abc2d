"""How good a plan is, in one number: less is better."""

from __future__ import annotations

from torchrec.distributed.planner._interfaces import PerfModel
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._topology import Topology

__all__ = ["NoopPerfModel", "NoopStorageModel"]


class NoopPerfModel(PerfModel):
    """Milliseconds of the slowest rank.

    Args:
        topology: the ranks.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def rate(self, plan: list[ShardingOption]) -> float:
        """Return the most that a rank has to do, in milliseconds.

        Args:
            plan: a way for each table, with ranks.
        """
        of_ranks = [0.0] * self._topology.world_size
        for option in plan:
            for shard in option.shards:
                if shard.rank is not None and shard.perf is not None:
                    of_ranks[shard.rank] += shard.perf.total
        return max(of_ranks)


class NoopStorageModel(PerfModel):
    """Bytes of the fullest rank, of the memory that the tables of the topology's device are in.

    Args:
        topology: the ranks.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def rate(self, plan: list[ShardingOption]) -> float:
        """Return the most that a rank has to keep, in bytes.

        Args:
            plan: a way for each table, with ranks.
        """
        on_host = self._topology.compute_device == "cpu"
        of_ranks = [0] * self._topology.world_size
        for option in plan:
            for shard in option.shards:
                if shard.rank is not None and shard.storage is not None:
                    storage = shard.storage
                    of_ranks[shard.rank] += storage.ddr if on_host else storage.hbm
        return float(max(of_ranks))
