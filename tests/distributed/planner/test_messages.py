"""Messages count in the search: no plan of any other types takes less than the one that is said to be the best."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress

import pytest
import torch

from tests.distributed.planner.test_calibrate import RATES
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingType

pytestmark = pytest.mark.once


def tables(optimizer: str | None, *shapes: tuple[int, int]) -> EmbeddingBagCollection:
    fused = {} if optimizer is None else {"optimizer": optimizer, "lr": 0.1}
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(rows, columns, name, feature_names=[name], **fused)
            for name, (rows, columns) in zip("abc", shapes, strict=False)
        ],
    )


def planned(model, topology, batch_size=64, kinds=None, length=1.0):
    wishes = {
        name: ParameterConstraints(
            sharding_types=None if kinds is None else [kinds[i]], pooling_factors=[length]
        )
        for i, name in enumerate("abc"[: len(model.embedding_bag_configs())])
    }
    planner = EmbeddingShardingPlanner(topology, batch_size, constraints=wishes)
    return planner.plan(model, get_default_sharders())


def steps_of_all_types(model, topology, copies, **given) -> list[float]:
    """What a step takes under each combination of types, where there is such a plan."""
    kinds = [kind.value for kind in ShardingType if copies or kind.value != "data_parallel"]
    found = []
    for combination in itertools.product(kinds, repeat=len(model.embedding_bag_configs())):
        with suppress(PlannerError):
            found.append(planned(model, topology, kinds=combination, **given).report.step_ms)
    return found


def check(model, topology, copies, **given) -> None:
    report = planned(model, topology, **given).report
    assert report.is_best
    least = min(steps_of_all_types(model, topology, copies, **given))
    assert report.step_ms == pytest.approx(least, abs=2e-5)


@pytest.mark.parametrize("rates", [None, RATES], ids=["bandwidths", "measured"])
@pytest.mark.parametrize("optimizer", [None, "rowwise_adagrad", "adam"])
def test_no_plan_of_two_tables_is_better(optimizer, rates):
    topology = Topology(2, "cpu", rates=rates)
    check(tables(optimizer, (1000, 16), (2000, 32)), topology, optimizer is None)


def test_squares_are_not_added_up_where_their_message_takes_longer_than_columns_spare():
    # By columns, the wide table takes a message of squares.
    model = tables("rowwise_adagrad", (115, 256), (739, 64))
    check(model, Topology(3, "cpu"), False, batch_size=1)


@pytest.mark.slow
def test_no_plan_of_random_tables_is_better():
    draw = random.Random(0)
    for _ in range(40):
        optimizer = draw.choice([None, "sgd", "adam", "rowwise_adagrad"])
        shapes = [
            (draw.randint(10, 3000), draw.choice([8, 16, 64, 256]))
            for _ in range(draw.choice([1, 2]))
        ]
        topology = Topology(draw.choice([2, 3, 4]), "cpu", rates=draw.choice([None, RATES]))
        given = {"batch_size": draw.choice([1, 16, 512]), "length": draw.choice([1.0, 5.0])}
        check(tables(optimizer, *shapes), topology, optimizer is None, **given)


@pytest.mark.parametrize("rates", [None, RATES], ids=["bandwidths", "measured"])
def test_the_next_best_way_is_what_a_plan_of_it_comes_to_messages_and_all(rates):
    topology, model = Topology(2, "cpu", rates=rates), tables(None, (1000, 16), (2000, 32))
    report = planned(model, topology).report
    mine = [table.sharding_type for table in report.tables]
    for other in report.tables[0].others:
        after = planned(model, topology, kinds=[other.sharding_type, mine[1]]).report
        assert other.ms == pytest.approx(after.step_ms, abs=2e-5)
        assert other.ms > report.step_ms - 2e-5
        assert "+-" not in report.other_text(other)


def test_of_many_tables_none_is_better_otherwise():
    shapes = {f"t{i}": (1000 + 300 * i, (16, 64, 256)[i % 3]) for i in range(70)}
    model = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(*shape, name, feature_names=[name], optimizer="rowwise_adagrad")
            for name, shape in shapes.items()
        ],
    )
    report = (
        EmbeddingShardingPlanner(Topology(8, "cpu", rates=RATES), 64)
        .plan(model, get_default_sharders())
        .report
    )
    assert not report.is_best
    ways = [other.ms for table in report.tables for other in table.others if other.ms is not None]
    assert min(ways) >= report.step_ms - 1e-5
