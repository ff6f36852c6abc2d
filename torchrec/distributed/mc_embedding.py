"""Managed-collision collections of sequences on many ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchrec.distributed.embedding import EmbeddingCollectionSharder
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
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection

__all__ = [
    "ManagedCollisionEmbeddingCollectionContext",
    "ManagedCollisionEmbeddingCollectionSharder",
    "ShardedManagedCollisionEmbeddingCollection",
]

ManagedCollisionEmbeddingCollectionContext = ManagedCollisionContext


class ShardedManagedCollisionEmbeddingCollection(BaseShardedManagedCollisionEmbeddingCollection):
    """A `ManagedCollisionEmbeddingCollection` spread over ranks; see the class that it derives from.

    It is called, trained, saved and inspected as one that is not; made by
    `ManagedCollisionEmbeddingCollectionSharder`.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes, and with it its map.
        ec_sharder: spreads the tables.
        mc_sharder: spreads the maps.
        env: the ranks.
        device: where this rank has its parts.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: ManagedCollisionEmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        ec_sharder: EmbeddingCollectionSharder,
        mc_sharder: ManagedCollisionCollectionSharder,
        env: ShardingEnv,
        device: torch.device,
        *,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__(
            module,
            table_name_to_parameter_sharding,
            ec_sharder,
            mc_sharder,
            env,
            device,
            module_fqn=module_fqn,
        )

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return ManagedCollisionEmbeddingCollection


class ManagedCollisionEmbeddingCollectionSharder(
    BaseManagedCollisionEmbeddingCollectionSharder[ManagedCollisionEmbeddingCollection]
):
    """Spreads a `ManagedCollisionEmbeddingCollection` over ranks.

    Args:
        ec_sharder: spreads its tables. Default: one with the options below.
        mc_sharder: spreads its maps. Default: one without options.
        fused_params: see `BaseEmbeddingSharder`; without ``ec_sharder``.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`; without ``ec_sharder``.
    """

    def __init__(
        self,
        ec_sharder: EmbeddingCollectionSharder | None = None,
        mc_sharder: ManagedCollisionCollectionSharder | None = None,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> None:
        refuse_both(ec_sharder, "ec_sharder", fused_params, qcomm_codecs_registry)
        self._tables = ec_sharder or EmbeddingCollectionSharder(fused_params, qcomm_codecs_registry)
        self._maps = mc_sharder or ManagedCollisionCollectionSharder()
        super().__init__(self._tables, self._maps, qcomm_codecs_registry)

    def shard(
        self,
        module: ManagedCollisionEmbeddingCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionEmbeddingCollection:
        """Return the collection spread over ranks."""
        return ShardedManagedCollisionEmbeddingCollection(
            module,
            params,
            self._tables,
            self._maps,
            env,
            torch.device("cpu") if device is None else device,
            module_fqn=module_fqn,
        )

    @property
    def module_type(self) -> type[ManagedCollisionEmbeddingCollection]:
        """What it shards."""
        return ManagedCollisionEmbeddingCollection

    @property
    def sharded_module_type(self) -> type[ShardedManagedCollisionEmbeddingCollection]:
        """What it makes."""
        return ShardedManagedCollisionEmbeddingCollection
