"""Quantised collections of sequences in parts, on several devices of one process."""

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
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import jagged_outputs
from torchrec.quant.collections import EmbeddingCollection
from torchrec.quant.embedding_modules import QuantEmbeddingCollection
from torchrec.quant.mapped_collections import QuantManagedCollisionEmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = [
    "QuantEmbeddingCollection",
    "QuantEmbeddingCollectionSharder",
    "QuantManagedCollisionEmbeddingCollectionSharder",
    "ShardedQuantEmbeddingCollection",
    "ShardedQuantManagedCollisionEmbeddingCollection",
]


class ShardedQuantEmbeddingCollection(ShardedQuantEmbeddingModuleState[Any]):
    """A quantised `EmbeddingCollection` in parts; it answers to the last bit as the whole one.

    All arguments: see `torchrec.distributed.quant_embeddingbag.ShardedQuantEmbeddingBagCollection`.
    """

    def __init__(
        self,
        module: EmbeddingCollection,
        table_name_to_parameter_sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        *,
        module_fqn: str | None = None,
    ) -> None:
        self._configs = module.embedding_configs()
        self._need_indices = module.need_indices()
        super().__init__(
            module,
            self._configs,
            "embeddings",
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            module_fqn,
        )

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

    def compute(self, ctx: StepOfParts, dist_input: ListOfKJTList) -> list[list[Tensor]]:
        """Return what each rank looks up, on its device."""
        return self._parts.look_up(dist_input, pooled=False, weighted=False)

    def output_dist(self, ctx: StepOfParts, output: list[list[Tensor]]) -> Any:
        """Return the embeddings of all ranks, by feature."""
        assert ctx.features is not None
        spec = self.chooser.spec_of(ctx.features.keys())
        vectors = self._parts.vectors(ctx, output)
        names = self.chooser.embedding_names
        return jagged_outputs(ctx.features, names, spec, vectors, self._need_indices)


class ShardedQuantManagedCollisionEmbeddingCollection(ShardedQuantEmbeddingCollection):
    """Quantised embeddings in parts, behind maps that give rows to ids without bounds.

    The maps are whole, where the ids are. All arguments: see `ShardedQuantEmbeddingCollection`.
    """

    def __init__(
        self,
        module: QuantManagedCollisionEmbeddingCollection,
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
        return QuantManagedCollisionEmbeddingCollection

    def input_dist(self, ctx: StepOfParts, features: KeyedJaggedTensor) -> ListOfKJTList:  # type: ignore[override]
        """Return for each rank the rows that it looks up, on its device."""
        return super().input_dist(ctx, self._managed_collision_collection.remap(features))

    def output_dist(self, ctx: StepOfParts, output: list[list[Tensor]]) -> Any:
        """Return the embeddings by feature; and the features with rows in place of ids, if asked for."""
        rows = ctx.features if self._returns_rows else None
        return super().output_dist(ctx, output), rows


class QuantEmbeddingCollectionSharder(BaseQuantEmbeddingSharder[EmbeddingCollection]):
    """Spreads a quantised `EmbeddingCollection`; see `BaseQuantEmbeddingSharder`."""

    whole = EmbeddingCollection
    in_parts = ShardedQuantEmbeddingCollection


class QuantManagedCollisionEmbeddingCollectionSharder(
    ManagedQuantEmbeddingSharder[QuantManagedCollisionEmbeddingCollection]
):
    """Spreads a quantised collection with maps; see `ManagedQuantEmbeddingSharder`."""

    whole = QuantManagedCollisionEmbeddingCollection
    in_parts = ShardedQuantManagedCollisionEmbeddingCollection
    of_tables = QuantEmbeddingCollectionSharder
