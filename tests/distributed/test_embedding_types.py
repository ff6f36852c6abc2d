"""Groups of parts of tables, as values, and who looks up which features."""

from __future__ import annotations

import pytest
import torch

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import (
    EmbeddingComputeKernel,
    FeatureSharding,
    FeatureShardingMixIn,
    GroupedEmbeddingConfig,
    ModuleShardingMixIn,
    ShardedEmbeddingTable,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardMetadata
from torchrec.types import DataType

pytestmark = pytest.mark.once


def part(name, rows, dim, features, **options):
    return ShardedEmbeddingTable(
        num_embeddings=rows,
        embedding_dim=dim,
        name=name,
        feature_names=features,
        local_rows=rows // 2,
        local_cols=dim // 2,
        local_metadata=ShardMetadata([0, 0], [rows // 2, dim // 2], "rank:0/cpu"),
        **options,
    )


def test_a_group_tells_what_is_looked_up():
    parts = [
        part("a", 10, 8, ["f1", "f2"], embedding_names=["f1@a", "f2"]),
        part("b", 6, 4, ["f1"], embedding_names=["f1@b"]),
    ]
    group = GroupedEmbeddingConfig(
        DataType.FP32, PoolingType.SUM, False, False, EmbeddingComputeKernel.DENSE, parts
    )
    # As TorchRec's answers for the same group.
    assert (group.num_features(), group.dim_sum(), group.embedding_dims()) == (3, 10, [4, 4, 2])
    assert group.feature_names() == ["f1", "f2", "f1"]
    assert group.embedding_names() == ["f1@a", "f2", "f1@b"]
    assert group.feature_hash_sizes() == [10, 10, 6]
    assert group.table_names() == ["a", "b"]
    shards = [shard.shard_sizes for shard in group.embedding_shard_metadata()]
    assert shards == [[5, 4], [5, 4], [3, 2]]
    assert group.is_using_virtual_table() is False


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_collections_tell_who_looks_up_which_features(pooled):
    made, config, sharder = EmbeddingCollection, EmbeddingConfig, EmbeddingCollectionSharder()
    if pooled:
        made, config = EmbeddingBagCollection, EmbeddingBagConfig
        sharder = EmbeddingBagCollectionSharder()
    tables = [config(4, 4, name, feature_names=[f"f{name}", "g"]) for name in "ab"]
    plan = {
        "a": ParameterSharding("data_parallel", "dense", [0]),
        "b": ParameterSharding("data_parallel", "dense", [0]),
    }
    module = sharder.shard(made(tables), plan, ShardingEnv.from_local(1, 0))
    assert isinstance(module, ModuleShardingMixIn)
    features = ["fa", "g", "fb", "g"]
    assert dict(module.shardings) == {"data_parallel": FeatureSharding(features, [features])}
    assert module.shardings["data_parallel"].features_per_rank() == [4]


def test_what_says_nothing_is_refused():
    with pytest.raises(NotImplementedError, match="should say which features there are"):
        FeatureShardingMixIn().feature_names()
    with pytest.raises(NotImplementedError, match="should say which rank has which rows"):
        FeatureShardingMixIn().features_per_rank()
    with pytest.raises(NotImplementedError, match="should say how its tables are sharded"):
        _ = ModuleShardingMixIn().shardings


def test_features_by_rank():
    sharding = FeatureSharding(["a", "b"], [["a"], ["a", "b"]])
    assert sharding.feature_names_per_rank() == [["a"], ["a", "b"]]
    assert sharding.features_per_rank() == [1, 2]
    assert torch.tensor(sharding.features_per_rank()).sum() == 3
