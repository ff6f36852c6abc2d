"""Managed-collision collections of pooled embeddings on many ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding_modules import (
    BaseManagedCollisionEmbeddingCollectionSharder,
    BaseShardedManagedCollisionEmbeddingCollection,
    ManagedCollisionContext,
    refuse_both,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

__all__ = [
    "ManagedCollisionEmbeddingBagCollectionContext",
    "ManagedCollisionEmbeddingBagCollectionSharder",
    "ShardedManagedCollisionEmbeddingBagCollection",
]

ManagedCollisionEmbeddingBagCollectionContext = ManagedCollisionContext


class ShardedManagedCollisionEmbeddingBagCollection(BaseShardedManagedCollisionEmbeddingCollection):
    """A `ManagedCollisionEmbeddingBagCollection` spread over ranks; see the class that it derives from.

    It is called, trained, saved and inspected as one that is not; made by
    `ManagedCollisionEmbeddingBagCollectionSharder`.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes, and with it its map.
        ebc_sharder: spreads the tables.
        mc_sharder: spreads the maps.
        env: the ranks.
        device: where this rank has its parts.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        ebc_sharder: EmbeddingBagCollectionSharder,
        mc_sharder: ManagedCollisionCollectionSharder,
        env: ShardingEnv,
        device: torch.device,
        *,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__(
            module,
            table_name_to_parameter_sharding,
            ebc_sharder,
            mc_sharder,
            env,
            device,
            module_fqn=module_fqn,
        )

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return ManagedCollisionEmbeddingBagCollection


class ManagedCollisionEmbeddingBagCollectionSharder(
    BaseManagedCollisionEmbeddingCollectionSharder[ManagedCollisionEmbeddingBagCollection]
):
    """Spreads a `ManagedCollisionEmbeddingBagCollection` over ranks.

    Args:
        ebc_sharder: spreads its tables. Default: one with the options below.
        mc_sharder: spreads its maps. Default: one without options.
        fused_params: see `BaseEmbeddingSharder`; without ``ebc_sharder``.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`; without ``ebc_sharder``.
    """

    def __init__(
        self,
        ebc_sharder: EmbeddingBagCollectionSharder | None = None,
        mc_sharder: ManagedCollisionCollectionSharder | None = None,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> None:
        refuse_both(ebc_sharder, "ebc_sharder", fused_params, qcomm_codecs_registry)
        self._tables = ebc_sharder or EmbeddingBagCollectionSharder(
            fused_params, qcomm_codecs_registry
        )
        self._maps = mc_sharder or ManagedCollisionCollectionSharder()
        super().__init__(self._tables, self._maps, qcomm_codecs_registry)

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionEmbeddingBagCollection:
        """Return the collection spread over ranks."""
        return ShardedManagedCollisionEmbeddingBagCollection(
            module,
            params,
            self._tables,
            self._maps,
            env,
            torch.device("cpu") if device is None else device,
            module_fqn=module_fqn,
        )

    @property
    def module_type(self) -> type[ManagedCollisionEmbeddingBagCollection]:
        """What it shards."""
        return ManagedCollisionEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedManagedCollisionEmbeddingBagCollection]:
        """What it makes."""
        return ShardedManagedCollisionEmbeddingBagCollection
