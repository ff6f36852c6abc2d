"""What a report says of the ranks that trained together, and of where their tables were."""

from __future__ import annotations

from collections.abc import Mapping

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.collection import collections_in
from torchrec.training.memory import peak_rss_bytes
from torchrec.training.world import Traffic


def rank_facts(
    model: DistributedModelParallel, seconds: float, waited: float, traffic: Traffic
) -> Mapping[str, float]:
    """Return the figures of this rank, since it was started.

    Args:
        model: sharded.
        seconds: for which it has trained.
        waited: seconds before steps, for other ranks.
        traffic: what it has sent in steps; of none, nothing is said.
    """
    shards = [
        shard.weight
        for _, collection in collections_in(model)
        for config in collection.table_store().table_configs()
        for shard in collection.table_store().table_shards(config.name)
    ]
    layers = [param for _, param in model.bare_named_parameters() if param.requires_grad]
    facts: dict[str, float] = {
        "seconds": round(seconds, 3),
        "waited": round(waited, 3),
        "layer_bytes": sum(each.numel() * each.element_size() for each in layers),
        "table_bytes": sum(each.numel() * each.element_size() for each in shards),
    }
    if traffic.steps:
        facts["sent_bytes"] = round(traffic.bytes / traffic.steps, 1)
        facts["messages"] = round(traffic.messages / traffic.steps, 1)
    peak = peak_rss_bytes()
    if peak is not None:
        facts["peak_rss_bytes"] = peak
    return facts


def plan_in_words(plan: ShardingPlan) -> dict[str, str]:
    """Return where each table is.

    Args:
        plan: of a model.

    Example:
        >>> from torchrec.distributed.types import ParameterSharding
        >>> user = ParameterSharding("row_wise", "fused", [0, 1])
        >>> city = ParameterSharding("data_parallel", "dense")  # a copy on each, whatever its ranks
        >>> plan_in_words(ShardingPlan({"tables": EmbeddingModuleShardingPlan(user=user, city=city)}))
        {'user': 'row_wise on ranks 0, 1', 'city': 'data_parallel on all ranks'}
    """
    found = {}
    for tables in plan.plan.values():
        if not isinstance(tables, EmbeddingModuleShardingPlan):
            continue
        for name, sharding in tables.items():
            found[name] = f"{sharding.sharding_type} on {_ranks_in_words(sharding)}"
    return found


def _ranks_in_words(sharding: ParameterSharding) -> str:
    if sharding.sharding_type == ShardingType.DATA_PARALLEL.value:
        return "all ranks"
    ranks = sorted(set(sharding.ranks or ()))
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
