"""Policies of virtual tables can be made and asked; tables that want them are refused."""

from __future__ import annotations

import dataclasses

import pytest

from torchrec import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_configs import (
    CountBasedEvictionPolicy,
    CountTimestampMixedEvictionPolicy,
    FeatureL2NormBasedEvictionPolicy,
    FeatureScoreBasedEvictionPolicy,
    FeatureScoreMapping,
    NoEvictionPolicy,
    TimestampBasedEvictionPolicy,
    VirtualTableEvictionPolicy,
)

POLICIES = [
    VirtualTableEvictionPolicy,
    NoEvictionPolicy,
    CountBasedEvictionPolicy,
    CountTimestampMixedEvictionPolicy,
    FeatureL2NormBasedEvictionPolicy,
    FeatureScoreBasedEvictionPolicy,
    TimestampBasedEvictionPolicy,
]


@pytest.mark.parametrize("policy_type", POLICIES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    ("data_type", "length"),
    [
        (DataType.INT64, 2),
        (DataType.FP32, 4),
        (DataType.BF16, 8),
        (DataType.INT8, 16),
        (DataType.INT4, 16),
    ],
)
def test_room_in_front_of_a_row(policy_type, data_type, length):
    policy = policy_type()
    assert (policy.get_meta_header_len(), policy.get_embedding_dim(), policy.initialized) == (
        0,
        0,
        False,
    )
    policy.init_metaheader_config(data_type, 24)
    assert (policy.get_meta_header_len(), policy.get_embedding_dim(), policy.initialized) == (
        length,
        24,
        True,
    )
    policy.init_metaheader_config(DataType.FP16, 96)
    assert policy.get_embedding_dim() == 24


@pytest.mark.parametrize(
    ("policy", "field", "value"),
    [
        (CountBasedEvictionPolicy(eviction_threshold=3), "inference_eviction_threshold", 3),
        (
            CountBasedEvictionPolicy(inference_eviction_threshold=0),
            "inference_eviction_threshold",
            0,
        ),
        (TimestampBasedEvictionPolicy(eviction_ttl_mins=7), "inference_eviction_ttl_mins", 7),
        (CountTimestampMixedEvictionPolicy(), "inference_eviction_ttl_mins", 1440),
        (CountTimestampMixedEvictionPolicy(), "inference_eviction_threshold", 15),
        (
            FeatureL2NormBasedEvictionPolicy(eviction_threshold=0.5),
            "inference_eviction_threshold",
            0.5,
        ),
        (FeatureScoreBasedEvictionPolicy(eviction_ttl_mins=5), "inference_eviction_ttl_mins", 5),
        (FeatureScoreBasedEvictionPolicy(), "inference_eviction_feature_score_threshold", 0),
    ],
)
def test_inference_takes_what_training_has(policy, field, value):
    assert dataclasses.asdict(policy)[field] == value


def test_scores_are_not_shared():
    assert (
        FeatureScoreMapping().feature_score_mapping
        is not FeatureScoreMapping().feature_score_mapping
    )


@pytest.mark.parametrize("config", [EmbeddingBagConfig, EmbeddingConfig])
@pytest.mark.parametrize(
    ("option", "value"),
    [("virtual_table_eviction_policy", NoEvictionPolicy()), ("use_virtual_table", True)],
)
def test_a_virtual_table_is_refused(config, option, value):
    with pytest.raises(
        ValueError, match=f"`{option}` of table 't' should be .*it is not supported"
    ):
        config(10, 4, "t", **{option: value})
