"""From how tables are placed to a plan of sharding."""

from __future__ import annotations

from torchrec.distributed.layout import placement
from torchrec.distributed.planner._options import (
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
    ShardMetadata,
)

__all__ = ["to_sharding_plan"]


def to_sharding_plan(sharding_options: list[ShardingOption], topology: Topology) -> ShardingPlan:
    """Make a plan of how tables are placed.

    Args:
        sharding_options: one for each table, with ranks.
        topology: the ranks.

    Raises:
        PlannerError: if a part has no rank.
    """
    plan = ShardingPlan({}, world_size=topology.world_size)
    for option in sharding_options:
        module = plan.plan.setdefault(option.path, EmbeddingModuleShardingPlan())
        ranks = [rank for rank in option.get_shards_assignment() if rank is not None]
        if len(ranks) != option.num_shards or not isinstance(module, EmbeddingModuleShardingPlan):
            raise PlannerError(
                f"Table {option.name!r} of module {option.path!r} should have a rank for each of "
                f"{option.num_shards} parts. Received {option.get_shards_assignment()}.",
                PlannerErrorType.INVALID_RANK_ASSIGNMENT,
            )
        shards = [
            ShardMetadata(
                shard.offset,
                shard.size,
                placement(topology.compute_device, rank, topology.local_world_size),
            )
            for shard, rank in zip(option.shards, ranks, strict=True)
        ]
        is_replicated = option.sharding_type == ShardingType.DATA_PARALLEL.value
        module[option.name] = ParameterSharding(
            sharding_type=option.sharding_type,
            compute_kernel=option.compute_kernel,
            ranks=ranks,
            sharding_spec=None if is_replicated else EnumerableShardingSpec(shards),
            cache_params=option.cache_params,
            enforce_hbm=option.enforce_hbm,
            stochastic_rounding=option.stochastic_rounding,
            bounds_check_mode=option.bounds_check_mode,
            output_dtype=option.output_dtype,
            key_value_params=option.key_value_params,
        )
    return plan
