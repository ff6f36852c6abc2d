"""Embedding bags whose features are processed first: weighted by position, say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
)
from torchrec.modules.feature_processor_ import FeatureProcessor, FeatureProcessorsCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = [
    "FeatureProcessedEmbeddingBagCollection",
    "FeatureProcessorDictWrapper",
    "apply_feature_processors_to_kjt",
]


def apply_feature_processors_to_kjt(
    features: KeyedJaggedTensor, feature_processors: Mapping[str, nn.Module] | nn.ModuleDict
) -> KeyedJaggedTensor:
    """Give each id the weight that the processor of its feature gives it.

    Args:
        features: ids by feature.
        feature_processors: feature -> its processor, from JaggedTensor to JaggedTensor with as many
            values. Features without one get weight 1.

    Returns:
        The same ids, weighted.

    Raises:
        ValueError: for what a processor raises one for, with the feature named; or if a processor
            changes the number of ids.

    Example:
        >>> from torchrec.modules.feature_processor_ import PositionWeightedModule
        >>> features = KeyedJaggedTensor.from_lists({"a": [[7, 8]], "b": [[9]]})
        >>> processor = PositionWeightedModule(max_feature_length=2)
        >>> _ = processor.load_state_dict({"position_weight": torch.tensor([1.0, 0.5])})
        >>> apply_feature_processors_to_kjt(features, {"a": processor}).weights().tolist()
        [1.0, 0.5, 1.0]
    """
    weights = []
    for key, feature in features.to_dict().items():
        if key in feature_processors:
            weights.append(_processed(key, feature_processors[key], feature))
        else:
            weights.append(torch.ones(feature.values().size(0), device=feature.values().device))
    if not weights:
        return features
    return features.with_weights(torch.cat(weights))


def _processed(key: str, processor: nn.Module, feature: JaggedTensor) -> Tensor:
    try:
        weights: Tensor | None = processor(feature).weights_or_none()
    except ValueError as error:
        raise ValueError(f"Feature '{key}': {error}") from error
    if weights is None:
        return torch.ones(feature.values().size(0), device=feature.values().device)
    if weights.size(0) != feature.values().size(0):
        raise ValueError(
            f"The processor of feature '{key}' should give each id a weight "
            f"({feature.values().size(0)}). Received {weights.size(0)}."
        )
    return weights


class FeatureProcessorDictWrapper(FeatureProcessorsCollection, LeafModule):
    """One feature processor a feature, as a collection; see `apply_feature_processors_to_kjt`.

    Args:
        feature_processors: feature -> its processor.

    Example:
        >>> from torchrec.modules.feature_processor_ import PositionWeightedModule
        >>> processors = FeatureProcessorDictWrapper(
        ...     nn.ModuleDict({"a": PositionWeightedModule(max_feature_length=2)})
        ... )
        >>> processors(KeyedJaggedTensor.from_lists({"a": [[7, 8]]})).weights().tolist()
        [1.0, 1.0]
    """

    def __init__(self, feature_processors: nn.ModuleDict) -> None:
        super().__init__()
        self._feature_processors = feature_processors

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the same ids, weighted.

        Args:
            features: ids by feature.
        """
        if is_proxy(features):
            traced: KeyedJaggedTensor = self.recorded(features)
            return traced
        return apply_feature_processors_to_kjt(features, self._feature_processors)


class FeatureProcessedEmbeddingBagCollection(nn.Module, LeafModule):
    """Embedding bags whose ids are weighted by feature processors first.

    Args:
        embedding_bag_collection: the tables, with ``is_weighted=True``.
        feature_processors: one processor for each feature of the tables, or a collection of them,
            such as `torchrec.modules.feature_processor_.PositionWeightedModuleCollection`, which
            takes all features at once and is the faster one.

    Raises:
        ValueError: if the tables take no weights, or the processors are not those of their features.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
        >>> tables = [EmbeddingBagConfig(
        ...     10, 2, "t", feature_names=["a"], init_fn=torch.nn.init.ones_
        ... )]
        >>> weights = PositionWeightedModuleCollection({"a": 2})
        >>> _ = weights.load_state_dict({"position_weights.a": torch.tensor([1.0, 0.5])})
        >>> module = FeatureProcessedEmbeddingBagCollection(
        ...     EmbeddingBagCollection(tables=tables, is_weighted=True), weights
        ... )
        >>> module(KeyedJaggedTensor.from_lists({"a": [[7, 8], [9]]})).values().tolist()
        [[1.5, 1.5], [1.0, 1.0]]
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        feature_processors: dict[str, FeatureProcessor] | FeatureProcessorsCollection,
    ) -> None:
        super().__init__()
        require_type(
            embedding_bag_collection,
            "`embedding_bag_collection`",
            EmbeddingBagCollectionInterface,
        )
        if not embedding_bag_collection.is_weighted():
            raise ValueError(
                "`embedding_bag_collection` should have is_weighted=True, as feature processors give "
                "weights. Received is_weighted=False."
            )
        self._embedding_bag_collection = embedding_bag_collection
        self._feature_processors: nn.ModuleDict | FeatureProcessorsCollection
        if isinstance(feature_processors, FeatureProcessorsCollection):
            self._feature_processors = feature_processors
            return
        if not isinstance(feature_processors, dict | nn.ModuleDict):
            raise TypeError(
                "`feature_processors` should be a dict of them by feature, or a "
                f"FeatureProcessorsCollection. Received {type(feature_processors).__name__}."
            )
        configs = embedding_bag_collection.embedding_bag_configs()
        features = list(dict.fromkeys(f for config in configs for f in config.feature_names))
        if set(feature_processors) != set(features):
            raise ValueError(
                f"`feature_processors` should be for the features of the tables, {features}. "
                f"Received {list(feature_processors)}."
            )
        self._feature_processors = nn.ModuleDict(feature_processors)

    def table_store(self) -> EmbeddingBagCollection:
        """Return the tables."""
        return self._embedding_bag_collection

    def split(self) -> tuple[FeatureProcessorsCollection, EmbeddingBagCollection]:
        """Return the feature processors and the tables, as modules of their own."""
        processors = self._feature_processors
        if isinstance(processors, nn.ModuleDict):
            processors = FeatureProcessorDictWrapper(processors)
        return processors, self._embedding_bag_collection

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Weight, look up and pool.

        Args:
            features: ids by feature. Weights that they have are replaced.

        Returns:
            One embedding a feature and sample; see `EmbeddingBagCollection`.

        Raises:
            ValueError: for a feature that is missing, or what a processor raises one for.
        """
        if is_proxy(features):
            traced: KeyedTensor = self.recorded(features)
            return traced
        if isinstance(self._feature_processors, nn.ModuleDict):
            features = apply_feature_processors_to_kjt(features, self._feature_processors)
        else:
            features = self._feature_processors(features)
        pooled: KeyedTensor = self._embedding_bag_collection(features)
        return pooled

    def is_weighted(self) -> bool:
        """Return True: each id comes with a weight, that of its processor."""
        return True
