"""Proposers and partitioners of the API: what they propose, where parts go, and the planner that is given them."""

from __future__ import annotations

import itertools

import pytest

from tests.distributed.planner.test_changes import model
from tests.distributed.table_sharder import TableSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import (
    GreedyPerfPartitioner,
    MemoryBalancedPartitioner,
    SortBy,
)
from torchrec.distributed.planner.perf_models import NoopPerfModel, NoopStorageModel
from torchrec.distributed.planner.proposers import (
    DynamicProgrammingProposer,
    EmbeddingOffloadScaleupProposer,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.types import (
    Perf,
    PlanLoader,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    Storage,
)
from torchrec.distributed.types import CacheParams

pytestmark = pytest.mark.once

TOPOLOGY = Topology(2, "cpu", ddr_cap=1000)
MODULE = ("sparse", model(a=(4, 4)))


def option(name, kind, *parts, path="sparse", by="device", **options) -> ShardingOption:
    """A way whose parts take (milliseconds, bytes)."""
    shards = [Shard([4, 4], [0, 0], Storage(0, size), Perf(time, 0, 0, 0)) for time, size in parts]
    module = (path, MODULE[1])
    tensor = MODULE[1].embedding_bags["a"].weight
    return ShardingOption(name, tensor, module, [1.0], 1, kind, by, "fused", shards, **options)


def space():
    """Table a: fast and large, slow and small; table b: the same in other sizes."""
    return [
        option("a", "table_wise", (1, 500)),
        option("a", "column_wise", (2, 100), (2, 100)),
        option("b", "table_wise", (3, 300)),
        option("b", "column_wise", (2, 60), (2, 60)),
    ]


def proposals(proposer, options=None, fits=True, topology=TOPOLOGY, rating=None):
    proposer.load(space() if options is None else options)
    found = []
    while (proposal := proposer.propose()) is not None:
        found.append([way.sharding_type for way in proposal])
        proposer.feedback(fits, proposal, rating, topology)
        assert len(found) < 100
    return found


T, C = "table_wise", "column_wise"


def test_greedy_goes_on_with_the_table_that_takes_most():
    # By the slowest part, b is quickest in columns; by all parts, whole.
    assert proposals(GreedyProposer()) == [[T, C], [C, C], [C, T]]
    assert proposals(GreedyProposer(use_depth=False)) == [[T, T], [C, T], [C, C]]
    assert proposals(GreedyProposer(), []) == []


def test_greedy_stops_where_nothing_gets_better():
    assert len(proposals(GreedyProposer(threshold=0), rating=1.0)) == 2
    assert len(proposals(GreedyProposer(threshold=5), rating=1.0)) == 3


def test_uniform_has_one_type_for_all():
    assert proposals(UniformProposer()) == [[T, T], [C, C]]
    assert proposals(UniformProposer(), space()[:3]) == [[T, T]]


def test_grid_search_has_all_or_nothing():
    assert proposals(GridSearchProposer()) == [list(p) for p in itertools.product([T, C], [T, C])]
    assert proposals(GridSearchProposer(max_proposals=3)) == []


def test_dynamic_programming_has_the_quickest_for_each_memory():
    # In all: whole 800 bytes 4 ms; a in columns 500 and 7; b in columns 620 and 5; both 320 and 8.
    topology = Topology(2, "cpu", ddr_cap=500)
    found = proposals(DynamicProgrammingProposer(), topology=topology)
    assert found == [[T, T], [T, C], [C, T], [C, C]]
    tight = proposals(DynamicProgrammingProposer(), topology=Topology(2, "cpu", ddr_cap=200))
    assert tight == [[T, T], [C, C]]
    with pytest.raises(ValueError, match=r"`hbm_bins_per_device` should be at least 1. Received 0"):
        DynamicProgrammingProposer(0)


def ranks(options):
    return [way.get_shards_assignment() for way in options]


def test_parts_go_to_the_rank_with_least_to_do():
    proposal = [
        option("a", T, (5, 10)),
        option("b", T, (4, 40)),
        option("c", T, (3, 20)),
        option("d", C, (1, 30), (1, 30)),
    ]
    found = GreedyPerfPartitioner().partition(proposal, TOPOLOGY)
    assert [way.name for way in found] == list("abcd")
    # d, b, c, a: the largest first.
    assert ranks(found) == [[1], [0], [1], [0, 1]]
    found = GreedyPerfPartitioner(SortBy.PERF).partition(proposal, TOPOLOGY)
    assert ranks(found) == [[0], [1], [1], [0, 0]]
    assert ranks(proposal) == [[None], [None], [None], [None, None]]


def test_small_modules_come_first():
    proposal = [
        option("a", T, (5, 950), path="large"),
        option("b", T, (1, 200), path="small"),
        option("c", T, (2, 100), path="small"),
    ]
    assert ranks(GreedyPerfPartitioner().partition(proposal, TOPOLOGY)) == [[0], [1], [1]]
    with pytest.raises(PlannerError, match=r"Table 'a' of module 'large' should fit"):
        GreedyPerfPartitioner(balance_modules=True).partition(proposal, TOPOLOGY)


def test_bytes_a_rank_may_be_limited():
    proposal = [option("a", T, (1, 60)), option("b", T, (9, 50)), option("c", T, (1, 50))]
    partitioner = GreedyPerfPartitioner()
    assert ranks(partitioner.partition(proposal, TOPOLOGY)) == [[0], [1], [0]]
    assert ranks(partitioner.partition(proposal, TOPOLOGY, 105)) == [[0], [1], [1]]
    with pytest.raises(PlannerError, match=r"rank 0 5 B, rank 1 15 B") as caught:
        partitioner.partition(proposal, TOPOLOGY, 65)
    assert caught.value.error_type is PlannerErrorType.PARTITION


def test_memory_is_balanced_where_time_allows():
    proposal = [option("a", T, (10, 60)), option("b", T, (9, 50)), option("c", T, (0.5, 50))]
    assert ranks(GreedyPerfPartitioner().partition(proposal, TOPOLOGY)) == [[0], [1], [1]]
    proposal = [option("a", T, (9, 60)), option("b", T, (9.1, 50)), option("c", T, (0.05, 50))]
    assert ranks(GreedyPerfPartitioner().partition(proposal, TOPOLOGY))[2] == [0]
    balanced = MemoryBalancedPartitioner(tolerance=0.02).partition(proposal, TOPOLOGY)
    assert ranks(balanced)[2] == [1]
    strict = MemoryBalancedPartitioner(tolerance=0.0).partition(proposal, TOPOLOGY)
    assert ranks(strict)[2] == [0]
    short = MemoryBalancedPartitioner(max_search_count=0).partition(proposal, TOPOLOGY)
    assert ranks(short)[2] == [0]
    assert NoopStorageModel(TOPOLOGY).rate(balanced) == 100
    assert NoopPerfModel(TOPOLOGY).rate(strict) == pytest.approx(9.1)


def test_tables_that_are_pinned_and_together():
    pinned = option("a", T, (5, 10), allowed_ranks=frozenset([1]))
    with_it = option("b", T, (5, 10), dependency="a")
    assert ranks(GreedyPerfPartitioner().partition([with_it, pinned], TOPOLOGY)) == [[1], [1]]
    lost = option("b", T, (5, 10), dependency="z")
    with pytest.raises(PlannerError, match=r"'b'.*should go together with.*together_with='z'"):
        GreedyPerfPartitioner().partition([lost, pinned], TOPOLOGY)
    nowhere = option("a", "row_wise", (1, 1), (1, 1), by="uniform", allowed_ranks=frozenset([1]))
    with pytest.raises(
        PlannerError, match=r"'a'.*should be allowed on ranks that.* and ranks \[1\]\."
    ):
        GreedyPerfPartitioner().partition([nowhere], TOPOLOGY)
    rows = option("b", "row_wise", (1, 1), (1, 1), by="uniform", dependency="a")
    with pytest.raises(PlannerError, match=r"'b'.*should be allowed to be table_wise, as tables"):
        GreedyPerfPartitioner().partition([pinned, rows], TOPOLOGY)


def test_the_planner_asks_whom_it_is_given():
    tables = model(a=(100, 16), b=(200, 16), c=(50, 8))
    topology = Topology(2, "cpu")
    mine = EmbeddingShardingPlanner(topology).plan(tables, [TableSharder()])
    assert mine.report is not None
    assert mine.report.slowest is not None
    for given in (
        {"proposer": GridSearchProposer()},
        {"proposer": [GreedyProposer(), UniformProposer()]},
        {"proposer": DynamicProgrammingProposer(), "partitioner": MemoryBalancedPartitioner()},
        {"proposer": EmbeddingOffloadScaleupProposer()},
        {"performance_model": NoopStorageModel(topology)},
    ):
        plan = EmbeddingShardingPlanner(topology, **given).plan(tables, [TableSharder()])
        assert plan.report is not None
        assert plan.report.slowest is not None
        assert plan.report.tables_ms >= mine.report.tables_ms - 1e-5
        assert list(plan.plan[""]) == list("abc")
    tight = EmbeddingShardingPlanner(
        Topology(2, "cpu", ddr_cap=4000),
        proposer=GridSearchProposer(),
        constraints={"b": ParameterConstraints(sharding_types=["table_wise"])},
    )
    with pytest.raises(PlannerError, match=r"One of \d+ proposals should fit.*the last, Table"):
        tight.plan(tables, [TableSharder()])


class Saved(PlanLoader):
    """Knows a plan."""

    def __init__(self, options, context=None) -> None:
        self.options, self.context = options, context

    def load(self):
        return None if self.options is None else {way.storage_hash(): way for way in self.options}

    def plan_context_hash(self):
        return self.context


def test_plans_that_are_loaded():
    tables, topology = model(a=(100, 16), b=(200, 16)), Topology(2, "cpu")
    found: list[list[ShardingOption]] = []

    def keep(options):
        found.append(options)
        return options

    planner = EmbeddingShardingPlanner(topology, callbacks=[keep])
    made = planner.plan(tables, [TableSharder()])
    context = planner.hash_planner_context_inputs_str()

    def plan(loader):
        given = EmbeddingShardingPlanner(topology, plan_loader=loader)
        return given.plan(tables, [TableSharder()])

    assert plan(Saved(found[0], context)) == made
    assert plan(Saved(None)) == made
    with pytest.raises(PlannerError, match=r"same ranks, batches and wishes.*Received other") as e:
        plan(Saved(found[0], "other"))
    assert e.value.error_type is PlannerErrorType.PLANNER_INPUT_CONTEXT_MISMATCH
    with pytest.raises(PlannerError, match=r"Received none of \[\('', 'b'\)\]") as e:
        plan(Saved(found[0][:1]))
    assert e.value.error_type is PlannerErrorType.MISSING_MODULE_IN_PLAN


def test_caches_get_what_tables_leave():
    class Stats:
        cacheability, expected_lookups = 0.5, 10

        def expected_miss_rate(self, clf):
            return 1 - clf

    class Estimated(EmbeddingEnumerator):
        """Caches of all rows take 100 bytes, tables near 120."""

        def populate_estimates(self, sharding_options):
            for way in sharding_options:
                share = way.cache_load_factor
                size = 120 if share is None else int(100 * share)
                for shard in way.shards:
                    shard.storage = Storage(size, 0)

    def cached(name):
        params = CacheParams(load_factor=0.1, stats=Stats())
        way = option(name, T, (1, 0), cache_params=params)
        way.compute_kernel = "fused_uvm_caching"
        way.shards[0].storage = Storage(10, 0)
        return way

    topology = Topology(1, "cuda", hbm_cap=120)
    enumerator = Estimated(topology, 1)
    proposer = EmbeddingOffloadScaleupProposer()
    options = [cached("a"), cached("b")]
    proposer.load(options, enumerator)
    assert proposer.get_budget(options, topology) == 100
    assert proposer.get_hbm_ceiling(options, enumerator) == 240
    assert proposer.get_scalable_sharding_options(options) == options
    best = 0
    while (proposal := proposer.propose()) is not None:
        used = sum(way.total_storage.hbm for way in proposal)
        fits = used <= 120
        best = max(best, used) if fits else best
        proposer.feedback(fits, proposal, None, topology)
    assert 115 <= best <= 120
