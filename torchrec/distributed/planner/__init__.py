"""Planning: where the tables of a model are to be, so that they fit and every rank has as much."""

from __future__ import annotations

from torchrec.distributed.planner.planners import EmbeddingPlannerBase, EmbeddingShardingPlanner
from torchrec.distributed.planner.types import ParameterConstraints, Topology
from torchrec.distributed.planner.utils import bytes_to_gb, sharder_name

__all__ = [
    "EmbeddingPlannerBase",
    "EmbeddingShardingPlanner",
    "ParameterConstraints",
    "Topology",
    "bytes_to_gb",
    "sharder_name",
]
