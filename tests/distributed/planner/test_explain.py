"""What a plan says of itself: ranks, times, other ways, what binds; its file, and digests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.distributed.planner.test_changes import model, plan
from tests.distributed.table_sharder import TableSharder
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import GeneralizedCommsBandwidth
from torchrec.distributed.sharding_plan import (
    get_default_sharders,
    plan_digest,
    plan_from_json,
    plan_to_json,
)
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once

ENOUGH = 10**9


def test_ranks_add_up():
    made = plan(model(a=(1000, 64), b=(10, 4), c=(500, 16)), 2, ENOUGH)
    report = made.report
    assert report is not None
    of_tables = sum(t.num_bytes for t in report.tables)
    # Three ids, and bags, once more for the second half of "a", which is divided by rows; vectors and their gradients,
    # half of these for the other rank; of "a", rows as well. Together, tables take no more than one by one.
    own = 3 * 24 + 4 * 12 + (4 + 16) * 4 * 2.5 + 64 * 4 * 4.5
    weights = 4 * (1000 * 65 + 10 * 5 + 500 * 17)  # with a number a row
    assert weights < sum(rank.num_bytes for rank in report.ranks) <= of_tables + 2 * own
    assert sum(rank.ms for rank in report.ranks) == pytest.approx(sum(t.ms for t in report.tables))
    assert report.slowest is not None
    compute = max(rank.compute_ms for rank in report.ranks)
    exchange = max(rank.exchange_ms for rank in report.ranks)
    assert report.step_ms == report.fixed_ms + compute + exchange
    assert [table.table for table in report.tables] == ["a", "b", "c"]
    assert {rank.capacity for rank in report.ranks} == {ENOUGH}
    assert report.is_best


def test_other_ways_are_what_their_plans_come_to():
    tables = model(a=(1000, 64), b=(1000, 64))
    wishes = {
        name: ParameterConstraints(sharding_types=["table_wise", "row_wise"]) for name in "ab"
    }
    made = plan(tables, 2, ENOUGH, wishes)
    assert made.report is not None
    (other,) = made.report.tables[0].others or ()
    mine = made.report.tables
    forced = {
        table.table: ParameterConstraints(
            sharding_types=[other.sharding_type if table.table == "a" else table.sharding_type]
        )
        for table in mine
    }
    after = plan(tables, 2, ENOUGH, forced)
    assert after.report is not None
    assert after.report.slowest is not None
    assert other.ms == pytest.approx(after.report.step_ms, abs=1e-5)
    assert after.report.step_ms >= made.report.step_ms


def test_what_does_not_fit_otherwise_is_said():
    # Whole, the table lacks 10,000 bytes, and 196 that a rank has for its own batch then; by rows, it fits.
    tables = model(big=(1000, 16))
    whole = plan(tables, 2, ENOUGH, {"big": ParameterConstraints(sharding_types=["table_wise"])})
    assert whole.report is not None
    size = whole.report.tables[0].num_bytes
    made = plan(tables, 2, size - 10_000)
    assert made.report is not None
    others = made.report.tables[0].others or ()
    missing = [other for other in others if other.ms is None]
    assert [(other.sharding_type, other.missing) for other in missing] == [("table_wise", 10_196)]
    text = made.explain()
    assert "table_wise lacks 9.957 KiB on rank" in text
    assert "Memory: other ways do not fit for 'big'." in text


def test_what_takes_longest_is_found_among_tables_of_one_name():
    tables = nn.ModuleDict({"left": model(a=(1000, 64)), "right": model(a=(10, 4))})
    made = plan(tables, 1, ENOUGH)
    assert made.report is not None
    assert made.report.slowest is not None
    share = max(table.ms for table in made.report.tables) / made.report.slowest.ms
    assert f"{share:.0%} of it for table 'a'" in made.report.binds[0]


def test_wishes_are_said():
    wishes = {
        "a": ParameterConstraints(ranks=[1], sharding_types=["table_wise"]),
        "c": ParameterConstraints(together_with="b"),
    }
    made = plan(model(a=(10, 4), b=(10, 4), c=(10, 4)), 2, ENOUGH, wishes)
    text = made.explain()
    assert "only on ranks 1; no other way" in text
    assert "with 'b'; no other way" in text
    assert "Wishes: for 'a', 'c'." in text
    ranks = {name: sharding.ranks for name, sharding in made.plan[""].items()}
    assert ranks["a"] == [1]
    assert ranks["b"] == ranks["c"]


def test_a_plan_made_by_hand_cannot_be_explained():
    with pytest.raises(ValueError, match=r"made by a planner to be explained.*by hand"):
        ShardingPlan({}).explain()


def test_files_have_digests():
    tables = model(a=(1000, 64), b=(10, 4))
    made = plan(tables, 2, ENOUGH)
    text = plan_to_json(made)
    data = json.loads(text)
    assert made.report is not None
    assert data["digest"] == plan_digest(made)
    assert data["made_from"] == made.report.made_from
    assert plan_from_json(text) == made
    assert plan_to_json(replace(made, report=None)) != text
    data["modules"][""]["b"]["compute_kernel"] = "dense"
    with pytest.raises(ValueError, match=r"should have `digest` \w+; leave it out.*Received '\w+'"):
        plan_from_json(json.dumps(data))
    del data["digest"]
    assert plan_from_json(json.dumps(data)) != made


def test_what_a_plan_is_made_from_tells_models_ranks_and_wishes_apart():
    def digest(tables, world_size=2, memory=ENOUGH, wishes=None) -> str:
        report = plan(tables, world_size, memory, wishes).report
        assert report is not None
        return report.made_from

    same = [digest(model(a=(10, 4))) for _ in range(2)]
    others = [
        digest(model(a=(11, 4))),
        digest(model(b=(10, 4))),
        digest(model(a=(10, 4)), world_size=3),
        digest(model(a=(10, 4)), memory=ENOUGH + 1),
        digest(model(a=(10, 4)), wishes={"a": ParameterConstraints(pooling_factors=[2.0])}),
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 6


class SlowLinks(GeneralizedCommsBandwidth):
    def __init__(self, between_hosts: float) -> None:
        self._between_hosts = between_hosts

    def get_bw(self, local_world_size, world_size, collective_type) -> float:
        return self._between_hosts

    @property
    def inter_host_bw(self) -> float:
        return self._between_hosts

    @property
    def intra_host_bw(self) -> float:
        return self._between_hosts


def test_what_a_plan_is_made_from_tells_optimizers_features_rooms_and_links_apart():
    def digest(optimizer=None, features=("a",), share=0.0, links=1000.0) -> str:
        trained = {} if optimizer is None else {"optimizer": optimizer, "lr": 0.1}
        config = EmbeddingBagConfig(1000, 16, "a", feature_names=list(features), **trained)
        topology = Topology(2, "cpu", generalized_comms_bandwidths=SlowLinks(links))
        kept = FixedPercentageStorageReservation(share)
        planner = EmbeddingShardingPlanner(topology, batch_size=8, storage_reservation=kept)
        collection = EmbeddingBagCollection([config], device=torch.device("meta"))
        report = planner.plan(collection, get_default_sharders()).report
        assert report is not None
        return report.made_from

    assert digest() == digest()
    others = [
        digest(optimizer="sgd"),
        digest(optimizer="adam"),
        digest(features=("a", "b")),
        digest(share=0.5),
        digest(links=2000.0),
    ]
    assert len({digest(), *others}) == 6


def test_of_many_tables_the_costliest_are_looked_at():
    tables = model(**{f"t{i}": (10 + i, 4) for i in range(210)})
    planner = EmbeddingShardingPlanner(Topology(2, "cpu"), batch_size=8)
    made = planner.plan(tables, [TableSharder()])
    assert made.report is not None
    left_out = [table for table in made.report.tables if table.others is None]
    assert len(left_out) == 10
    assert not made.report.is_best
    assert "no change of one table betters it" in made.explain()
    assert "not looked at" in made.explain()
