"""Embedding collections and their maps, made in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.collection import TableStore
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["McEmbeddingBagCollectionAdapter", "McEmbeddingCollectionAdapter"]


def _maps(
    tables: Sequence[BaseEmbeddingConfig],
    input_hash_size: int,
    device: torch.device | str,
    eviction_interval: int,
    zch_method: str,
    num_buckets: int | None,
    max_probe: int | None,
) -> ManagedCollisionCollection:
    def counted(table: BaseEmbeddingConfig) -> ManagedCollisionModule:
        return MCHManagedCollisionModule(
            table.num_embeddings,
            device,
            DistanceLFU_EvictionPolicy(),
            eviction_interval,
            input_hash_size,
            name=table.name,
        )

    def hashed(table: BaseEmbeddingConfig) -> ManagedCollisionModule:
        return HashZchManagedCollisionModule(
            table.num_embeddings,
            device,
            num_buckets or 1,
            max_probe or table.num_embeddings,
            input_hash_size,
            name=table.name,
            eviction_policy_name=HashZchEvictionPolicyName.SINGLE_TTL_EVICTION,
            eviction_config=HashZchEvictionConfig(list(table.feature_names), single_ttl=1),
        )

    methods = {"": counted, "sort_zch": counted, "mpzch": hashed}
    if zch_method not in methods:
        raise ValueError(
            "`zch_method` should be 'sort_zch', '' for the same, or 'mpzch'. "
            f"Received '{zch_method}' for tables {[table.name for table in tables]}."
        )
    if zch_method == "mpzch" and eviction_interval != 1:
        raise ValueError(
            "`eviction_interval` should be 1 for 'mpzch', which gives and takes rows in each batch. "
            f"Received {eviction_interval}."
        )
    return ManagedCollisionCollection(
        {table.name: methods[zch_method](table) for table in tables}, tables
    )


class McEmbeddingCollectionAdapter(nn.Module, LeafModule):
    """An `EmbeddingCollection` for ids without bounds, from the configurations of its tables.

    Each table has a map of as many rows as it has itself: with a `DistanceLFU_EvictionPolicy`, or
    by multi-probe hashing, where ids lose their rows once they have not come for an hour.

    Args:
        tables: the tables.
        input_hash_size: range of the ids.
        device: of maps and tables.
        world_size: without effect: rows need not divide by the number of ranks.
        eviction_interval: training batches from one eviction to the next. Default 1, which it has to
            be for ``"mpzch"``.
        allow_in_place_embed_weight_update: without effect: evicted rows are written in place.
        zch_method: ``"sort_zch"``, or empty for the same; or ``"mpzch"``, a `HashZchManagedCollisionModule`.
        mpzch_num_buckets: of ``"mpzch"``: into how many parts rows are divided, which has to divide them. None: 1.
        mpzch_max_probe: of ``"mpzch"``: how many rows an id may have. None: all of its part.

    Example:
        >>> tables = [EmbeddingConfig(10, 4, "t", feature_names=["f"])]
        >>> adapter = McEmbeddingCollectionAdapter(tables, 2**40, torch.device("cpu"), 1)
        >>> adapter(KeyedJaggedTensor.from_lists({"f": [[10**9, 5], []]}))["f"].values().shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        input_hash_size: int,
        device: torch.device | str,
        world_size: int,
        eviction_interval: int = 1,
        allow_in_place_embed_weight_update: bool = False,
        zch_method: str = "",
        mpzch_num_buckets: int | None = 80,
        mpzch_max_probe: int | None = 100,
    ) -> None:
        super().__init__()
        self.mc_embedding_collection = ManagedCollisionEmbeddingCollection(
            EmbeddingCollection(tables=tables, device=device),
            _maps(
                tables,
                input_hash_size,
                device,
                eviction_interval,
                zch_method,
                mpzch_num_buckets,
                mpzch_max_probe,
            ),
            allow_in_place_embed_weight_update=allow_in_place_embed_weight_update,
        )

    def forward(self, input: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up.

        Args:
            input: ids of all features of the tables.
        """
        if is_proxy(input):
            traced: dict[str, JaggedTensor] = self.recorded(input)
            return traced
        embeddings, _ = self.mc_embedding_collection(input)
        assert isinstance(embeddings, dict)
        return embeddings

    def embedding_bag_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        return self.embedding_configs()

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        configs = self.mc_embedding_collection.table_store().table_configs()
        return [config for config in configs if isinstance(config, EmbeddingConfig)]

    def table_store(self) -> TableStore:
        """Return the tables."""
        return self.mc_embedding_collection.table_store()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return the weights of the tables.

        Args:
            recurse: without effect: the weights belong to modules inside.
        """
        return self.mc_embedding_collection.parameters()


class McEmbeddingBagCollectionAdapter(nn.Module, LeafModule):
    """An `EmbeddingBagCollection` for ids without bounds, from the configurations of its tables.

    Each table has a map of as many rows as it has itself: with a `DistanceLFU_EvictionPolicy`, or
    by multi-probe hashing, where ids lose their rows once they have not come for an hour.

    Args:
        tables: the tables.
        input_hash_size: range of the ids.
        device: of maps and tables.
        world_size: without effect: rows need not divide by the number of ranks.
        eviction_interval: training batches from one eviction to the next. Default 1, which it has to
            be for ``"mpzch"``.
        allow_in_place_embed_weight_update: without effect: evicted rows are written in place.
        zch_method: ``"sort_zch"``, or empty for the same; or ``"mpzch"``, a `HashZchManagedCollisionModule`.
        mpzch_num_buckets: of ``"mpzch"``: into how many parts rows are divided, which has to divide them. None: 1.
        mpzch_max_probe: of ``"mpzch"``: how many rows an id may have. None: all of its part.

    Example:
        >>> tables = [EmbeddingBagConfig(10, 4, "t", feature_names=["f"])]
        >>> adapter = McEmbeddingBagCollectionAdapter(tables, 2**40, torch.device("cpu"), 1)
        >>> adapter(KeyedJaggedTensor.from_lists({"f": [[10**9, 5], []]}))["f"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        input_hash_size: int,
        device: torch.device | str,
        world_size: int,
        eviction_interval: int = 1,
        allow_in_place_embed_weight_update: bool = False,
        zch_method: str = "",
        mpzch_num_buckets: int | None = 80,
        mpzch_max_probe: int | None = 100,
    ) -> None:
        super().__init__()
        self.mc_embedding_bag_collection = ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=tables, device=device),
            _maps(
                tables,
                input_hash_size,
                device,
                eviction_interval,
                zch_method,
                mpzch_num_buckets,
                mpzch_max_probe,
            ),
            allow_in_place_embed_weight_update=allow_in_place_embed_weight_update,
        )

    def forward(self, input_kjt: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            input_kjt: ids of all features of the tables.
        """
        if is_proxy(input_kjt):
            traced: KeyedTensor = self.recorded(input_kjt)
            return traced
        pooled, _ = self.mc_embedding_bag_collection(input_kjt)
        assert isinstance(pooled, KeyedTensor)
        return pooled

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        configs = self.mc_embedding_bag_collection.table_store().table_configs()
        return [config for config in configs if isinstance(config, EmbeddingBagConfig)]

    def table_store(self) -> TableStore:
        """Return the tables."""
        return self.mc_embedding_bag_collection.table_store()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return the weights of the tables.

        Args:
            recurse: without effect: the weights belong to modules inside.
        """
        return self.mc_embedding_bag_collection.parameters()
