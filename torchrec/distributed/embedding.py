"""Sequence collections whose tables are spread over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._output_parts import EmbeddingCollectionAwaitable
from torchrec.distributed.collection import (
    ShardedTableCollection,
    StepContext,
)
from torchrec.distributed.embedding_types import (
    BaseEmbeddingSharder,
    FeatureShardingMixIn,
    ShardedEmbeddingModule,
)
from torchrec.distributed.exchange import LookupOptions
from torchrec.distributed.feature_sharding import shardings_of
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    LazyNoWait,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.tables import embedding_names_by_table
from torchrec.ops.embedding import Ids, lookup_sequences
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

__all__ = [
    "EmbeddingCollectionAwaitable",
    "EmbeddingCollectionSharder",
    "ShardedEmbeddingCollection",
]


class _LazyDictionary(LazyNoWait[dict[str, JaggedTensor]]):
    stands_for = dict


class ShardedEmbeddingCollection(
    ShardedTableCollection,
    ShardedEmbeddingModule[StepContext, list[Tensor], dict[str, JaggedTensor], StepContext],
    FusedOptimizerModule,
):
    """An `EmbeddingCollection` whose tables are spread over ranks.

    It is called, trained, saved and inspected as one that is not; made by `EmbeddingCollectionSharder`.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes.
        env: the ranks.
        fused_params: see `BaseEmbeddingSharder`.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        use_index_dedup: send each id that a feature has in a batch once, and the sum of its gradients: less to send
            where ids come again, at the price of looking for them. Vectors are the same, to the last bit; what tables
            learn, to the rounding of sums in another order. Where a table's update goes by how often an id comes
            (``batch_l2``), each is sent as often. Default False.
        module_fqn: its path in the model, for errors.
        exact: see `BaseEmbeddingSharder`.
    """

    def __init__(
        self,
        module: EmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        use_index_dedup: bool = False,
        module_fqn: str | None = None,
        *,
        exact: bool = False,
    ) -> None:
        if use_index_dedup and exact:
            raise ValueError(
                "`exact` should be False with `use_index_dedup`: gradients of an id that comes several times are "
                "added up before they are sent. Received True for both."
            )
        super().__init__(qcomm_codecs_registry)
        tables = ShardedTables(
            module,
            table_name_to_parameter_sharding,
            env,
            device,
            fused_params,
            "embeddings",
            LookupOptions(
                by_rows=True, exact=exact, codecs=qcomm_codecs_registry, distinct=use_index_dedup
            ),
            module_fqn or "",
        )
        self._set_tables(tables)
        self._names = [n for names in embedding_names_by_table(tables.configs) for n in names]
        self._configs: list[EmbeddingConfig] = module.embedding_configs()
        self._need_indices = module.need_indices()

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        return self._configs

    def need_indices(self) -> bool:
        """Return whether the ids are passed on with their embeddings."""
        return self._need_indices

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingCollection

    @property
    def shardings(self) -> Mapping[str, FeatureShardingMixIn]:
        """Sharding type -> which ranks look up the features of such tables."""
        return shardings_of(self._tables)

    def compute(self, ctx: StepContext, dist_input: StepContext) -> list[Tensor]:
        """Look up what all ranks have asked this one for."""
        self._begin_lookup(dist_input)
        here, away = self._gather_here(dist_input.features), self._tables.away
        if away is None or dist_input.step is None:
            return here
        return [*here, *away.compute(dist_input.step)]

    def output_dist(
        self, ctx: StepContext, output: list[Tensor]
    ) -> LazyAwaitable[dict[str, JaggedTensor]]:
        """Send vectors back to the ranks that asked for them."""
        tables = self._tables
        num_here = sum(len(config.feature_names) for config in tables.here.configs)
        here, away = iter(output[:num_here]), iter(output)
        if tables.away is not None and ctx.step is not None:
            away = iter(tables.away.gather(ctx.step, output[num_here:]))
        inputs, keys = ctx.features.to_dict(), ctx.features.keys()
        result, names = {}, iter(self._names)
        for config in tables.configs:
            side = here if tables.is_here(config.name) else away
            for feature in config.feature_names:
                mine = inputs[feature if feature in keys else f"{feature}@{config.name}"]
                indices = mine.values() if self._need_indices else None
                result[next(names)] = JaggedTensor(
                    next(side), weights=indices, lengths=mine.lengths()
                )
        return _LazyDictionary(result)

    def _gather_here(self, features: KeyedJaggedTensor) -> list[Tensor]:
        weights, spec, groups = self._tables.here.lookup_of(features.keys())
        if not weights:
            return []
        offsets, sizes = features.offset_per_key(), features.length_per_key()
        starts = [offsets[slot.key] for slot in spec.slots]
        counts = [sizes[slot.key] for slot in spec.slots]
        ids = Ids(features.values(), starts, counts, features.stride())
        outputs, out_of_range = lookup_sequences(weights, spec, ids, self._tables.dtype, groups)
        self._count_here(out_of_range)
        return outputs


class EmbeddingCollectionSharder(BaseEmbeddingSharder[EmbeddingCollection]):
    """Spreads the tables of an `EmbeddingCollection` over ranks; see `BaseEmbeddingSharder`.

    Args:
        fused_params: see `BaseEmbeddingSharder`.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        use_index_dedup: send each id that a feature has in a batch once, and the sum of its gradients: less to send
            where ids come again, at the price of looking for them. Vectors are the same, to the last bit; what tables
            learn, to the rounding of sums in another order. Where a table's update goes by how often an id comes
            (``batch_l2``), each is sent as often. Default False.
        exact: see `BaseEmbeddingSharder`.
    """

    def __init__(
        self,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        use_index_dedup: bool = False,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(fused_params, qcomm_codecs_registry, exact=exact)
        self._use_index_dedup = use_index_dedup

    @property
    def use_index_dedup(self) -> bool:
        """Whether each id that a feature has in a batch is sent once."""
        return self._use_index_dedup

    def shard(
        self,
        module: EmbeddingCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingCollection:
        """Return the collection spread over ranks."""
        return ShardedEmbeddingCollection(
            module,
            params,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            self._use_index_dedup,
            module_fqn,
            exact=self._exact,
        )

    @property
    def module_type(self) -> type[EmbeddingCollection]:
        """What it shards."""
        return EmbeddingCollection

    @property
    def sharded_module_type(self) -> type[ShardedEmbeddingCollection]:
        """What it makes."""
        return ShardedEmbeddingCollection
