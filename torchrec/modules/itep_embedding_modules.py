"""Collections with in-training embedding pruning: the names, and what remains of them where nothing is pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.itep_modules import GenericITEPModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["ITEPEmbeddingBagCollection", "ITEPEmbeddingCollection"]


class ITEPEmbeddingBagCollection(LeafModule, nn.Module):
    """Looks ids up, and counts the steps; the state has the names of the API.

    Args:
        embedding_bag_collection: the tables.
        itep_module: a module that prunes nothing, see `GenericITEPModule`.

    Example:
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
        >>> module = ITEPEmbeddingBagCollection(
        ...     EmbeddingBagCollection(tables=[table]), GenericITEPModule({"t": 10}, enable_pruning=False)
        ... )
        >>> module(KeyedJaggedTensor.from_lists({"f": [[1, 2]]})).values().shape
        torch.Size([1, 4])
        >>> list(module.state_dict())
        ['_iter', '_embedding_bag_collection.embedding_bags.t.weight']
    """

    _iter: Tensor

    def __init__(
        self, embedding_bag_collection: EmbeddingBagCollection, itep_module: GenericITEPModule
    ) -> None:
        super().__init__()
        self.register_buffer("_iter", torch.tensor(0))
        self._embedding_bag_collection = embedding_bag_collection
        self._itep_module = itep_module

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look ids up, see ``EmbeddingBagCollection.forward``.

        Args:
            features: ids.
        """
        if is_proxy(features):
            traced: KeyedTensor = self.recorded(features)
            return traced
        # No pruning, so nobody needs the number of the step, for which an accelerator would be waited for.
        pooled: KeyedTensor = self._embedding_bag_collection(self._itep_module(features, 0))
        self._iter += 1
        return pooled

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._embedding_bag_collection.embedding_bag_configs()


class ITEPEmbeddingCollection(LeafModule, nn.Module):
    """Looks ids up, one embedding each, and counts the steps; the state has the names of the API.

    Args:
        embedding_collection: the tables.
        itep_module: a module that prunes nothing, see `GenericITEPModule`.
    """

    _iter: Tensor

    def __init__(
        self, embedding_collection: EmbeddingCollection, itep_module: GenericITEPModule
    ) -> None:
        super().__init__()
        self.register_buffer("_iter", torch.tensor(0))
        self._embedding_collection = embedding_collection
        self._itep_module = itep_module

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look ids up, see ``EmbeddingCollection.forward``.

        Args:
            features: ids.
        """
        if is_proxy(features):
            traced: dict[str, JaggedTensor] = self.recorded(features)
            return traced
        embeddings: dict[str, JaggedTensor] = self._embedding_collection(
            self._itep_module(features, 0)
        )
        self._iter += 1
        return embeddings

    def embedding_bag_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        return self._embedding_collection.embedding_configs()
