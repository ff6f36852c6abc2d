"""No plan: the message names table, rank and bytes, and what it says would do does."""

from __future__ import annotations

import re

import pytest
import torch

from tests.distributed.table_sharder import TableSharder
from torchrec import DataType, EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
    _changes,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, Storage

pytestmark = pytest.mark.once


def model(
    types: dict[str, DataType] | None = None,
    optimizer: str = "rowwise_adagrad",
    **shapes: tuple[int, int],
):
    types = types or {}
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                rows,
                columns,
                name,
                types.get(name, DataType.FP32),
                feature_names=[name],
                optimizer=optimizer,
                lr=0.1,
            )
            for name, (rows, columns) in shapes.items()
        ],
    )


def plan(tables, world_size, memory, constraints=None):
    planner = EmbeddingShardingPlanner(
        Topology(world_size, "cpu", ddr_cap=memory),
        batch_size=1,
        storage_reservation=FixedPercentageStorageReservation(0.0),
        constraints=constraints,
    )
    return planner.plan(tables, [TableSharder()])


def error(tables, world_size, memory, constraints=None) -> str:
    with pytest.raises(PlannerError) as caught:
        plan(tables, world_size, memory, constraints)
    assert caught.value.error_type is PlannerErrorType.INSUFFICIENT_STORAGE
    return str(caught.value)


WHOLE = {"sharding_types": ["table_wise"]}


def test_the_message_names_table_rank_and_bytes():
    # 100 rows of 64 numbers and one of state; what a step has beside is counted as in plans that fit.
    tables, wishes = model(small=(10, 4), big=(100, 64)), {"big": ParameterConstraints(**WHOLE)}
    message = error(tables, 2, 20_000, wishes)
    assert "Table 'big' of module '' should fit" in message
    needed = max(rank.num_bytes for rank in plan(tables, 2, 10**9, wishes).report.ranks)
    assert 26_000 < needed < 27_000
    assert f"rank 0 lacks {(needed - 20_000) / 1024:.4g} KiB" in message


def test_columns_that_are_split_would_do_and_do():
    tables = model(big=(100, 64), other=(100, 16))
    wishes = {"big": ParameterConstraints(**WHOLE)}
    message = error(tables, 2, 20_000, wishes)
    found = re.search(r"What would do: (\w+) for table 'big' with min_partition=(\d+)", message)
    assert found is not None, message
    kind, width = found[1], int(found[2])
    assert width == 32  # no more parts than needed
    wished = ParameterConstraints(sharding_types=["table_wise", kind], min_partition=width)
    made = plan(tables, 2, 20_000, {"big": wished})
    assert made.plan[""]["big"].sharding_type == kind


def test_fewer_bits_would_do_and_do():
    wishes = {"big": ParameterConstraints(**WHOLE)}
    message = error(model(big=(100, 64)), 1, 20_000, wishes)
    assert "FP16 for table 'big'" in message
    plan(model({"big": DataType.FP16}, big=(100, 64)), 1, 20_000, wishes)


def test_ranks_that_are_more_would_do_and_do():
    tables = model(a=(100, 64), b=(100, 64), c=(100, 64))
    wishes = {name: ParameterConstraints(**WHOLE) for name in "abc"}
    message = error(tables, 2, 30_000, wishes)
    assert "1 rank more" in message
    plan(tables, 3, 30_000, wishes)
    seven = model(**dict.fromkeys("abcdefg", (100, 64)))
    wishes = {name: ParameterConstraints(**WHOLE) for name in "abcdefg"}
    message = error(seven, 4, 40_000, wishes)
    assert "3 ranks more" in message
    with pytest.raises(PlannerError):
        plan(seven, 6, 40_000, wishes)
    plan(seven, 7, 40_000, wishes)


def test_memory_that_is_more_would_do_and_does():
    tables = model(big=(100, 64))
    wishes = {"big": ParameterConstraints(**WHOLE)}
    message = error(tables, 2, 20_000, wishes)
    found = re.search(r"([\d.]+) KiB more memory on each rank", message)
    assert found is not None, message
    plan(tables, 2, 20_000 + int(float(found[1]) * 1024) + 2, wishes)
    with pytest.raises(PlannerError):
        plan(tables, 2, 20_000 + int(float(found[1]) * 1024) - 10, wishes)


def test_memory_that_would_do_is_about_the_least():
    tables = model(big=(1000, 64))
    wishes = {"big": ParameterConstraints(**WHOLE)}
    memory = 100_000

    def planner(more: int) -> EmbeddingShardingPlanner:  # which keeps 15 % of all memory free
        topology = Topology(1, "cpu", ddr_cap=memory + more)
        return EmbeddingShardingPlanner(topology, 1, constraints=wishes)

    with pytest.raises(PlannerError) as caught:
        planner(0).plan(tables, [TableSharder()])
    found = re.search(r"([\d.]+) KiB more memory on each rank", str(caught.value))
    assert found is not None, caught.value
    more = int(float(found[1]) * 1024)
    planner(more + 2).plan(tables, [TableSharder()])
    with pytest.raises(PlannerError):
        planner(int(0.95 * more)).plan(tables, [TableSharder()])


def test_what_all_tables_lack_counts_and_what_was_not_tried_is_not_denied(monkeypatch):
    names = [f"t{number}" for number in range(20)]
    tables = model(**dict.fromkeys(names, (100, 64)))
    wishes = {name: ParameterConstraints(**WHOLE) for name in names}
    message = error(tables, 2, 60_000, wishes)
    found = re.search(r"([\d.]+) KiB more memory on each rank", message)
    assert found is not None, message
    lacks = (10 * 26_000 - 60_000) / 1024
    assert lacks < float(found[1]) < 1.5 * lacks
    monkeypatch.setattr(_changes, "_SECONDS", -1.0)
    message = error(tables, 2, 60_000, wishes)  # to what they lack, messages come
    assert message.endswith("There was no time to find what would do.")


def test_nothing_small_may_do():
    wishes = {"big": ParameterConstraints(sharding_types=["table_wise"], ranks=[0])}
    message = error(model(big=(100_000, 1)), 1, 1000, wishes)
    assert "Table 'big'" in message
    assert "FP16" not in message
    assert "rank more" not in message


def test_more_ranks_are_like_the_last():
    topology = Topology(4, "cuda", hbm_cap=10, ddr_cap=20, local_world_size=2, pod_size=2)
    more = topology.with_ranks(5)
    assert [device.rank for device in more.devices] == [0, 1, 2, 3, 4]
    assert more.devices[4].storage == Storage(10, 20, topology.devices[0].storage.ssd)
    assert (more.world_size, more.local_world_size, more.intra_group_size) == (5, 2, 2)
    assert topology.world_size == len(topology.devices) == 4
