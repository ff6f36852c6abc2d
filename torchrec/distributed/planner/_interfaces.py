"""What a planner can be given: who keeps memory free, and who looks at what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan


class StorageReservation(ABC):
    """Keeps memory free for what is not a table."""

    @abstractmethod
    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """Return the ranks with the memory that is left for tables.

        Args:
            topology: the ranks.
            batch_size: samples a rank.
            module: the model.
            sharders: who will shard it.
            constraints: wishes, by name of table.
        """

    @property
    @abstractmethod
    def last_reserved_topology(self) -> Topology | None:
        """What `reserve` returned last; None: it was not called yet."""


class Stats(ABC):
    """Looks at a plan."""

    @abstractmethod
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
        enumerator: object = None,
        debug: bool = False,
        debug_stats: object = None,
    ) -> None:
        """Say what is to be said of a plan.

        Args:
            sharding_plan: the plan.
            topology: the ranks, before memory was kept free.
            batch_size: samples a rank.
            storage_reservation: who kept memory free.
            num_proposals: how many plans were looked at.
            num_plans: how many of them were possible.
            run_time: seconds that this took.
            best_plan: how each table was placed.
            constraints: wishes, by name of table.
            sharders: who will shard the model.
            enumerator: None.
            debug: whether to say more.
            debug_stats: None.
        """
