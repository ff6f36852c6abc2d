"""Planners: from a model and the ranks to a plan of sharding."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup

from torchrec.distributed._plan_report import Optimality
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.planner._changes import Change, changes_that_fit, with_half_weights
from torchrec.distributed.planner._dense import Layers
from torchrec.distributed.planner._explain import digest_of, report_of
from torchrec.distributed.planner._fitting import solve_within
from torchrec.distributed.planner._interfaces import (
    Enumerator,
    Partitioner,
    PerfModel,
    PlanDebugStats,
    PlanLoader,
    Proposer,
    Stats,
    StorageReservation,
)
from torchrec.distributed.planner._modules import dense_bytes
from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._shortage import Shortage, shortage_of
from torchrec.distributed.planner._solutions import (
    Proposals,
    Solution,
    load_solution,
    solve_by_proposals,
)
from torchrec.distributed.planner._to_plan import to_sharding_plan
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.planner.constants import BATCH_SIZE
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.proposers import (
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.stats import EmbeddingStats
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingPlanner
from torchrec.distributed.wire import Wire

__all__ = ["EmbeddingPlannerBase", "EmbeddingShardingPlanner", "to_sharding_plan"]

Callback = Callable[[list[ShardingOption]], list[ShardingOption]]


class EmbeddingPlannerBase(ShardingPlanner):
    """What planners have in common: what they plan for, and how all ranks come to the same plan.

    Args:
        topology: the ranks. Default: those of the process group, hosts as ``torchrun`` says.
        batch_size: samples a rank. Default 512.
        enumerator: who says in which ways tables can be placed. Default: an `EmbeddingEnumerator`.
        storage_reservation: keeps memory free for what is not a table. Default: as a
            `HeuristicalStorageReservation` does.
        stats: who looks at each plan that is made. Default: an `EmbeddingStats`, which writes to the log.
        constraints: wishes, by name of table.
        debug: is passed on to ``stats``.
        callbacks: each changes how tables are placed, in turn, before that becomes a plan; all tables stay.
        timeout_seconds: after how long the best plan found so far is taken. Default: the search ends by itself, within
            seconds.
        heuristical_storage_reservation_percentage: the share of all memory that is kept free by default. Default 0.15.
    """

    def __init__(
        self,
        topology: Topology | None = None,
        batch_size: int | None = None,
        enumerator: Enumerator | None = None,
        storage_reservation: StorageReservation | None = None,
        stats: Stats | list[Stats] | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        debug: bool = True,
        callbacks: list[Callback] | None = None,
        timeout_seconds: int | None = None,
        heuristical_storage_reservation_percentage: float = 0.15,
    ) -> None:
        self._topology = topology or _present_topology()
        self._batch_size = BATCH_SIZE if batch_size is None else batch_size
        if self._batch_size < 1:
            raise ValueError(f"`batch_size` should be at least 1. Received {batch_size}.")
        self._enumerator = enumerator or EmbeddingEnumerator(
            self._topology, self._batch_size, constraints
        )
        self._storage_reservation = storage_reservation or HeuristicalStorageReservation(
            heuristical_storage_reservation_percentage
        )
        stats = EmbeddingStats() if stats is None else stats
        self._stats = list(stats) if isinstance(stats, Sequence) else [stats]
        self._constraints = constraints or {}
        self._debug = debug
        self._callbacks = callbacks or []
        self._timeout_seconds = timeout_seconds

    def collective_plan(
        self,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]] | None = None,
        pg: ProcessGroup | None = None,
    ) -> ShardingPlan:
        """Return a plan that all ranks agree on: the first one plans, while the others wait for as long as it is alive.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it. Default: those of `get_default_sharders`.
            pg: the ranks. Default: all; without a process group, this process plans for itself.

        Raises:
            PlannerError: on every rank, if there is no plan.
            RuntimeError: on every other rank, if the first one has stopped as it plans.
        """
        sharders = get_default_sharders() if sharders is None else sharders
        pg = dist.group.WORLD if pg is None else pg
        if pg is None:
            return self.plan(module, sharders)

        def planned() -> ShardingPlan | PlannerError:
            try:
                return self.plan(module, sharders)
            except PlannerError as error:  # which all ranks raise as it is
                return error

        found = Wire(pg).on_one(planned, "finding a plan")
        if isinstance(found, PlannerError):
            raise found
        return found

    def hash_planner_context_inputs_str(self) -> str:
        """Return digits that are the same for planners that plan for the same ranks, batches and wishes."""
        topology = self._topology
        rates = (
            topology.hbm_mem_bw,
            topology.ddr_mem_bw,
            topology.ssd_mem_bw,
            topology.hbm_to_ddr_mem_bw,
            topology.bwd_compute_multiplier,
            topology.weighted_feature_bwd_compute_multiplier,
            topology.uneven_sharding_perf_multiplier,
            topology.rates,
        )
        inputs = (topology, rates, self._batch_size, sorted(self._constraints.items()))
        return hashlib.sha256(repr(inputs).encode()).hexdigest()

    def hash_planner_context_inputs(self) -> int:
        """Return the same as a number."""
        return int(self.hash_planner_context_inputs_str()[:16], 16)


class EmbeddingShardingPlanner(EmbeddingPlannerBase):
    """Finds the plan under which the slowest rank of a step is the quickest.

    Wishes come first (`ParameterConstraints`), then memory, then the estimated time of the slowest rank, of all ranks,
    and the bytes of the fullest. For few tables no plan is better, which `ShardingPlan.explain` says; for many, none
    that places one table otherwise is. The same model, ranks and wishes give the same plan.

    Given ``proposer``, ``partitioner`` or ``performance_model``, it looks for the plan as the API says instead: every
    proposal is dealt out to the ranks and rated, and the best is taken.

    Args:
        topology: the ranks. Default: those of the process group, hosts as ``torchrun`` says.
        batch_size: samples a rank. Default 512.
        enumerator: who says in which ways tables can be placed. Default: an `EmbeddingEnumerator`.
        storage_reservation: keeps memory free for what is not a table. Default: as a
            `HeuristicalStorageReservation` of a share of 0.15 does.
        proposer: who proposes a way for each table, one or several.
        partitioner: who deals parts out to ranks. Default, with proposals: a `GreedyPerfPartitioner`.
        performance_model: who rates plans. Default, with proposals: a `NoopPerfModel`.
        stats: who looks at each plan that is made. Default: an `EmbeddingStats`, which writes to the log.
        constraints: wishes, by name of table.
        debug: is passed on to ``stats``.
        callbacks: each changes how tables are placed, in turn, before that becomes a plan; all tables stay.
        timeout_seconds: after how long the best plan found so far is taken. Default: the search ends by itself, within
            seconds.
        plan_loader: knows a plan that was made before, which is taken if it is of the same model and ranks.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> tables = [EmbeddingBagConfig(1000, 16, name, feature_names=[name]) for name in "ab"]
        >>> topology = Topology(world_size=2, compute_device="cpu")
        >>> planner = EmbeddingShardingPlanner(topology)
        >>> plan = planner.plan(EmbeddingBagCollection(tables, device="meta"), get_default_sharders())
        >>> print(plan.explain())  # doctest: +ELLIPSIS
        2 ranks, cpu, 512 samples each: ...
    """

    def __init__(
        self,
        topology: Topology | None = None,
        batch_size: int | None = None,
        enumerator: Enumerator | None = None,
        storage_reservation: StorageReservation | None = None,
        proposer: Proposer | list[Proposer] | None = None,
        partitioner: Partitioner | None = None,
        performance_model: PerfModel | None = None,
        stats: Stats | list[Stats] | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        debug: bool = True,
        callbacks: list[Callback] | None = None,
        timeout_seconds: int | None = None,
        plan_loader: PlanLoader | None = None,
    ) -> None:
        super().__init__(
            topology,
            batch_size,
            enumerator,
            storage_reservation,
            stats,
            constraints,
            debug,
            callbacks,
            timeout_seconds,
        )
        self._plan_loader = plan_loader
        self._proposals: Proposals | None = None
        if proposer is not None or partitioner is not None or performance_model is not None:
            if proposer is None:
                proposer = [
                    GridSearchProposer(),
                    GreedyProposer(),
                    GreedyProposer(use_depth=False),
                    UniformProposer(),
                ]
            self._proposals = Proposals(
                proposer if isinstance(proposer, list) else [proposer],
                partitioner or GreedyPerfPartitioner(),
                performance_model or NoopPerfModel(self._topology),
            )

    def plan(self, module: nn.Module, sharders: list[ModuleSharder[Any]]) -> ShardingPlan:
        """Return a plan, which can be explained.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it.

        Raises:
            PlannerError: if a table cannot be placed as wished, or fits nowhere.
        """
        start = time.monotonic()
        topology = self._storage_reservation.reserve(
            self._topology, self._batch_size, module, sharders, self._constraints
        )
        space = self._enumerator.enumerate(module, sharders)
        layers = Layers(dense_bytes(module, sharders), self._storage_reservation.dense)
        solution = self._solution(module, sharders, space, topology, start, layers)
        solution = self._called_back(solution)
        options = solution.options
        plan = to_sharding_plan(options, self._topology)
        plan.report = report_of(
            options,
            solution,
            space,
            topology,
            self._topology,
            self._batch_size,
            made_from=digest_of(self.hash_planner_context_inputs_str(), space, topology),
            layers=layers,
        )
        for stats in self._stats:
            stats.log(
                sharding_plan=plan,
                topology=self._topology,
                batch_size=self._batch_size,
                storage_reservation=self._storage_reservation,
                num_proposals=solution.num_proposals,
                num_plans=solution.num_plans,
                run_time=time.monotonic() - start,
                best_plan=options,
                constraints=self._constraints,
                sharders=sharders,
                enumerator=self._enumerator,
                debug=self._debug,
                debug_stats=PlanDebugStats(type(self).__name__, self._timeout_seconds),
            )
        return plan

    def _called_back(self, solution: Solution) -> Solution:
        """Return a plan as callbacks change it; of one that is changed, it is not known whether another is better."""
        before, wanted = _placements(solution.options), _names(solution.options)
        options = solution.options
        for callback in self._callbacks:
            options = callback(options)
            tables = _names(options)
            if tables != wanted:
                raise PlannerError(
                    f"`callbacks` should keep all tables, each once, {wanted}. Received {tables} of "
                    f"{getattr(callback, '__name__', callback)}.",
                    PlannerErrorType.INPUT_VALIDATION,
                )
        if _placements(options) == before:
            return replace(solution, options=options)
        return replace(solution, options=options, optimality=Optimality.UNKNOWN)

    def _solution(
        self,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        space: list[ShardingOption],
        topology: Topology,
        start: float,
        layers: Layers,
    ) -> Solution:
        known = None if self._plan_loader is None else self._plan_loader.load()
        if self._plan_loader is not None and known is not None:
            wanted = self._plan_loader.plan_context_hash()
            return load_solution(known, space, wanted, self.hash_planner_context_inputs_str())
        deadline = None if self._timeout_seconds is None else start + self._timeout_seconds
        if self._proposals is not None:
            return solve_by_proposals(space, topology, self._enumerator, self._proposals, deadline)
        found = solve_within(space, topology, layers, deadline)
        if found.solution is not None:
            return found.solution
        shortage = shortage_of(found.space, topology, found.lacking)
        raise shortage.error(*self._changes(shortage, module, sharders, layers))

    def _changes(
        self,
        shortage: Shortage,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        layers: Layers,
    ) -> tuple[list[str], bool]:
        """Return the changes after which there is a plan, each tried, and whether all others were."""
        if type(self._enumerator) is not EmbeddingEnumerator:
            return [], True  # which ways it would find for other ranks or wishes is not known
        sharder = self._enumerator.sharder_map[shortage.options[0].module_type_key]
        types = sharder.sharding_types(self._topology.compute_device)

        def fits(change: Change) -> bool:
            topology, constraints = change.topology, dict(change.constraints)
            enumerator = EmbeddingEnumerator(topology, self._batch_size, constraints)
            try:
                left = copy(self._storage_reservation).reserve(
                    topology, self._batch_size, module, sharders, constraints
                )
                space = enumerator.enumerate(module, sharders)
                if change.halved is not None:
                    space = with_half_weights(space, change.halved)
                return solve_within(space, left, layers, None).solution is not None
            except PlannerError:
                return False

        return changes_that_fit(shortage, self._topology, self._constraints, types, fits)


def _names(options: Sequence[ShardingOption]) -> list[str]:
    return sorted(option.fqn for option in options)


def _placements(options: Sequence[ShardingOption]) -> list[tuple[object, ...]]:
    """Return which parts of which tables are where, in an order of its own."""
    return sorted(
        (
            option.fqn,
            option.sharding_type,
            option.compute_kernel,
            [(tuple(shard.size), tuple(shard.offset), shard.rank) for shard in option.shards],
        )
        for option in options
    )


def _present_topology() -> Topology:
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return Topology(
        world_size=world_size,
        compute_device="cuda" if torch.cuda.is_available() else "cpu",
        local_world_size=get_local_size(world_size),
    )
