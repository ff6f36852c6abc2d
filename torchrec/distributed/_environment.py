"""Which ranks there are, and which of them this is."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from torchrec.distributed._kinds import ShardingStrategy
from torchrec.modules.embedding_configs import ShardingType


class ShardingEnv:
    """The ranks that tables are spread over.

    Args:
        world_size: how many there are.
        rank: which of them this process is, from 0.
        pg: what they exchange through; None: nothing is exchanged.
        output_dtensor: have ``state_dict()`` give tables as `torch.distributed.tensor.DTensor`. Default False.

    Example:
        >>> env = ShardingEnv.from_local(world_size=2, rank=1)
        >>> env.world_size, env.rank, env.process_group
        (2, 1, None)
    """

    def __init__(
        self,
        world_size: int,
        rank: int,
        pg: ProcessGroup | None = None,
        output_dtensor: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"`rank` should be from 0 to {world_size - 1}, for a `world_size` of {world_size}. Received {rank}."
            )
        if output_dtensor and pg is None:
            raise ValueError("`output_dtensor` should come with a process group. Received pg=None.")
        self.world_size = world_size
        self.rank = rank
        self.process_group = pg
        self.output_dtensor = output_dtensor
        self.device_mesh: DeviceMesh | None = None
        if output_dtensor and pg is not None:
            device = "cuda" if dist.get_backend(pg) == "nccl" else "cpu"
            self.device_mesh = DeviceMesh.from_group(pg, device)

    def __deepcopy__(self, _: object) -> ShardingEnv:
        """Return itself: process groups cannot be copied."""
        return self

    @classmethod
    def from_process_group(cls, pg: ProcessGroup) -> ShardingEnv:
        """Return the ranks of a process group.

        Args:
            pg: such as ``torch.distributed.group.WORLD``.
        """
        return cls(dist.get_world_size(pg), dist.get_rank(pg), pg)

    @classmethod
    def from_local(cls, world_size: int, rank: int) -> ShardingEnv:
        """Return ranks that exchange nothing, as those of one process that serves predictions.

        Args:
            world_size: how many there are.
            rank: which of them this is.
        """
        return cls(world_size, rank)


class ShardingEnv2D(ShardingEnv):
    """Groups of ranks, in each of which the tables are sharded, and between which they are replicated.

    ``world_size`` and ``rank`` are those in the group of this process, ``global_world_size`` and ``global_rank``
    those among all.

    Args:
        sharding_pg: the ranks that share the shards of one copy.
        replica_pg: those that hold the same shards as this one.
        global_pg: all ranks.
        device_mesh: copies by shards.
        node_group_size: how many ranks of a sharding group are on one host; None: all that the host has.
        use_inter_host_allreduce: sum over the ranks of other hosts only.
        sharding_strategy: how the copies are kept alike.
    """

    def __init__(
        self,
        sharding_pg: ProcessGroup,
        replica_pg: ProcessGroup,
        global_pg: ProcessGroup,
        device_mesh: DeviceMesh,
        node_group_size: int | None = None,
        use_inter_host_allreduce: bool = False,
        sharding_strategy: ShardingStrategy = ShardingStrategy.DEFAULT,
    ) -> None:
        super().__init__(dist.get_world_size(sharding_pg), dist.get_rank(sharding_pg), global_pg)
        self.global_world_size = dist.get_world_size(global_pg)
        self.global_rank = dist.get_rank(global_pg)
        self.sharding_pg = sharding_pg
        self.replica_pg = replica_pg
        self.global_pg = global_pg
        self.device_mesh = device_mesh
        self.node_group_size = node_group_size
        self.output_dtensor = True
        self.use_inter_host_allreduce = use_inter_host_allreduce
        self.sharding_strategy = sharding_strategy
        groups, shards = tuple(device_mesh.mesh.shape)
        if (groups * shards, shards) != (self.global_world_size, self.world_size):
            raise ValueError(
                f"`device_mesh` should be copies by shards, {self.num_sharding_groups()} by {self.world_size}. "
                f"Received {groups} by {shards}."
            )

    def num_sharding_groups(self) -> int:
        """Return how many copies of the tables there are."""
        return self.global_world_size // self.world_size

    def remap_rank(self, rank: int, sharding_type: ShardingType) -> int:
        """Return which rank of its sharding group a rank is.

        Args:
            rank: among all ranks.
            sharding_type: of the table; not ``DATA_PARALLEL``, which every rank holds.
        """
        if sharding_type is ShardingType.DATA_PARALLEL:
            raise ValueError("`sharding_type` should have shards. Received data_parallel.")
        if self.device_mesh is None or not 0 <= rank < self.global_world_size:
            raise ValueError(
                f"`rank` should be from 0 to {self.global_world_size - 1}. Received {rank}."
            )
        return int((self.device_mesh.mesh == rank).nonzero()[0, 1])
