"""What sharding is written in: plans, ranks, sharders, and values that are still on their way."""

from __future__ import annotations

from torchrec.distributed._awaitable import (
    Awaitable,
    GetItemLazyAwaitable,
    LazyAwaitable,
    LazyGetItemMixin,
    LazyNoWait,
    NoWait,
)
from torchrec.distributed._codecs import (
    NoOpQuantizedCommCodec,
    QuantizationContext,
    QuantizedCommCodec,
    QuantizedCommCodecs,
)
from torchrec.distributed._environment import ShardingEnv, ShardingEnv2D
from torchrec.distributed._kinds import (
    CacheParams,
    CacheStatistics,
    CommOp,
    ComputeDevice,
    KeyValueParams,
    MultiPassPrefetchConfig,
    ParameterStorage,
    PipelineType,
    ShardingStrategy,
    StorageUsageType,
)
from torchrec.distributed._plan import (
    EmbeddingModuleShardingPlan,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.distributed._private import (
    EnumerableShardingSpec,
    Shard,
    ShardedTensor,
    ShardedTensorMetadata,
    ShardingSpec,
    ShardMetadata,
    TensorProperties,
)
from torchrec.distributed._sharded import (
    CompIn,
    DistOut,
    M,
    ModuleSharder,
    NullShardedModuleContext,
    Out,
    ShardedModule,
    ShardingPlanner,
    ShrdCtx,
    compute_storage_usage,
    rank_device,
)
from torchrec.modules.embedding_configs import ShardingType
from torchrec.types import BoundsCheckMode, CacheAlgorithm, DataType, ModuleNoCopyMixin

__all__ = [
    "Awaitable",
    "BoundsCheckMode",
    "CacheAlgorithm",
    "CacheParams",
    "CacheStatistics",
    "CommOp",
    "CompIn",
    "ComputeDevice",
    "DataType",
    "DistOut",
    "EmbeddingModuleShardingPlan",
    "EnumerableShardingSpec",
    "GetItemLazyAwaitable",
    "KeyValueParams",
    "LazyAwaitable",
    "LazyGetItemMixin",
    "LazyNoWait",
    "M",
    "ModuleNoCopyMixin",
    "ModuleSharder",
    "ModuleShardingPlan",
    "MultiPassPrefetchConfig",
    "NoOpQuantizedCommCodec",
    "NoWait",
    "NullShardedModuleContext",
    "Out",
    "ParameterSharding",
    "ParameterStorage",
    "PipelineType",
    "QuantizationContext",
    "QuantizedCommCodec",
    "QuantizedCommCodecs",
    "Shard",
    "ShardMetadata",
    "ShardedModule",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "ShardingEnv",
    "ShardingEnv2D",
    "ShardingPlan",
    "ShardingPlanner",
    "ShardingSpec",
    "ShardingStrategy",
    "ShardingType",
    "ShrdCtx",
    "StorageUsageType",
    "TensorProperties",
    "compute_storage_usage",
    "rank_device",
]
