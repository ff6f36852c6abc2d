"""Who looks at plans that are made."""

from __future__ import annotations

import logging
from typing import Any

from torchrec.distributed.planner._interfaces import (
    Enumerator,
    PlanDebugStats,
    Stats,
    StorageReservation,
)
from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan

__all__ = ["EmbeddingStats", "NoopEmbeddingStats"]

_LOGGER = logging.getLogger("torchrec.distributed.planner")


class EmbeddingStats(Stats):
    """Writes `ShardingPlan.explain` to the log ``torchrec.distributed.planner``, as information."""

    def log(
        self,
        sharding_plan: ShardingPlan,
        topology: Topology,
        batch_size: int,
        storage_reservation: StorageReservation,
        num_proposals: int,
        num_plans: int,
        run_time: float,
        best_plan: list[ShardingOption],
        constraints: dict[str, ParameterConstraints] | None = None,
        sharders: list[ModuleSharder[Any]] | None = None,
        enumerator: Enumerator | None = None,
        debug: bool = True,
        debug_stats: PlanDebugStats | None = None,
    ) -> None:
        """Write it; with ``debug``, where each part of each table is as well."""
        if not _LOGGER.isEnabledFor(logging.INFO):
            return
        who = "the planner" if debug_stats is None else debug_stats.planner_type
        _LOGGER.info(
            "Plan of %s, the best of %d that fit, in %.2f s.\n%s",
            who,
            num_plans,
            run_time,
            sharding_plan.explain(),
        )
        if debug:
            _LOGGER.info("%s", sharding_plan)


class NoopEmbeddingStats(Stats):
    """Writes nothing."""

    def log(
        self,
        sharding_plan: ShardingPlan,
        topology: Topology,
        batch_size: int,
        storage_reservation: StorageReservation,
        num_proposals: int,
        num_plans: int,
        run_time: float,
        best_plan: list[ShardingOption],
        constraints: dict[str, ParameterConstraints] | None = None,
        sharders: list[ModuleSharder[Any]] | None = None,
        enumerator: Enumerator | None = None,
        debug: bool = True,
        debug_stats: PlanDebugStats | None = None,
    ) -> None:
        """Do nothing."""
