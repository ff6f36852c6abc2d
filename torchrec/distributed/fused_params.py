"""Names under which ``fused_params`` carry what is not a hyper-parameter, in the words of kernels."""

from __future__ import annotations

__all__ = [
    "FUSED_PARAM_BOUNDS_CHECK_MODE",
    "FUSED_PARAM_EMBEDDING_TABLE_INDEX_TYPE",
    "FUSED_PARAM_EMBEDDING_TABLE_OFFSET_TYPE",
    "FUSED_PARAM_IS_SSD_TABLE",
    "FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP",
    "FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS",
    "FUSED_PARAM_REGISTER_TBE_BOOL",
    "FUSED_PARAM_SSD_TABLE_LIST",
    "FUSED_PARAM_TBE_ROW_ALIGNMENT",
]

FUSED_PARAM_REGISTER_TBE_BOOL = "__register_tbes_in_named_modules"
FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS = "__register_quant_state_dict_split_scale_bias"
FUSED_PARAM_TBE_ROW_ALIGNMENT = "__register_tbe_row_alignment"
FUSED_PARAM_BOUNDS_CHECK_MODE = "__register_tbe_bounds_check_mode"
FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP = "__register_lengths_to_offsets_lookup"
FUSED_PARAM_IS_SSD_TABLE = "__register_is_ssd_table"
FUSED_PARAM_SSD_TABLE_LIST = "__register_ssd_table_list"
FUSED_PARAM_EMBEDDING_TABLE_INDEX_TYPE = "embedding_table_index_type"
FUSED_PARAM_EMBEDDING_TABLE_OFFSET_TYPE = "embedding_table_offset_type"
