"""Quantised collections of uneven tables, plans for them, and input of all kinds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import sharding_plan
from torchrec.distributed.quant_sharder import BaseQuantEmbeddingSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import ShardingEnv
from torchrec.inference.modules import quantize_embeddings
from torchrec.types import IdPolicy

DTYPES = [
    torch.qint8,
    torch.quint4x2,
    torch.quint2x4,
    torch.float16,
    torch.bfloat16,
    torch.float32,
]
RANKS = 3

# Of the tables in turn. A rank has two parts of one table, another none, and the last rank fewer rows than others.
PLANS: dict[str, Sequence[Any]] = {
    "table_wise": [sharding_plan.table_wise(2), sharding_plan.table_wise(0)],
    "row_wise": [sharding_plan.row_wise()],
    "column_wise": [sharding_plan.column_wise([2, 0]), sharding_plan.column_wise([1, 0, 1, 2])],
    "grid_shard": [sharding_plan.grid_shard([0])],
    "mixed": [
        sharding_plan.row_wise(),
        sharding_plan.column_wise([1, 1]),
        sharding_plan.table_wise(2),
    ],
}
_REMAPPING = torch.tensor([3, -1, 0, 1, -1, 2, -1])


def _configs(kind: Any, **poolings: Any) -> list[Any]:
    """Three tables, one of them pruned; "f2" is looked up in two of them, and ids outside are treated in three ways."""
    tables = [
        kind(7, 8, "t1", feature_names=["f1", "f2"], id_policy=IdPolicy.CLAMP),
        kind(11, 16, "t2", feature_names=["f2"], id_policy=IdPolicy.UNKNOWN),
        kind(5, 8, "t3", feature_names=["f3"], id_policy=IdPolicy.IGNORE),
    ]
    tables[0] = replace(
        tables[0],
        num_embeddings_post_pruning=4,
        pruning_indices_remapping=_REMAPPING,
        **poolings,
    )
    return tables


def bag_tables() -> list[EmbeddingBagConfig]:
    return _configs(EmbeddingBagConfig, pooling=PoolingType.MEAN)


def sequence_tables() -> list[EmbeddingConfig]:
    return _configs(EmbeddingConfig)


def batch(seed: int, size: int = 5, weighted: bool = False) -> KeyedJaggedTensor:
    """Ids within the tables and outside, empty bags, and a feature that no table has."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (4 * size,), generator=generator, dtype=torch.int32)
    count = int(lengths.sum())
    ids = torch.randint(-2, 13, (count,), generator=generator)
    weights = torch.randn(count, generator=generator) if weighted else None
    return KeyedJaggedTensor(["f3", "other", "f2", "f1"], ids, weights, lengths)


def quantised(collection: nn.Module, dtype: torch.dtype) -> Any:
    """Return the quantised form of a collection."""
    return quantize_embeddings(collection, dtype, inplace=False).eval()


def sharded(
    collection: Any,
    sharder: BaseQuantEmbeddingSharder[Any],
    plan: str | Sequence[Any],
    ranks: int = RANKS,
) -> Any:
    """Return a copy of a collection in parts."""
    generators = PLANS[plan] if isinstance(plan, str) else plan
    names = sharder.shardable_parameters(collection)
    by_table = {name: generators[t % len(generators)] for t, name in enumerate(names)}
    made = construct_module_sharding_plan(collection, by_table, sharder, ranks, ranks, "cpu")
    env = ShardingEnv.from_local(ranks, 0)
    return sharder.shard(copy.deepcopy(collection), made, env)
