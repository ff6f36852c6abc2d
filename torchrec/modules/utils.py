"""Functions on modules and on what they return: a public path over private modules."""

from torchrec.modules._callables import extract_module_or_tensor_callable
from torchrec.modules._custom_op import OpRegistryState, register_custom_op
from torchrec.modules._jagged_outputs import (
    SequenceVBEContext,
    construct_jagged_tensors,
    construct_jagged_tensors_inference,
    deterministic_dedup,
    jagged_index_select_with_empty,
)
from torchrec.modules._module_lists import (
    check_module_output_dimension,
    construct_modulelist_from_single_module,
    convert_list_of_modules_to_modulelist,
    get_module_output_dimension,
    init_mlp_weights_xavier_uniform,
)
from torchrec.modules._module_state import (
    make_hash_zch_buckets_non_persistent,
    reset_module_states_post_sharding,
)

__all__ = [
    "OpRegistryState",
    "SequenceVBEContext",
    "check_module_output_dimension",
    "construct_jagged_tensors",
    "construct_jagged_tensors_inference",
    "construct_modulelist_from_single_module",
    "convert_list_of_modules_to_modulelist",
    "deterministic_dedup",
    "extract_module_or_tensor_callable",
    "get_module_output_dimension",
    "init_mlp_weights_xavier_uniform",
    "jagged_index_select_with_empty",
    "make_hash_zch_buckets_non_persistent",
    "register_custom_op",
    "reset_module_states_post_sharding",
]
