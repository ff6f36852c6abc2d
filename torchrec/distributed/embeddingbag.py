"""Pooled collections whose tables are spread over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.collection import (
    ShardedTableCollection,
    ShardedTables,
    StepContext,
)
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, ShardedEmbeddingModule
from torchrec.distributed.exchange import LookupOptions
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    LazyNoWait,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.tables import embedding_names_by_table
from torchrec.ops.embedding import Bags, lookup_bags
from torchrec.ops.permute import regroup
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = ["EmbeddingBagCollectionSharder", "ShardedEmbeddingBagCollection"]


class _LazyKeyedTensor(LazyNoWait[KeyedTensor]):
    stands_for = KeyedTensor


class ShardedEmbeddingBagCollection(
    ShardedTableCollection,
    ShardedEmbeddingModule[StepContext, list[Tensor], KeyedTensor, StepContext],
    FusedOptimizerModule,
):
    """An `EmbeddingBagCollection` whose tables are spread over ranks.

    It is called, trained, saved and inspected as one that is not; made by `EmbeddingBagCollectionSharder`.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes.
        env: the ranks.
        fused_params: see `BaseEmbeddingSharder`.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        module_fqn: its path in the model, for errors.
        sharded_module_order_overwrite: see `BaseEmbeddingSharder`.
        exact: see `BaseEmbeddingSharder`.
    """

    def __init__(
        self,
        module: EmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        module_fqn: str | None = None,
        sharded_module_order_overwrite: list[str] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(qcomm_codecs_registry)
        self._weighted = module.is_weighted()
        tables = ShardedTables(
            module,
            table_name_to_parameter_sharding,
            env,
            device,
            fused_params,
            "embedding_bags",
            LookupOptions(self._weighted, exact=exact, codecs=qcomm_codecs_registry),
            module_fqn or "",
        )
        self._set_tables(tables)
        self._names = [n for names in embedding_names_by_table(tables.configs) for n in names]
        self._dims = [c.embedding_dim for c in tables.configs for _ in c.feature_names]
        self._configs: list[EmbeddingBagConfig] = module.embedding_bag_configs()
        self._pieces = _pieces(tables)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._configs

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._weighted

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingBagCollection

    def compute(self, ctx: StepContext, dist_input: StepContext) -> list[Tensor]:
        """Look up what all ranks have asked this one for."""
        here, away = self._pool_here(dist_input.features), self._tables.away
        if away is None or dist_input.step is None:
            return [here]
        return [here, *away.compute(dist_input.step)]

    def output_dist(self, ctx: StepContext, output: list[Tensor]) -> LazyAwaitable[KeyedTensor]:
        """Send vectors back to the ranks that asked for them."""
        values, tables = output[0], self._tables
        if tables.away is not None and ctx.step is not None:
            away = tables.away.pool(ctx.step, output[1:])
            values = regroup([values, away], *self._pieces)[0] if tables.here.configs else away
        return _LazyKeyedTensor(KeyedTensor(self._names, self._dims, values))

    def _full_batch(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        different = features.variable_stride_per_key()
        return features.expand_inverse() if different else super()._full_batch(features)

    def _pool_here(self, features: KeyedJaggedTensor) -> Tensor:
        weights, spec, groups = self._tables.here.lookup_of(features.keys())
        if not weights:
            return features.values().new_empty((features.stride(), 0), dtype=self._tables.dtype)
        sample_weights = features.weights_or_none() if self._weighted else None
        if self._weighted and sample_weights is None:
            raise ValueError("`features` should have weights, as `is_weighted` says.")
        bags = Bags(features.values(), features.offsets(), sample_weights)
        output, out_of_range = lookup_bags(weights, spec, bags, self._tables.dtype, groups)
        self._count_here(out_of_range)
        return output


def _pieces(tables: ShardedTables) -> tuple[list[int], list[int]]:
    """Return how columns of tables looked up here and by exchange are put in order, as `regroup` takes it."""
    pieces, at = [], [0, 0]
    for config in tables.configs:
        side = 0 if tables.is_here(config.name) else 1
        for _ in config.feature_names:
            pieces += [side, at[side], config.embedding_dim]
            at[side] += config.embedding_dim
    return pieces, [len(pieces) // 3]


class EmbeddingBagCollectionSharder(BaseEmbeddingSharder[EmbeddingBagCollection]):
    """Spreads the tables of an `EmbeddingBagCollection` over ranks; see `BaseEmbeddingSharder`."""

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """Return the collection spread over ranks."""
        return ShardedEmbeddingBagCollection(
            module,
            params,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn,
            exact=self._exact,
        )

    @property
    def module_type(self) -> type[EmbeddingBagCollection]:
        """What it shards."""
        return EmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedEmbeddingBagCollection]:
        """What it makes."""
        return ShardedEmbeddingBagCollection
