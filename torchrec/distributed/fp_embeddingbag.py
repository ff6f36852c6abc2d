"""Pooled collections behind feature processors, their tables spread over ranks.

Features are processed where the sample is, before ids are sent: a processor sees the batch of its rank, as in one
process, and its weights are those of a layer, which the data-parallel wrapper of the model keeps alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.distributed.collection import StepContext, append_prefix
from torchrec.distributed.embedding_types import (
    BaseEmbeddingSharder,
    FeatureShardingMixIn,
    KJTList,
    ShardedEmbeddingModule,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.collection import TableStore
from torchrec.modules.feature_processor_ import (
    PositionWeightedModule,
    PositionWeightedModuleCollection,
)
from torchrec.modules.fp_embedding_modules import (
    FeatureProcessedEmbeddingBagCollection,
    apply_feature_processors_to_kjt,
)
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = [
    "FeatureProcessedEmbeddingBagCollectionSharder",
    "ShardedFeatureProcessedEmbeddingBagCollection",
]

# They give ids weights, and leave them as they are.
_WEIGHING = (PositionWeightedModule, PositionWeightedModuleCollection)
_TABLES = "_embedding_bag_collection"  # under which name both have the tables


class ShardedFeatureProcessedEmbeddingBagCollection(
    ShardedEmbeddingModule[StepContext, list[Tensor], KeyedTensor, StepContext],
    FusedOptimizerModule,
):
    """A `FeatureProcessedEmbeddingBagCollection` whose tables are spread over ranks.

    Each rank has all processors. Who shards it without `DistributedModelParallel` has to keep their weights alike.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes.
        ebc_sharder: who shards the tables.
        env: the ranks.
        device: where this rank has its parts.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: FeatureProcessedEmbeddingBagCollection,
        table_name_to_parameter_sharding: EmbeddingModuleShardingPlan,
        ebc_sharder: EmbeddingBagCollectionSharder,
        env: ShardingEnv,
        device: torch.device | None,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__()
        self._embedding_bag_collection = ebc_sharder.shard(
            module.table_store(),
            table_name_to_parameter_sharding,
            env,
            device,
            append_prefix(module_fqn or "", _TABLES),
        )
        # The very child, so that parameters keep their names.
        self._feature_processors = dict(module.named_children())["_feature_processors"]

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return FeatureProcessedEmbeddingBagCollection

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the parts of tables that this rank updates in the backward pass."""
        return CombinedOptimizer([(_TABLES, self._embedding_bag_collection.fused_optimizer)])

    def table_store(self) -> TableStore:
        """Return the tables, of which this rank has some parts."""
        return self._embedding_bag_collection.table_store()

    def is_weighted(self) -> bool:
        """Return True: each id comes with a weight, that of its processor."""
        return True

    @property
    def shardings(self) -> Mapping[str, FeatureShardingMixIn]:
        """Sharding type -> which ranks look up the features of such tables."""
        return self._embedding_bag_collection.shardings

    def create_context(self) -> StepContext:
        """Return what the parts of one forward pass hand on to each other."""
        return self._embedding_bag_collection.create_context()

    def input_dist(
        self, ctx: StepContext, features: KeyedJaggedTensor, error: Exception | None = None
    ) -> Awaitable[Awaitable[StepContext]]:
        """Weight ids, and send them to the ranks that have their rows.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch. Weights that they have are replaced.
            error: what is wrong with them already, if anything: all ranks raise it.
        """
        if error is None:
            try:
                features = self._processed(features)
            except Exception as failed:  # the others wait for this rank
                error = failed
        return self._embedding_bag_collection.input_dist(ctx, features, error)

    @property
    def input_dist_trains(self) -> bool:
        """Whether ids may follow from parameters, too, as processors may give others than they are given."""
        processors: list[nn.Module] = [self._feature_processors]
        if isinstance(self._feature_processors, nn.ModuleDict):
            processors = list(self._feature_processors.values())
        return any(type(each) not in _WEIGHING for each in processors)

    @property
    def compute_trains(self) -> bool:
        """Weights of ids follow from parameters, and their gradients from rows as they were looked up."""
        return True

    def input_dist_ahead(
        self, ctx: StepContext, features: KeyedJaggedTensor, error: Exception | None = None
    ) -> Awaitable[Awaitable[StepContext]]:
        """Send ids alone. `compute` sends their weights, which follow from parameters as the step before leaves them.

        Args:
            ctx: see `input_dist`.
            features: see `input_dist`.
            error: see `input_dist`.
        """
        return self._embedding_bag_collection.input_dist(ctx, features, error, weights_follow=True)

    def compute(self, ctx: StepContext, dist_input: StepContext) -> list[Tensor]:
        """Look up what all ranks have asked this one for."""
        if ctx.unweighted is not None:
            features, error = ctx.unweighted, None
            try:
                features = self._processed(features)
            except Exception as failed:  # the others wait for this rank
                error = failed
            self._embedding_bag_collection.weigh(ctx, features, error)
        return self._embedding_bag_collection.compute(ctx, dist_input)

    def output_dist(self, ctx: StepContext, output: list[Tensor]) -> LazyAwaitable[KeyedTensor]:
        """Send vectors back to the ranks that asked for them."""
        return self._embedding_bag_collection.output_dist(ctx, output)

    def apply_feature_processors_to_kjt_list(self, dist_input: KJTList) -> KJTList:
        """Return batches whose ids are weighted.

        Args:
            dist_input: the batches.
        """
        return KJTList([self._processed(features) for features in dist_input])

    def _processed(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        require_type(features, "`features`", KeyedJaggedTensor)
        processors = self._feature_processors
        if isinstance(processors, nn.ModuleDict):
            return apply_feature_processors_to_kjt(features, processors)
        processed: KeyedJaggedTensor = processors(features)
        return processed

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that are spread over ranks: those of tables.

        Args:
            prefix: written before each. Default none.
        """
        path = append_prefix(prefix, _TABLES)
        yield from self._embedding_bag_collection.sharded_parameter_names(path)


class FeatureProcessedEmbeddingBagCollectionSharder(
    BaseEmbeddingSharder[FeatureProcessedEmbeddingBagCollection]
):
    """Spreads the tables of a `FeatureProcessedEmbeddingBagCollection` over ranks.

    Args:
        ebc_sharder: who shards the tables. Default: an `EmbeddingBagCollectionSharder`.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`; those of an ``ebc_sharder`` that is given are its own.
    """

    def __init__(
        self,
        ebc_sharder: EmbeddingBagCollectionSharder | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry)
        self._ebc_sharder = ebc_sharder or EmbeddingBagCollectionSharder(
            qcomm_codecs_registry=qcomm_codecs_registry
        )

    def shard(
        self,
        module: FeatureProcessedEmbeddingBagCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedFeatureProcessedEmbeddingBagCollection:
        """Return the collection spread over ranks."""
        return ShardedFeatureProcessedEmbeddingBagCollection(
            module, params, self._ebc_sharder, env, device, module_fqn
        )

    @property
    def fused_params(self) -> dict[str, Any] | None:
        """How tables without an optimizer of their own are trained."""
        return self._ebc_sharder.fused_params

    @property
    def module_type(self) -> type[FeatureProcessedEmbeddingBagCollection]:
        """What it shards."""
        return FeatureProcessedEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedFeatureProcessedEmbeddingBagCollection]:
        """What it makes."""
        return ShardedFeatureProcessedEmbeddingBagCollection

    def shardable_parameters(
        self, module: FeatureProcessedEmbeddingBagCollection
    ) -> dict[str, nn.Parameter]:
        """Return the weights of the tables by the names of the tables.

        Args:
            module: the collection.
        """
        return self._ebc_sharder.shardable_parameters(module.table_store())

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways tables can be spread.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return self._ebc_sharder.sharding_types(compute_device_type)
