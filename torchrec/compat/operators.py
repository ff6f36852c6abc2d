"""The operators of the original's kernels that programs call, made of ours: ``torch.ops.fbgemm.*``.

Each is a composition of operators of PyTorch and of this library, registered as such: gradients, shapes for tracing and
devices are those of what it is made of. Numbers of arguments, order and defaults are the schemas', which are facts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchrec.compat import _buckets, _jagged, _permutations

__all__ = ["OPERATORS", "define_operators"]

_PERMUTE = (
    "(Tensor permute, Tensor lengths, Tensor values, Tensor? weights=None, "
    "SymInt? permuted_lengths_sum=None) -> (Tensor, Tensor, Tensor?)"
)
_BUCKETIZE = (
    "(Tensor lengths, Tensor indices, bool bucketize_pos, bool sequence, Tensor block_sizes, "
    "SymInt my_size, "
)
_BUCKETIZE_BY = (
    "Tensor? batch_size_per_feature=None, SymInt max_B=-1, Tensor[]? block_bucketize_pos=None, "
)
_BUCKETIZE_KEEP = "bool keep_orig_idx=False, Tensor? total_num_blocks=None, Tensor? keep_orig_idx_per_feature=None) "
_FIVE = "-> (Tensor, Tensor, Tensor?, Tensor?, Tensor?)"
_COLUMNS = (
    "(Tensor pooled_embs, Tensor offset_dim_list, Tensor permute_list, Tensor inv_offset_dim_list, "
    "Tensor inv_permute_list) -> Tensor"
)

OPERATORS: dict[str, tuple[str, Callable[..., object]]] = {
    "asynchronous_complete_cumsum": ("(Tensor t_in) -> Tensor", _jagged.complete_cumsum),
    "asynchronous_inclusive_cumsum": ("(Tensor t_in) -> Tensor", _jagged.inclusive_cumsum),
    "asynchronous_exclusive_cumsum": ("(Tensor t_in) -> Tensor", _jagged.exclusive_cumsum),
    "jagged_to_padded_dense": (
        "(Tensor values, Tensor[] offsets, SymInt[] max_lengths, float padding_value=0.) -> Tensor",
        _jagged.pad_jagged,
    ),
    "jagged_to_padded_dense_forward": (
        "(Tensor values, Tensor[] offsets, SymInt[] max_lengths, float padding_value=0.) -> Tensor",
        _jagged.pad_jagged,
    ),
    "dense_to_jagged": (
        "(Tensor dense, Tensor[] x_offsets, SymInt? total_L=None) -> (Tensor, Tensor[])",
        _jagged.dense_to_jagged,
    ),
    "dense_to_jagged_forward": (
        "(Tensor dense, Tensor[] x_offsets, SymInt? total_L=None) -> Tensor",
        _jagged.take_jagged,
    ),
    "jagged_dense_elementwise_add": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> Tensor",
        _jagged.add_to_dense,
    ),
    "jagged_dense_elementwise_add_jagged_output": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> (Tensor, Tensor[])",
        _jagged.add_to_jagged,
    ),
    "jagged_dense_dense_elementwise_add_jagged_output": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y_0, Tensor y_1) -> (Tensor, Tensor[])",
        _jagged.add_two_to_jagged,
    ),
    "jagged_dense_elementwise_mul": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> (Tensor, Tensor[])",
        _jagged.multiply_jagged,
    ),
    "jagged_2d_to_dense": (
        "(Tensor values, Tensor offsets, SymInt max_sequence_length) -> Tensor",
        _jagged.pad_matrix,
    ),
    "jagged_1d_to_dense": (
        "(Tensor values, Tensor offsets, SymInt max_sequence_length, int padding_value) -> Tensor",
        _jagged.pad_vector,
    ),
    "stacked_jagged_2d_to_dense": (
        "(Tensor values, Tensor lengths, int[] offset_per_key, int[] max_lengths_per_key, "
        "int padding_value=0) -> Tensor[]",
        _jagged.pad_stacked,
    ),
    "stacked_jagged_1d_to_dense": (
        "(Tensor values, Tensor lengths, int[] offset_per_key, int[] max_lengths_per_key, "
        "int padding_value) -> Tensor[]",
        _jagged.pad_stacked,
    ),
    "pack_segments": (
        "(Tensor t_in, Tensor lengths, SymInt max_length) -> Tensor",
        _jagged.pack_segments,
    ),
    "jagged_softmax": (
        "(Tensor values, Tensor x_offsets, int max_L) -> (Tensor, Tensor)",
        _jagged.softmax,
    ),
    "jagged_jagged_bmm": (
        "(Tensor x_values, Tensor y_values, Tensor x_offsets, int max_L) -> Tensor",
        _jagged.multiply_bags,
    ),
    "jagged_dense_bmm": (
        "(Tensor x_values, Tensor x_offsets, Tensor y, int max_L) -> (Tensor, Tensor)",
        _jagged.multiply_bags_by_dense,
    ),
    "batched_dense_vec_jagged_2d_mul": (
        "(Tensor v, Tensor a_values, Tensor a_offsets) -> Tensor",
        _jagged.multiply_vectors_by_bags,
    ),
    "jagged_index_select": (
        "(Tensor values, Tensor lengths, Tensor indices, int? num_dense_output_rows=None) -> Tensor[]",
        _jagged.select_jagged,
    ),
    "jagged_slice": (
        "(Tensor x_values, Tensor x_lengths, Tensor start, int slice_length) -> (Tensor, Tensor)",
        _jagged.slice_jagged,
    ),
    "permute_2D_sparse_data": (_PERMUTE, _permutations.permute_keys),
    "permute_sparse_data": (_PERMUTE, _permutations.permute_keys),
    "permute_1D_sparse_data": (_PERMUTE, _permutations.permute_bags),
    "permute_2D_sparse_data_input1D": (
        _PERMUTE.replace("Tensor values,", "Tensor values, SymInt stride,"),
        _permutations.permute_keys_of_stride,
    ),
    "keyed_jagged_index_select_dim1": (
        "(Tensor values, Tensor lengths, Tensor offsets, Tensor indices, SymInt batch_size, "
        "Tensor? weights=None, SymInt? selected_lengths_sum=None) -> Tensor[]",
        _permutations.select_samples,
    ),
    "expand_into_jagged_permute": (
        "(Tensor permute, Tensor input_offset, Tensor output_offset, SymInt output_size) -> Tensor",
        _permutations.expand_permutation,
    ),
    "invert_permute": ("(Tensor permute) -> Tensor", _permutations.invert_permutation),
    "offsets_range": (
        "(Tensor offsets, SymInt range_size) -> Tensor",
        _permutations.positions_in_bags,
    ),
    "lengths_range": (
        "(Tensor t_in, SymInt[]? shape=None) -> Tensor",
        _permutations.positions_by_lengths,
    ),
    "repeat_arange": ("(Tensor lengths) -> Tensor", _permutations.repeat_arange),
    "permute_pooled_embs": (_COLUMNS, _permutations.permute_columns),
    "permute_pooled_embs_auto_grad": (_COLUMNS, _permutations.permute_columns),
    "regroup_keyed_tensor": (
        "(Tensor[] pooled_embs, str[][] keys, int[][] lengths, str[][] groups) -> Tensor[]",
        _permutations.regroup,
    ),
    "index_select_dim0": (
        "(Tensor input, Tensor indices, SymInt? consecutive_range_start=0, "
        "SymInt? consecutive_range_length=0, bool? skip_indices_sorting_fwd=None) -> Tensor",
        _permutations.select_rows,
    ),
    "group_index_select_dim0": (
        "(Tensor[] input_group, Tensor[] indices_group) -> Tensor[]",
        _permutations.select_rows_of_each,
    ),
    "segment_sum_csr": (
        "(SymInt batch_size, Tensor csr_seg, Tensor values) -> Tensor",
        _permutations.sum_segments,
    ),
    "block_bucketize_sparse_features": (
        f"{_BUCKETIZE}Tensor? weights=None, {_BUCKETIZE_BY}{_BUCKETIZE_KEEP}{_FIVE}",
        _buckets.block_bucketize_sparse_features,
    ),
    "block_bucketize_sparse_features_inference": (
        f"{_BUCKETIZE}Tensor? weights=None, {_BUCKETIZE_BY}bool return_bucket_mapping=False, "
        f"{_BUCKETIZE_KEEP}-> (Tensor, Tensor, Tensor?, Tensor?, Tensor?, Tensor?)",
        _buckets.block_bucketize_sparse_features_inference,
    ),
    "block_bucketize_sparse_features_2d_weights": (
        f"{_BUCKETIZE}Tensor weights, SymInt weights_dim=1, {_BUCKETIZE_BY}{_BUCKETIZE_KEEP}"
        "-> (Tensor, Tensor, Tensor, Tensor?, Tensor?)",
        _buckets.block_bucketize_sparse_features_2d_weights,
    ),
    "bucketize_sparse_features": (
        "(Tensor lengths, Tensor indices, bool bucketize_pos, SymInt my_size, Tensor? weights=None) "
        "-> (Tensor, Tensor, Tensor?, Tensor?)",
        _buckets.bucketize_sparse_features,
    ),
}


def define_operators(library: torch.library.Library) -> None:
    """Define all operators in a library of the namespace ``fbgemm``.

    Args:
        library: it; as long as it lives, the operators are there.
    """
    for name, (schema, function) in OPERATORS.items():
        library.define(name + schema)
        library.impl(name, function, "CompositeImplicitAutograd")
