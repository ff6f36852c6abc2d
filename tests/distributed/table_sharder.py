"""A sharder that shards nothing: who plans needs only the names of tables from one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.types import ModuleSharder, ShardingType


class TableSharder(ModuleSharder[EmbeddingBagCollection]):
    """Knows the tables of a collection; ``fused_params`` as sharders have them."""

    def __init__(self, fused_params: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.fused_params = fused_params

    @property
    def module_type(self):
        return EmbeddingBagCollection

    def shardable_parameters(self, module: EmbeddingBagCollection) -> dict[str, nn.Parameter]:
        return {name.split(".")[-2]: param for name, param in module.named_parameters()}

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [member.value for member in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return ["dense"] if sharding_type == "data_parallel" else ["fused", "dense"]

    def shard(self, module, params, env, device=None, module_fqn=None):
        raise NotImplementedError


def collection(device: str = "meta", **tables: tuple[int, int]) -> EmbeddingBagCollection:
    """A collection with tables of these names and shapes."""
    return EmbeddingBagCollection(
        device=torch.device(device),
        tables=[
            EmbeddingBagConfig(
                name=name,
                num_embeddings=rows,
                embedding_dim=columns,
                feature_names=[f"f_{name}"],
            )
            for name, (rows, columns) in tables.items()
        ],
    )
