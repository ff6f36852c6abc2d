"""Tables with managed ids: any id, a row each while it is warm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from torchrec.models.registry._first_order import linear_name
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

if TYPE_CHECKING:
    from torchrec.datasets.transform import TableSpec

_POLICIES: dict[str, Callable[[], MCHEvictionPolicy]] = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


class ManagedTables(EmbeddingBagCollectionInterface):
    """Tables of which some have a map that gives their rows to ids, looked up as one collection.

    Args:
        collection: all tables.
        specs: of the same tables; those with managed ids get a map. A table of weights beside one of
            vectors shares its map, so that an id has the same row in both, and loses both at once.
    """

    def __init__(self, collection: EmbeddingBagCollection, specs: Sequence[TableSpec]) -> None:
        super().__init__()
        self._configs = configs = collection.embedding_bag_configs()
        self._is_weighted = collection.is_weighted()
        rows = {config.name: config.num_embeddings for config in configs}
        maps: dict[str, MCHManagedCollisionModule | None] = {}
        for spec in specs:
            managed = spec.ids == "managed"
            maps[spec.name] = _map(spec, rows[spec.name], collection.device) if managed else None
            if linear_name(spec.name) in rows:
                maps[linear_name(spec.name)] = maps[spec.name]
        self.tables = ManagedCollisionEmbeddingBagCollection(
            collection, ManagedCollisionCollection(maps, configs)
        )

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return list(self._configs)

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._is_weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool ``features``, as an `EmbeddingBagCollection` does."""
        pooled, _ = self.tables(features)
        assert isinstance(pooled, KeyedTensor)
        return pooled


def _map(spec: TableSpec, rows: int, device: torch.device) -> MCHManagedCollisionModule:
    return MCHManagedCollisionModule(
        zch_size=rows,
        device=device,
        eviction_policy=_POLICIES[spec.evict](),
        eviction_interval=spec.evict_every,
        name=spec.name,
    )
