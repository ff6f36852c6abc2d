"""Small functions that programs which shard use: names, states, copies, options of tables."""

from __future__ import annotations

from torchrec.distributed._copies import (
    CopyableMixin,
    copy_to_device,
    init_parameters,
    sharded_model_copy,
)
from torchrec.distributed._names import (
    add_prefix_to_state_dict,
    filter_state_dict,
    get_unsharded_module_names,
    none_throws,
)
from torchrec.distributed._table_options import (
    add_params_from_parameter_sharding,
    convert_to_fbgemm_types,
    create_global_tensor_shape_stride_from_metadata,
    merge_fused_params,
    modify_input_for_feature_processor,
    optimizer_type_to_emb_opt_type,
)
from torchrec.distributed.collection import append_prefix
from torchrec.types import CopyMixIn

__all__ = [
    "CopyMixIn",
    "CopyableMixin",
    "add_params_from_parameter_sharding",
    "add_prefix_to_state_dict",
    "append_prefix",
    "convert_to_fbgemm_types",
    "copy_to_device",
    "create_global_tensor_shape_stride_from_metadata",
    "filter_state_dict",
    "get_unsharded_module_names",
    "init_parameters",
    "merge_fused_params",
    "modify_input_for_feature_processor",
    "none_throws",
    "optimizer_type_to_emb_opt_type",
    "sharded_model_copy",
]
