"""Managed collision: maps from ids without bounds to the rows of tables."""

from torchrec.modules.collision.collection import (
    ManagedCollisionCollection,
    apply_mc_method_to_jt_dict,
)
from torchrec.modules.collision.interface import ManagedCollisionModule
from torchrec.modules.collision.module import MCHManagedCollisionModule
from torchrec.modules.collision.policies import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
    MCHEvictionPolicyMetadataInfo,
    average_threshold_filter,
    dynamic_threshold_filter,
    probabilistic_threshold_filter,
)
from torchrec.modules.collision.saved_state import LoadReport
from torchrec.modules.collision.stats import ManagedCollisionStats

__all__ = [
    "DistanceLFU_EvictionPolicy",
    "LFU_EvictionPolicy",
    "LRU_EvictionPolicy",
    "LoadReport",
    "MCHEvictionPolicy",
    "MCHEvictionPolicyMetadataInfo",
    "MCHManagedCollisionModule",
    "ManagedCollisionCollection",
    "ManagedCollisionModule",
    "ManagedCollisionStats",
    "apply_mc_method_to_jt_dict",
    "average_threshold_filter",
    "dynamic_threshold_filter",
    "probabilistic_threshold_filter",
]
