"""Planners: from a model and the ranks to a plan of sharding."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup

from torchrec.distributed.comm import get_local_size
from torchrec.distributed.layout import placement
from torchrec.distributed.planner._candidates import candidates_of
from torchrec.distributed.planner._interfaces import Stats, StorageReservation
from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._placing import place
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.planner.constants import BATCH_SIZE
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ModuleSharder,
    ParameterSharding,
    ShardingPlan,
    ShardingPlanner,
    ShardingType,
    ShardMetadata,
)

Callback = Callable[[list[ShardingOption]], list[ShardingOption]]


class EmbeddingPlannerBase(ShardingPlanner):
    """What planners have in common: what they plan for, and how all ranks come to the same plan.

    Args:
        topology: the ranks. Default: those of the process group, hosts as ``torchrun`` says.
        batch_size: samples a rank. Default 512.
        enumerator: refused: which ways there are to place a table is not to be changed.
        storage_reservation: keeps memory free for what is not a table. Default: as a
            `HeuristicalStorageReservation` does.
        stats: who looks at each plan that is made.
        constraints: wishes, by name of table.
        debug: is passed on to ``stats``.
        callbacks: each changes how tables are placed, in turn, before that becomes a plan.
        timeout_seconds: how long planning may take; it takes no such time.
        heuristical_storage_reservation_percentage: the share of all memory that is kept free by default. Default 0.15.
    """

    def __init__(
        self,
        topology: Topology | None = None,
        batch_size: int | None = None,
        enumerator: object = None,
        storage_reservation: StorageReservation | None = None,
        stats: Stats | list[Stats] | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        debug: bool = True,
        callbacks: list[Callback] | None = None,
        timeout_seconds: int | None = None,
        heuristical_storage_reservation_percentage: float = 0.15,
    ) -> None:
        _refuse(enumerator=enumerator)
        self._topology = topology or _present_topology()
        self._batch_size = batch_size or BATCH_SIZE
        self._storage_reservation = storage_reservation or HeuristicalStorageReservation(
            heuristical_storage_reservation_percentage
        )
        self._stats = list(stats) if isinstance(stats, Sequence) else [stats] if stats else []
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
        """Return a plan that all ranks agree on: the first one plans, the others are told.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it. Default: those of `get_default_sharders`.
            pg: the ranks. Default: all; without a process group, this process plans for itself.

        Raises:
            PlannerError: on every rank, if there is no plan.
        """
        sharders = get_default_sharders() if sharders is None else sharders
        pg = dist.group.WORLD if pg is None else pg
        if pg is None:
            return self.plan(module, sharders)
        told: list[ShardingPlan | Exception | None] = [None]
        if dist.get_rank(pg) == 0:
            try:
                told[0] = self.plan(module, sharders)
            except Exception as error:  # the others wait to be told
                told[0] = error
        dist.broadcast_object_list(told, src=dist.get_global_rank(pg, 0), group=pg)
        plan = told[0]
        if not isinstance(plan, ShardingPlan):
            raise plan if plan is not None else RuntimeError("The first rank told of no plan.")
        return plan

    def hash_planner_context_inputs_str(self) -> str:
        """Return digits that are the same for planners that plan for the same ranks, batches and wishes."""
        inputs = (self._topology, self._batch_size, sorted(self._constraints.items()))
        return hashlib.sha256(repr(inputs).encode()).hexdigest()

    def hash_planner_context_inputs(self) -> int:
        """Return the same as a number."""
        return int(self.hash_planner_context_inputs_str()[:16], 16)


class EmbeddingShardingPlanner(EmbeddingPlannerBase):
    """Puts whole tables on ranks so that these have as many bytes each, and spreads rows of large ones over all.

    Wishes come first (`ParameterConstraints`), then memory, then bytes: from the largest table on, each goes to the
    rank that has least so far. A table of more than a quarter of the memory of a rank is spread by rows, if it may be.
    The same model, ranks and wishes give the same plan.

    Args:
        topology: the ranks. Default: those of the process group, hosts as ``torchrun`` says.
        batch_size: samples a rank. Default 512.
        enumerator: refused, as are ``proposer``, ``partitioner``, ``performance_model`` and ``plan_loader``: there is
            no search yet.
        storage_reservation: keeps memory free for what is not a table. Default: as a
            `HeuristicalStorageReservation` of a share of 0.15 does.
        proposer: refused.
        partitioner: refused.
        performance_model: refused.
        stats: who looks at each plan that is made.
        constraints: wishes, by name of table.
        debug: is passed on to ``stats``.
        callbacks: each changes how tables are placed, in turn, before that becomes a plan.
        timeout_seconds: how long planning may take; it takes no such time.
        plan_loader: refused.
    """

    def __init__(
        self,
        topology: Topology | None = None,
        batch_size: int | None = None,
        enumerator: object = None,
        storage_reservation: StorageReservation | None = None,
        proposer: object = None,
        partitioner: object = None,
        performance_model: object = None,
        stats: Stats | list[Stats] | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        debug: bool = True,
        callbacks: list[Callback] | None = None,
        timeout_seconds: int | None = None,
        plan_loader: object = None,
    ) -> None:
        _refuse(
            proposer=proposer,
            partitioner=partitioner,
            performance_model=performance_model,
            plan_loader=plan_loader,
        )
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

    def plan(self, module: nn.Module, sharders: list[ModuleSharder[Any]]) -> ShardingPlan:
        """Return a plan.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it.

        Raises:
            PlannerError: if a table cannot be placed as wished, or fits nowhere.
        """
        start = time.perf_counter()
        topology = self._storage_reservation.reserve(
            self._topology, self._batch_size, module, sharders, self._constraints
        )
        candidates = candidates_of(module, sharders, topology, self._batch_size, self._constraints)
        options = place(candidates, topology)
        for callback in self._callbacks:
            options = callback(options)
        plan = to_sharding_plan(options, self._topology)
        for stats in self._stats:
            stats.log(
                sharding_plan=plan,
                topology=self._topology,
                batch_size=self._batch_size,
                storage_reservation=self._storage_reservation,
                num_proposals=1,
                num_plans=1,
                run_time=time.perf_counter() - start,
                best_plan=options,
                constraints=self._constraints,
                sharders=sharders,
                debug=self._debug,
            )
        return plan


def to_sharding_plan(sharding_options: list[ShardingOption], topology: Topology) -> ShardingPlan:
    """Make a plan of how tables are placed.

    Args:
        sharding_options: one for each table, with ranks.
        topology: the ranks.

    Raises:
        PlannerError: if a part has no rank.
    """
    plan = ShardingPlan({})
    for option in sharding_options:
        module = plan.plan.setdefault(option.path, EmbeddingModuleShardingPlan())
        ranks = [rank for rank in option.get_shards_assignment() if rank is not None]
        if len(ranks) != option.num_shards or not isinstance(module, EmbeddingModuleShardingPlan):
            raise PlannerError(
                f"Table {option.name!r} of module {option.path!r} should have a rank for each of "
                f"{option.num_shards} parts. Received {option.get_shards_assignment()}.",
                PlannerErrorType.INVALID_RANK_ASSIGNMENT,
            )
        shards = [
            ShardMetadata(
                shard.offset,
                shard.size,
                placement(topology.compute_device, rank, topology.local_world_size),
            )
            for shard, rank in zip(option.shards, ranks, strict=True)
        ]
        is_replicated = option.sharding_type == ShardingType.DATA_PARALLEL.value
        module[option.name] = ParameterSharding(
            sharding_type=option.sharding_type,
            compute_kernel=option.compute_kernel,
            ranks=ranks,
            sharding_spec=None if is_replicated else EnumerableShardingSpec(shards),
            cache_params=option.cache_params,
            enforce_hbm=option.enforce_hbm,
            stochastic_rounding=option.stochastic_rounding,
            bounds_check_mode=option.bounds_check_mode,
            output_dtype=option.output_dtype,
            key_value_params=option.key_value_params,
        )
    return plan


def _refuse(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{name}` should be None: there is one way to plan here so far. Received {type(value).__name__}."
            )


def _present_topology() -> Topology:
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return Topology(
        world_size=world_size,
        compute_device="cuda" if torch.cuda.is_available() else "cpu",
        local_world_size=get_local_size(world_size),
    )
