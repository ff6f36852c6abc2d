"""Pooled quantised collections in parts, on several devices of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.embedding_types import ListOfKJTList
from torchrec.distributed.quant_parts import StepOfParts
from torchrec.distributed.quant_sharder import (
    BaseQuantEmbeddingSharder,
    ManagedQuantEmbeddingSharder,
)
from torchrec.distributed.quant_state import ShardedQuantEmbeddingModuleState
from torchrec.distributed.types import (
    ParameterSharding,
    ShardingEnv,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.feature_processor_ import FeatureProcessorsCollection
from torchrec.quant.collections import EmbeddingBagCollection
from torchrec.quant.mapped_collections import (
    FeatureProcessedEmbeddingBagCollection,
    QuantManagedCollisionEmbeddingBagCollection,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = [
    "QuantEmbeddingBagCollectionSharder",
    "QuantFeatureProcessedEmbeddingBagCollectionSharder",
    "QuantManagedCollisionEmbeddingBagCollectionSharder",
    "ShardedQuantEmbeddingBagCollection",
    "ShardedQuantManagedCollisionEmbeddingBagCollection",
]


class ShardedQuantEmbeddingBagCollection(ShardedQuantEmbeddingModuleState[Any]):
    """A quantised `EmbeddingBagCollection` in parts; it answers to the last bit as the whole one.

    Which row an id chooses is decided where the ids are. Of tables that are divided by rows vectors travel, one an id,
    and are pooled where the bags are. Feature processors stay where the ids are.

    Args:
        module: the collection, or one with feature processors.
        table_name_to_parameter_sharding: where each table goes; the device of each part is that of its placement.
        env: how many devices there are: of `ShardingEnv.from_local`.
        fused_params: see `BaseQuantEmbeddingSharder`.
        device: where ids come in and vectors go out. Default, and for ``meta``: where the first part is.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: EmbeddingBagCollection,
        table_name_to_parameter_sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        *,
        module_fqn: str | None = None,
    ) -> None:
        self._configs = module.embedding_bag_configs()
        self._is_weighted = module.is_weighted()
        super().__init__(
            module,
            self._configs,
            "embedding_bags",
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            module_fqn,
        )
        self.feature_processor: FeatureProcessorsCollection | None = None
        if isinstance(module, FeatureProcessedEmbeddingBagCollection):
            self.feature_processor = module.feature_processor

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._configs

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._is_weighted

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingBagCollection

    def input_dist(self, ctx: StepOfParts, features: KeyedJaggedTensor) -> ListOfKJTList:  # type: ignore[override]
        """Return for each rank the rows that it looks up, on its device."""
        if self.feature_processor is not None:
            features = self.feature_processor(features)
        elif self._is_weighted and features.weights_or_none() is None:
            raise ValueError("`features` should have weights, as `is_weighted` says.")
        return super().input_dist(ctx, features)

    def compute(self, ctx: StepOfParts, dist_input: ListOfKJTList) -> list[list[Tensor]]:
        """Return what each rank looks up, on its device."""
        return self._parts.look_up(dist_input, pooled=True, weighted=self._is_weighted)

    def output_dist(self, ctx: StepOfParts, output: list[list[Tensor]]) -> Any:
        """Return the pooled embeddings of all ranks."""
        values = self._parts.pool(ctx, output, self._is_weighted)
        return KeyedTensor(self.chooser.embedding_names, self.chooser.dims, values)


class ShardedQuantManagedCollisionEmbeddingBagCollection(ShardedQuantEmbeddingBagCollection):
    """Quantised embedding bags in parts, behind maps that give rows to ids without bounds.

    The maps are whole, where the ids are. All arguments: see `ShardedQuantEmbeddingBagCollection`.
    """

    def __init__(
        self,
        module: QuantManagedCollisionEmbeddingBagCollection,
        table_name_to_parameter_sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        *,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__(
            module,
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            module_fqn=module_fqn,
        )
        self._managed_collision_collection = module.managed_collision_collection()
        self._returns_rows = module.return_remapped_features

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return QuantManagedCollisionEmbeddingBagCollection

    def input_dist(self, ctx: StepOfParts, features: KeyedJaggedTensor) -> ListOfKJTList:  # type: ignore[override]
        """Return for each rank the rows that it looks up, on its device."""
        return super().input_dist(ctx, self._managed_collision_collection.remap(features))

    def output_dist(self, ctx: StepOfParts, output: list[list[Tensor]]) -> Any:
        """Return the pooled embeddings of all ranks; and the features with rows in place of ids, if asked for."""
        rows = ctx.features if self._returns_rows else None
        return super().output_dist(ctx, output), rows


class QuantEmbeddingBagCollectionSharder(BaseQuantEmbeddingSharder[EmbeddingBagCollection]):
    """Spreads a quantised `EmbeddingBagCollection`; see `BaseQuantEmbeddingSharder`."""

    whole = EmbeddingBagCollection
    in_parts = ShardedQuantEmbeddingBagCollection


class QuantFeatureProcessedEmbeddingBagCollectionSharder(
    BaseQuantEmbeddingSharder[FeatureProcessedEmbeddingBagCollection]
):
    """Spreads a quantised collection with feature processors, which stay whole; see `BaseQuantEmbeddingSharder`."""

    whole = FeatureProcessedEmbeddingBagCollection
    in_parts = ShardedQuantEmbeddingBagCollection


class QuantManagedCollisionEmbeddingBagCollectionSharder(
    ManagedQuantEmbeddingSharder[QuantManagedCollisionEmbeddingBagCollection]
):
    """Spreads a quantised collection with maps; see `ManagedQuantEmbeddingSharder`."""

    whole = QuantManagedCollisionEmbeddingBagCollection
    in_parts = ShardedQuantManagedCollisionEmbeddingBagCollection
    of_tables = QuantEmbeddingBagCollectionSharder
