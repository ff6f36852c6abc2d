"""Quantised collections whose ids are weighted or mapped before they are looked up."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from torchrec.checks import require_type
from torchrec.fx.proxies import is_proxy
from torchrec.modules.collision.collection import ManagedCollisionCollection
from torchrec.modules.embedding_configs import (
    EmbeddingBagConfig,
    EmbeddingConfig,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection as FloatBags
from torchrec.modules.embedding_modules import EmbeddingCollection as FloatSequences
from torchrec.modules.feature_processor_ import FeatureProcessorsCollection
from torchrec.modules.fp_embedding_modules import (
    FeatureProcessedEmbeddingBagCollection as FloatProcessedBags,
)
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.quant.collections import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    bags_of,
    sequences_of,
)
from torchrec.quant.tables import QuantizedWeights
from torchrec.quant.weights import (
    DEFAULT_ROW_ALIGNMENT,
    settings_of,
)
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)


class FeatureProcessedEmbeddingBagCollection(EmbeddingBagCollection):
    """Quantised embedding bags whose ids are weighted by feature processors first.

    Args:
        tables: as of `EmbeddingBagCollection`, and all but the next likewise.
        is_weighted: must be True: processors give weights.
        device: of the tables.
        output_dtype: of the result.
        table_name_to_quantized_weights: the rows.
        register_tbes: show what looks the tables up.
        quant_state_dict_split_scale_bias: in the state.
        row_alignment: of rows.
        feature_processor: gives the weights; must be there.
        cache_features_order: without effect.

    Raises:
        ValueError: without weights or processors.
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        is_weighted: bool,
        device: torch.device,
        output_dtype: torch.dtype = torch.float32,
        table_name_to_quantized_weights: Mapping[str, QuantizedWeights] | None = None,
        register_tbes: bool = False,
        quant_state_dict_split_scale_bias: bool = False,
        row_alignment: int = DEFAULT_ROW_ALIGNMENT,
        feature_processor: FeatureProcessorsCollection | None = None,
        cache_features_order: bool = False,
    ) -> None:
        super().__init__(
            tables,
            is_weighted,
            device,
            output_dtype,
            table_name_to_quantized_weights,
            register_tbes,
            quant_state_dict_split_scale_bias,
            row_alignment,
            cache_features_order,
        )
        if not is_weighted:
            raise ValueError(
                "`is_weighted` should be True, as feature processors give weights. Received False."
            )
        require_type(feature_processor, "`feature_processor`", FeatureProcessorsCollection)
        self.feature_processor = feature_processor

    @classmethod
    def from_float(  # type: ignore[override]
        cls, module: FloatProcessedBags, use_precomputed_fake_quant: bool = False
    ) -> FeatureProcessedEmbeddingBagCollection:
        """Return the quantised form of a collection, with its feature processors.

        Args:
            module: with a ``qconfig``.
            use_precomputed_fake_quant: without effect.
        """
        require_type(module, "`module`", FloatProcessedBags)
        processor, bags = module.split()
        return cls(**bags_of(bags, settings_of(module)), feature_processor=processor)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Weight, look up and pool.

        Args:
            features: ids by feature. Weights that they have are replaced.
        """
        if is_proxy(features):
            traced: KeyedTensor = self.recorded(features)
            return traced
        assert self.feature_processor is not None
        return super().forward(self.feature_processor(features))


Output = tuple[KeyedTensor | dict[str, JaggedTensor], KeyedJaggedTensor | None]


class QuantManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection):
    """Quantised embedding bags behind maps that give rows to ids without bounds; the maps learn no more.

    Args:
        tables: as of `EmbeddingBagCollection`, and all but the next two likewise.
        is_weighted: whether ids come with weights.
        device: of the tables.
        output_dtype: of the result.
        table_name_to_quantized_weights: the rows.
        register_tbes: show what looks the tables up.
        quant_state_dict_split_scale_bias: in the state.
        row_alignment: of rows.
        managed_collision_collection: the maps; must be there.
        return_remapped_features: return the rows, too.
        cache_features_order: without effect.
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        is_weighted: bool,
        device: torch.device,
        output_dtype: torch.dtype = torch.float32,
        table_name_to_quantized_weights: Mapping[str, QuantizedWeights] | None = None,
        register_tbes: bool = False,
        quant_state_dict_split_scale_bias: bool = False,
        row_alignment: int = DEFAULT_ROW_ALIGNMENT,
        managed_collision_collection: ManagedCollisionCollection | None = None,
        return_remapped_features: bool = False,
        cache_features_order: bool = False,
    ) -> None:
        super().__init__(
            tables,
            is_weighted,
            device,
            output_dtype,
            table_name_to_quantized_weights,
            register_tbes,
            quant_state_dict_split_scale_bias,
            row_alignment,
            cache_features_order,
        )
        self._managed_collision_collection = _frozen(managed_collision_collection)
        self._return_remapped_features = return_remapped_features

    @classmethod
    def from_float(  # type: ignore[override]
        cls, module: ManagedCollisionEmbeddingBagCollection, return_remapped_features: bool = False
    ) -> QuantManagedCollisionEmbeddingBagCollection:
        """Return the quantised form of a collection, with a copy of its maps.

        Args:
            module: with a ``qconfig``.
            return_remapped_features: return the rows, too.
        """
        require_type(module, "`module`", ManagedCollisionEmbeddingBagCollection)
        bags = module.table_store()
        require_type(bags, "The tables of `module`", FloatBags)
        assert isinstance(bags, FloatBags)
        return cls(
            **bags_of(bags, settings_of(module)),
            managed_collision_collection=module.managed_collision_collection(),
            return_remapped_features=return_remapped_features,
        )

    def managed_collision_collection(self) -> ManagedCollisionCollection:
        """Return the maps."""
        return self._managed_collision_collection

    @property
    def return_remapped_features(self) -> bool:
        """Whether the rows are returned, too."""
        return self._return_remapped_features

    def forward(self, features: KeyedJaggedTensor) -> Output:  # type: ignore[override]
        """Map ids to rows, look up and pool.

        Args:
            features: ids by feature.

        Returns:
            The pooled embeddings; and the features with rows in place of ids, if asked for, else None.
        """
        if is_proxy(features):
            traced: Output = self.recorded(features)
            return traced
        rows = self._managed_collision_collection.remap(features)
        return super().forward(rows), rows if self._return_remapped_features else None


class QuantManagedCollisionEmbeddingCollection(EmbeddingCollection):
    """Quantised embeddings behind maps that give rows to ids without bounds; the maps learn no more.

    Args:
        tables: as of `EmbeddingCollection`, and all but the next two of the last three likewise.
        device: of the tables.
        need_indices: pass the rows on as the weights of the result.
        output_dtype: of the result.
        table_name_to_quantized_weights: the rows.
        register_tbes: show what looks the tables up.
        quant_state_dict_split_scale_bias: in the state.
        row_alignment: of rows.
        managed_collision_collection: the maps; must be there.
        return_remapped_features: return the rows, too.
        cache_features_order: without effect.
    """

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        device: torch.device,
        need_indices: bool = False,
        output_dtype: torch.dtype = torch.float32,
        table_name_to_quantized_weights: Mapping[str, QuantizedWeights] | None = None,
        register_tbes: bool = False,
        quant_state_dict_split_scale_bias: bool = False,
        row_alignment: int = DEFAULT_ROW_ALIGNMENT,
        managed_collision_collection: ManagedCollisionCollection | None = None,
        return_remapped_features: bool = False,
        cache_features_order: bool = False,
    ) -> None:
        super().__init__(
            tables,
            device,
            need_indices,
            output_dtype,
            table_name_to_quantized_weights,
            register_tbes,
            quant_state_dict_split_scale_bias,
            row_alignment,
            cache_features_order,
        )
        self._managed_collision_collection = _frozen(managed_collision_collection)
        self._return_remapped_features = return_remapped_features

    @classmethod
    def from_float(  # type: ignore[override]
        cls, module: ManagedCollisionEmbeddingCollection, return_remapped_features: bool = False
    ) -> QuantManagedCollisionEmbeddingCollection:
        """Return the quantised form of a collection, with a copy of its maps.

        Args:
            module: with a ``qconfig``.
            return_remapped_features: return the rows, too.
        """
        require_type(module, "`module`", ManagedCollisionEmbeddingCollection)
        sequences = module.table_store()
        assert isinstance(sequences, FloatSequences)
        return cls(
            **sequences_of(sequences, settings_of(module)),
            managed_collision_collection=module.managed_collision_collection(),
            return_remapped_features=return_remapped_features,
        )

    def managed_collision_collection(self) -> ManagedCollisionCollection:
        """Return the maps."""
        return self._managed_collision_collection

    @property
    def return_remapped_features(self) -> bool:
        """Whether the rows are returned, too."""
        return self._return_remapped_features

    def forward(self, features: KeyedJaggedTensor) -> Output:  # type: ignore[override]
        """Map ids to rows, and look up.

        Args:
            features: ids by feature.

        Returns:
            The embeddings by feature; and the features with rows in place of ids, if asked for, else None.
        """
        if is_proxy(features):
            traced: Output = self.recorded(features)
            return traced
        rows = self._managed_collision_collection.remap(features)
        return super().forward(rows), rows if self._return_remapped_features else None


def _frozen(maps: ManagedCollisionCollection | None) -> ManagedCollisionCollection:
    """Return a copy of maps that is not in training."""
    require_type(maps, "`managed_collision_collection`", ManagedCollisionCollection)
    assert maps is not None
    return copy.deepcopy(maps).eval()
