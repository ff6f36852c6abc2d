"""What planning is written in: ranks and their memory, wishes for tables, and ways to place them."""

from __future__ import annotations

from torchrec.distributed.planner._interfaces import Stats, StorageReservation
from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
)
from torchrec.distributed.planner._topology import (
    BasicCommsBandwidths,
    CollectiveType,
    CustomTopologyData,
    DeviceHardware,
    GeneralizedCommsBandwidth,
    Perf,
    Storage,
    Topology,
)
from torchrec.distributed.types import ShardingPlan

__all__ = [
    "BasicCommsBandwidths",
    "CollectiveType",
    "CustomTopologyData",
    "DeviceHardware",
    "GeneralizedCommsBandwidth",
    "ParameterConstraints",
    "PartitionByType",
    "Perf",
    "PlannerError",
    "PlannerErrorType",
    "Shard",
    "ShardingOption",
    "ShardingPlan",
    "Stats",
    "Storage",
    "StorageReservation",
    "Topology",
]
