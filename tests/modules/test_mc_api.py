"""Names, parameters and defaults of managed collision are those that users of TorchRec know."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

from torchrec.modules import mc_adapter, mc_embedding_modules, mc_modules

# What a call may rely on. Parameters may have further defaults, and further parameters may follow.
POLICY = """
coalesce_history_metadata(current_iter, history_metadata, unique_ids_counts,
    unique_inverse_mapping, additional_ids=None, threshold_mask=None)
metadata_info
record_history_metadata(current_iter, incoming_ids, history_metadata)
update_metadata_and_generate_eviction_scores(current_iter, mch_size,
    coalesced_history_argsort_mapping, coalesced_history_sorted_unique_ids_counts,
    coalesced_history_mch_matching_elements_mask, coalesced_history_mch_matching_indices,
    mch_metadata, coalesced_history_metadata)
"""
MAP = """
buckets()
device
evict()
forward(features, mutate_miss_lengths=True)
input_size()
open_slots()
output_size()
preprocess(features)
profile(features)
readable_suffix
rebuild_with_output_id_range(output_id_range, output_segments, device=None)
remap(features, mutate_miss_lengths=True, write_weights=None)
validate_state()
"""
EMBEDDINGS = """
forward(features, mutate_miss_lengths=True)
lookup_remapped_lengths_mask(features)
lookup_remapped_lengths_mask_and_runtime_meta(features)
"""
ADAPTER = """
__init__(tables, input_hash_size, device, world_size, eviction_interval=1,
    allow_in_place_embed_weight_update=False, zch_method='', mpzch_num_buckets=80,
    mpzch_max_probe=100)
embedding_bag_configs()
parameters(recurse=True)
"""
CLASSES = {
    mc_modules.MCHEvictionPolicy: "__init__(metadata_info, threshold_filtering_func=None)" + POLICY,
    mc_modules.LFU_EvictionPolicy: "__init__(threshold_filtering_func=None)" + POLICY,
    mc_modules.LRU_EvictionPolicy: "__init__(decay_exponent=1.0, threshold_filtering_func=None)"
    + POLICY,
    mc_modules.DistanceLFU_EvictionPolicy: (
        "__init__(decay_exponent=1.0, threshold_filtering_func=None)" + POLICY
    ),
    mc_modules.ManagedCollisionModule: (
        "__init__(device, output_segments, skip_state_validation=False, "
        "read_only_suffix='_readonly', enable_per_feature_lookups=False)" + MAP
    ),
    mc_modules.MCHManagedCollisionModule: (
        "__init__(zch_size, device, eviction_policy, eviction_interval, "
        "input_hash_size=9223372036854775807, input_hash_func=None, mch_size=None, "
        "mch_hash_func=None, name=None, output_global_offset=0, output_segments=None, "
        "buckets=1)"
        "\nreset_inference_mode()" + MAP
    ),
    mc_modules.ManagedCollisionCollection: """
__init__(managed_collision_modules, embedding_configs, need_preprocess=True)
embedding_configs()
evict()
forward(features, mutate_miss_lengths=True)
lookup_custom_runtime_meta(remapped_ids)
lookup_runtime_meta(features, remapped_ids)
open_slots()
table_to_number_buckets()
""",
    mc_embedding_modules.BaseManagedCollisionEmbeddingCollection: (
        "__init__(embedding_module, managed_collision_collection, "
        "return_remapped_features=False, allow_in_place_embed_weight_update=False)" + EMBEDDINGS
    ),
    mc_embedding_modules.ManagedCollisionEmbeddingBagCollection: (
        "__init__(embedding_bag_collection, managed_collision_collection, "
        "return_remapped_features=False, allow_in_place_embed_weight_update=False)" + EMBEDDINGS
    ),
    mc_embedding_modules.ManagedCollisionEmbeddingCollection: (
        "__init__(embedding_collection, managed_collision_collection, "
        "return_remapped_features=False, allow_in_place_embed_weight_update=False)" + EMBEDDINGS
    ),
    mc_adapter.McEmbeddingBagCollectionAdapter: ADAPTER + "forward(input_kjt)",
    mc_adapter.McEmbeddingCollectionAdapter: ADAPTER + "forward(input)",
}
FUNCTIONS = {
    mc_modules: """
apply_mc_method_to_jt_dict(mc_module, method, features_dict)
average_threshold_filter(id_counts)
dynamic_threshold_filter(id_counts, threshold_skew_multiplier=10.0)
probabilistic_threshold_filter(id_counts, per_id_probability=0.01)
""",
    mc_embedding_modules: """
evict(evictions, ebc)
return_custom_metadata(runtime_meta)
return_remapped_lengths_as_mask(features)
""",
}


@pytest.mark.parametrize(
    ("owner", "line"),
    [
        pytest.param(owner, line, id=f"{owner.__name__.rpartition('.')[2]}.{line.split('(')[0]}")
        for owner, lines in [*CLASSES.items(), *FUNCTIONS.items()]
        for line in re.split(r"\n(?=\w)", lines.strip())
    ],
)
def test_signature(owner: Any, line: str):
    name, bracket, _ = line.partition("(")
    found = inspect.getattr_static(owner, name)
    if not bracket:
        assert isinstance(found, property)
        return
    (function,) = ast.parse(f"def {line}: ...").body
    names = [argument.arg for argument in function.args.args]
    defaults = [ast.literal_eval(default) for default in function.args.defaults]
    wanted = dict(zip(names[::-1], defaults[::-1], strict=False))
    parameters = list(inspect.signature(found).parameters.values())
    parameters = parameters[inspect.isclass(owner) :]  # without self
    ours = parameters[: len(names)]
    assert [parameter.name for parameter in ours] == names
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in ours)
    for parameter in ours:
        if parameter.name in wanted:
            assert (parameter.name, parameter.default) == (parameter.name, wanted[parameter.name])
    assert all(p.default is not p.empty for p in parameters[len(names) :])


def test_metadata_info_is_a_named_tuple():
    info = mc_modules.MCHEvictionPolicyMetadataInfo("n", True, False)
    assert info == ("n", True, False)
    assert info._fields == ("metadata_name", "is_mch_metadata", "is_history_metadata")


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (mc_modules.LFU_EvictionPolicy, mc_modules.MCHEvictionPolicy),
        (mc_modules.LRU_EvictionPolicy, mc_modules.MCHEvictionPolicy),
        (mc_modules.DistanceLFU_EvictionPolicy, mc_modules.MCHEvictionPolicy),
        (mc_modules.MCHManagedCollisionModule, mc_modules.ManagedCollisionModule),
        (
            mc_embedding_modules.ManagedCollisionEmbeddingBagCollection,
            mc_embedding_modules.BaseManagedCollisionEmbeddingCollection,
        ),
        (
            mc_embedding_modules.ManagedCollisionEmbeddingCollection,
            mc_embedding_modules.BaseManagedCollisionEmbeddingCollection,
        ),
    ],
)
def test_classes_derive_from(cls, base):
    assert issubclass(cls, base)
