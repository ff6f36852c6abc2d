"""Private names of PyTorch that sharding needs: what a new version may break is in this file alone.

``tests/distributed/test_private.py`` holds what each should do.
"""

from __future__ import annotations

from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec, ShardingSpec

__all__ = [
    "EnumerableShardingSpec",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "ShardingSpec",
    "TensorProperties",
    "placement_of",
]


def placement_of(metadata: ShardMetadata) -> tuple[int | None, str]:
    """Return the rank and the device of a placement, ``"rank:1/cpu"`` say; None: it names no rank."""
    placement = metadata.placement
    if placement is None:
        return None, ""
    rank = placement.rank()
    return rank, str(placement.device())
