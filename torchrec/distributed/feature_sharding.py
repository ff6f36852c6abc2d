"""Which ranks look up which features of a collection, by sharding type."""

from __future__ import annotations

from torchrec.distributed.embedding_types import FeatureSharding, FeatureShardingMixIn
from torchrec.distributed.sharded_tables import ShardedTables

__all__ = ["shardings_of"]


def shardings_of(tables: ShardedTables) -> dict[str, FeatureShardingMixIn]:
    """Return, for each sharding type of a collection, who looks up the features of such tables.

    Args:
        tables: of the collection.
    """
    found: dict[str, FeatureShardingMixIn] = {}
    ranks = range(tables.world_size)
    for kind in dict.fromkeys(
        tables.sharding[config.name].sharding_type for config in tables.configs
    ):
        mine = [c for c in tables.configs if tables.sharding[c.name].sharding_type == kind]
        of_ranks = [
            [
                feature
                for config in mine
                if tables.is_here(config.name) or tables.placements[config.name].block(rank)
                for feature in config.feature_names
            ]
            for rank in ranks
        ]
        features = [feature for config in mine for feature in config.feature_names]
        found[kind] = FeatureSharding(features, of_ranks)
    return found
