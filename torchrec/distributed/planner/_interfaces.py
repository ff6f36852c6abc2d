"""What a planner can be given: who finds ways to place tables, estimates, proposes, deals out, rates, and looks on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchrec.distributed.planner._dense import DensePart
from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan, StorageUsageType


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

    @property
    def dense(self) -> DensePart | None:
        """The layers that it keeps memory for, as measured; None: they were not."""
        return None


@dataclass
class SharderData:
    """What estimates need to know of a sharder.

    Attributes:
        fused_params: how the backward pass updates its tables.
        qcomm_dtype_sizes: name of a `CommOp` -> bytes of a number on the way, forward and backward. Default: 4.
        storage_usage_type: which kernels keep tables in the memory of the host.
    """

    fused_params: dict[str, Any]
    qcomm_dtype_sizes: dict[str, tuple[float, float]]
    storage_usage_type: StorageUsageType


SharderDataMap = dict[str, SharderData]


class ShardEstimator(ABC):
    """Says what parts of tables take, of time or of memory.

    Args:
        topology: the ranks.
        constraints: wishes, by name of table.
    """

    @abstractmethod
    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> None: ...

    @abstractmethod
    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Write into each part what it takes.

        Args:
            sharding_options: ways to place tables.
            sharder_data_map: `ShardingOption.module_type_key` -> what is known of the sharder.
        """


class Enumerator(ABC):
    """Says in which ways the tables of a model can be placed.

    Args:
        topology: the ranks.
        batch_size: samples a rank.
        constraints: wishes, by name of table.
        estimator: who says what each way takes.
    """

    @abstractmethod
    def __init__(
        self,
        topology: Topology,
        batch_size: int = 512,
        constraints: dict[str, ParameterConstraints] | None = None,
        estimator: ShardEstimator | list[ShardEstimator] | None = None,
    ) -> None: ...

    @abstractmethod
    def enumerate(
        self, module: nn.Module, sharders: list[ModuleSharder[Any]]
    ) -> list[ShardingOption]:
        """Return all ways, with what they take, table by table.

        Args:
            module: the model.
            sharders: who will shard it.
        """

    @abstractmethod
    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Write into each part of some ways what it takes."""


class Proposer(ABC):
    """Proposes a way for each table, again and again, and is told what came of it."""

    @abstractmethod
    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew.

        Args:
            search_space: all ways of all tables.
            enumerator: who has found them.
        """

    @abstractmethod
    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Hear what became of what was proposed last.

        Args:
            partitionable: whether there was room for it.
            plan: the same with ranks.
            perf_rating: how good it is; less is better.
            storage_constraint: the ranks, with the memory that was left for tables.
        """

    @abstractmethod
    def propose(self) -> list[ShardingOption] | None:
        """Return a way for each table; None: there is nothing more to propose."""


class Partitioner(ABC):
    """Deals the parts of tables out to ranks."""

    @abstractmethod
    def partition(
        self, proposal: list[ShardingOption], storage_constraint: Topology
    ) -> list[ShardingOption]:
        """Return the same ways with ranks.

        Args:
            proposal: a way for each table.
            storage_constraint: the ranks, with the memory that is left for tables.

        Raises:
            PlannerError: if there is no room.
        """


class PerfModel(ABC):
    """Says how good a plan is."""

    @abstractmethod
    def rate(self, plan: list[ShardingOption]) -> float:
        """Return a number; less is better.

        Args:
            plan: a way for each table, with ranks.
        """


class PlanLoader(ABC):
    """Knows a plan that was made before."""

    @abstractmethod
    def load(self) -> dict[int, ShardingOption] | None:
        """Return a way for each table, with ranks, by `ShardingOption.storage_hash`; None: there is none."""

    @abstractmethod
    def plan_context_hash(self) -> str | None:
        """Return what `EmbeddingPlannerBase.hash_planner_context_inputs_str` was; None: any planner may take it."""


@dataclass
class CriticalPathEstimate:
    """Milliseconds of a step that nothing else runs beside.

    Example:
        >>> CriticalPathEstimate(comms_estimate=2.0, comp_estimate=1.5).total()
        3.5
    """

    comms_estimate: float
    comp_estimate: float

    def total(self) -> float:
        """Return both together."""
        return self.comms_estimate + self.comp_estimate


@dataclass
class PlanDebugStats:
    """What those who look at plans are told of the planner."""

    planner_type: str
    timeout_seconds: int | None


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
        enumerator: Enumerator | None = None,
        debug: bool = False,
        debug_stats: PlanDebugStats | None = None,
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
            enumerator: who found the ways to place tables.
            debug: whether to say more.
            debug_stats: what there is to know of the planner.
        """
