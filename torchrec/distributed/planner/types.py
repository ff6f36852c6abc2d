"""What planning is written in: ranks and their memory, wishes for tables, ways to place them, and who does what."""

from __future__ import annotations

from torchrec.distributed._plan_report import (
    Alternative,
    LayerReport,
    Optimality,
    PlanReport,
    RankMemory,
    RankReport,
    TableReport,
)
from torchrec.distributed.planner._bandwidths import (
    BasicCommsBandwidths,
    CollectionStep,
    CollectiveType,
    GeneralizedCommsBandwidth,
    PartLookup,
    Rates,
    StateSize,
)
from torchrec.distributed.planner._calibration import Calibration
from torchrec.distributed.planner._interfaces import (
    CriticalPathEstimate,
    Enumerator,
    Partitioner,
    PerfModel,
    PlanDebugStats,
    PlanLoader,
    Proposer,
    SharderData,
    SharderDataMap,
    ShardEstimator,
    Stats,
    StorageReservation,
)
from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
)
from torchrec.distributed.planner._topology import (
    CustomTopologyData,
    DeviceHardware,
    Perf,
    Storage,
    Topology,
)
from torchrec.distributed.types import ShardingPlan

__all__ = [
    "Alternative",
    "BasicCommsBandwidths",
    "Calibration",
    "CollectionStep",
    "CollectiveType",
    "CriticalPathEstimate",
    "CustomTopologyData",
    "DeviceHardware",
    "Enumerator",
    "GeneralizedCommsBandwidth",
    "LayerReport",
    "Optimality",
    "ParameterConstraints",
    "PartLookup",
    "PartitionByType",
    "Partitioner",
    "Perf",
    "PerfModel",
    "PlanDebugStats",
    "PlanLoader",
    "PlanReport",
    "PlannerError",
    "PlannerErrorType",
    "Proposer",
    "RankMemory",
    "RankReport",
    "Rates",
    "Shard",
    "ShardEstimator",
    "SharderData",
    "SharderDataMap",
    "ShardingOption",
    "ShardingPlan",
    "StateSize",
    "Stats",
    "Storage",
    "StorageReservation",
    "TableReport",
    "Topology",
]
