"""Quantised collections, and what prepares a model for them, under the names of the API."""

from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS
from torchrec.quant.collections import EmbeddingBagCollection, EmbeddingCollection
from torchrec.quant.mapped_collections import (
    FeatureProcessedEmbeddingBagCollection,
    QuantManagedCollisionEmbeddingBagCollection,
    QuantManagedCollisionEmbeddingCollection,
)
from torchrec.quant.preparation import (
    MODULE_ATTR_CACHE_FEATURES_ORDER,
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
    MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
    MODULE_ATTR_REGISTER_TBES_BOOL,
    MODULE_ATTR_REMOVE_STBE_PADDING_BOOL,
    MODULE_ATTR_ROW_ALIGNMENT_INT,
    MODULE_ATTR_USE_BATCHING_HINTED_OUTPUT,
    MODULE_ATTR_USE_UNFLATTENED_LENGTHS_FOR_BATCHING,
    for_each_module_of_type_do,
    quant_prep_customize_row_alignment,
    quant_prep_enable_cache_features_order,
    quant_prep_enable_quant_state_dict_split_scale_bias,
    quant_prep_enable_quant_state_dict_split_scale_bias_for_types,
    quant_prep_enable_register_tbes,
)
from torchrec.quant.weights import DEFAULT_ROW_ALIGNMENT, quantize_state_dict

__all__ = [
    "DATA_TYPE_NUM_BITS",
    "DEFAULT_ROW_ALIGNMENT",
    "MODULE_ATTR_CACHE_FEATURES_ORDER",
    "MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT",
    "MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS",
    "MODULE_ATTR_REGISTER_TBES_BOOL",
    "MODULE_ATTR_REMOVE_STBE_PADDING_BOOL",
    "MODULE_ATTR_ROW_ALIGNMENT_INT",
    "MODULE_ATTR_USE_BATCHING_HINTED_OUTPUT",
    "MODULE_ATTR_USE_UNFLATTENED_LENGTHS_FOR_BATCHING",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "FeatureProcessedEmbeddingBagCollection",
    "QuantEmbeddingBagCollection",
    "QuantEmbeddingCollection",
    "QuantManagedCollisionEmbeddingBagCollection",
    "QuantManagedCollisionEmbeddingCollection",
    "for_each_module_of_type_do",
    "quant_prep_customize_row_alignment",
    "quant_prep_enable_cache_features_order",
    "quant_prep_enable_quant_state_dict_split_scale_bias",
    "quant_prep_enable_quant_state_dict_split_scale_bias_for_types",
    "quant_prep_enable_register_tbes",
    "quantize_state_dict",
]

QuantEmbeddingBagCollection = EmbeddingBagCollection
QuantEmbeddingCollection = EmbeddingCollection
