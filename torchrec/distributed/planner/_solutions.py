"""Plans as they come about: searched for, proposed by others, or loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrec.distributed._plan_report import Optimality
from torchrec.distributed.planner._interfaces import (
    Enumerator,
    Partitioner,
    PerfModel,
    Proposer,
)
from torchrec.distributed.planner._options import (
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._search import search
from torchrec.distributed.planner._search_space import SearchSpace
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Topology

__all__ = ["Proposals", "Solution", "load_solution", "solve", "solve_by_proposals"]


@dataclass(frozen=True)
class Solution:
    """How tables are placed, and how that was found.

    Attributes:
        options: a way for each table, with ranks.
        optimality: what is known of other plans.
        num_proposals: how many were looked at.
        num_plans: how many of them fit.
    """

    options: list[ShardingOption]
    optimality: Optimality = Optimality.UNKNOWN
    num_proposals: int = 1
    num_plans: int = 1


@dataclass(frozen=True)
class Proposals:
    """Who proposes, deals out and rates."""

    proposers: list[Proposer]
    partitioner: Partitioner
    perf_model: PerfModel


def solve(search_space: SearchSpace, deadline: float | None) -> Solution | None:
    """Return the plan of the search; None: none was found.

    Args:
        search_space: all ways of all tables.
        deadline: when to stop, as `time.monotonic` has it.
    """
    found = search(search_space.problem, deadline=deadline)
    if found is None:
        return None
    optimality = Optimality.LOCAL if found.is_local else Optimality.UNKNOWN
    if found.is_best:
        # Tables are counted one by one: under a plan that was left out, steps may take less.
        optimality = Optimality.FITTING if found.is_bound else Optimality.PROVEN
    return Solution(search_space.taken(found.choices), optimality, 1 + found.steps)


def solve_by_proposals(
    space: list[ShardingOption],
    topology: Topology,
    enumerator: Enumerator,
    proposals: Proposals,
    deadline: float | None,
) -> Solution:
    """Return the best of the plans that proposers come to.

    Args:
        space: all ways of all tables.
        topology: the ranks, with the memory that is left for tables.
        enumerator: who has found them.
        proposals: who proposes, deals out and rates.
        deadline: when to stop.

    Raises:
        PlannerError: if no proposal fits.
    """
    best: tuple[float, list[ShardingOption]] | None = None
    looked_at, fit = 0, 0
    last: PlannerError | None = None
    for proposer in proposals.proposers:
        proposer.load(space, enumerator)
        while (proposal := proposer.propose()) is not None:
            looked_at += 1
            plan: list[ShardingOption] | None
            try:
                plan = proposals.partitioner.partition(proposal, topology)
            except PlannerError as error:
                last, plan = error, None
            if plan is None:
                proposer.feedback(False, proposal, None, topology)
            else:
                fit += 1
                rating = proposals.perf_model.rate(plan)
                if best is None or rating < best[0]:
                    best = rating, plan
                proposer.feedback(True, plan, rating, topology)
            if deadline is not None and time.monotonic() > deadline:
                break
    if best is None and space:
        raise PlannerError(
            f"One of {looked_at} proposals should fit. Received none that does; of the last, {last}",
            PlannerErrorType.INSUFFICIENT_STORAGE,
        )
    return Solution([] if best is None else best[1], Optimality.UNKNOWN, looked_at, fit)


def load_solution(
    known: Mapping[int, ShardingOption],
    space: Sequence[ShardingOption],
    made_for: str | None,
    this: str,
) -> Solution:
    """Return a plan that was made before.

    Args:
        known: its ways.
        space: all ways of all tables of this model.
        made_for: of the planner that made it, its `hash_planner_context_inputs_str`; None: any may take it.
        this: the same of the planner that takes it.

    Raises:
        PlannerError: if it is of another planner, or not of the tables of this model.
    """
    if made_for is not None and made_for != this:
        raise PlannerError(
            f"A plan that is loaded should be made for the same ranks, batches and wishes, {this}. "
            f"Received {made_for}.",
            PlannerErrorType.PLANNER_INPUT_CONTEXT_MISMATCH,
        )
    tables = {(options[0].path, options[0].name) for options in by_table(space)}
    of_plan = {(option.path, option.name): option for option in known.values()}
    if tables != of_plan.keys():
        raise PlannerError(
            f"A plan that is loaded should have the tables of the model. "
            f"Received none of {sorted(tables - of_plan.keys())}, and {sorted(of_plan.keys() - tables)}, "
            "which it has not.",
            PlannerErrorType.MISSING_MODULE_IN_PLAN,
        )
    order = [(options[0].path, options[0].name) for options in by_table(space)]
    return Solution([of_plan[table] for table in order])
