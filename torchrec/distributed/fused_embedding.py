"""Sequence collections with one optimizer for all of their tables, spread over ranks."""

from __future__ import annotations

import torch
from torch import nn

from torchrec.distributed._fused_tables import KERNELS, SHARDING_TYPES, check_plan
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.fused_embedding_modules import FusedEmbeddingCollection

__all__ = ["FusedEmbeddingCollectionSharder", "ShardedFusedEmbeddingCollection"]


class ShardedFusedEmbeddingCollection(ShardedEmbeddingCollection):
    """A `FusedEmbeddingCollection` whose tables are spread over ranks, with their optimizer.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes.
        env: the ranks.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        module_fqn: its path in the model, for errors.
        exact: see `BaseEmbeddingSharder`.

    Raises:
        ValueError: for copies (data-parallel), which an optimizer around the model trains.
    """

    def __init__(
        self,
        module: FusedEmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        module_fqn: str | None = None,
        exact: bool = False,
    ) -> None:
        check_plan(table_name_to_parameter_sharding, module_fqn or "")
        super().__init__(
            module.table_store(),
            table_name_to_parameter_sharding,
            env,
            None,
            device,
            qcomm_codecs_registry,
            module_fqn=module_fqn,
            exact=exact,
        )

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return FusedEmbeddingCollection


class FusedEmbeddingCollectionSharder(BaseEmbeddingSharder[FusedEmbeddingCollection]):
    """Spreads the tables of a `FusedEmbeddingCollection` over ranks; see `BaseEmbeddingSharder`.

    There is no table without an optimizer of its own, which ``fused_params`` would be for.
    """

    def shard(
        self,
        module: FusedEmbeddingCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedFusedEmbeddingCollection:
        """Return the collection spread over ranks."""
        return ShardedFusedEmbeddingCollection(
            module,
            params,
            env,
            device,
            self.qcomm_codecs_registry,
            module_fqn=module_fqn,
            exact=self._exact,
        )

    @property
    def module_type(self) -> type[FusedEmbeddingCollection]:
        """What it shards."""
        return FusedEmbeddingCollection

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return with which kernel: the one that the backward pass updates tables with.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return list(KERNELS)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways tables can be spread: in all but as copies.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return list(SHARDING_TYPES)
