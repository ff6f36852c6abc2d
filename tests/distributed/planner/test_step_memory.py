"""What a step has in memory: blocks that are kept, and all tensors of a step as they really come and go."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed._private import LiveBytes
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner._blocks import Heap
from torchrec.distributed.planner.dense import DensePart
from torchrec.distributed.planner.storage_reservations import (
    FixedPercentageStorageReservation,
    HeuristicalStorageReservation,
)
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.types import OptimizerType

pytestmark = pytest.mark.once

MB = 2.0**20


def test_memory_that_is_kept_serves_what_is_as_large():
    heap = Heap()
    first = heap.vector(1.5 * MB)  # a block of 2 MB, one page
    assert heap.left == 2 * MB
    heap.free(first)
    assert heap.left == 2 * MB
    second = heap.vector(1.2 * MB)
    assert second is first
    assert heap.vector(1.2 * MB) is not first
    assert heap.left == heap.peak == 4 * MB
    small = heap.tensor(100.0)
    heap.free(small)
    assert (heap.left, heap.peak) == (4 * MB, 4 * MB + 100)


def test_pages_are_in_memory_as_a_whole():
    heap = Heap()
    heap.free(heap.kept([(0.0, 1.0), (5 * MB, 5 * MB + 1)]))  # of 8 MB, the first and the third
    assert heap.left == 4 * MB
    heap.free(heap.kept([(0.0, 6.5 * MB)]))  # the same block, all of it
    assert heap.left == 8 * MB
    heap.free(heap.kept([(0.0, 3.0), (1000.0, 1010.0)]))  # where pages are small, bytes
    assert heap.left == 8 * MB + 13


TABLES = [("a", 300, 64, 2), ("b", 50, 32, 1), ("c", 500, 32, 3)]
BATCH = 64


def collection(
    is_pooled: bool, optimizer: OptimizerType = OptimizerType.SGD
) -> EmbeddingBagCollection | EmbeddingCollection:
    kinds = EmbeddingBagConfig if is_pooled else EmbeddingConfig
    configs = [
        kinds(
            num_embeddings=rows,
            embedding_dim=columns,
            name=name,
            feature_names=[name],
            optimizer=optimizer,
            lr=0.1,
        )
        for name, rows, columns, _ in TABLES
    ]
    made = EmbeddingBagCollection if is_pooled else EmbeddingCollection
    return made(tables=configs, device=torch.device("meta"))


def planner(world_size: int, kind: str, memory: int = 10**9) -> EmbeddingShardingPlanner:
    wishes = {
        name: ParameterConstraints(
            pooling_factors=[float(ids)], sharding_types=[kind], min_partition=16
        )
        for name, _, _, ids in TABLES
    }
    topology = Topology(world_size, "cpu", ddr_cap=memory)
    return EmbeddingShardingPlanner(topology, BATCH, constraints=wishes)


def measured(
    kind: str, is_pooled: bool, optimizer: OptimizerType = OptimizerType.SGD
) -> tuple[int, int]:
    """Return what is planned for this rank, and what it has: weights, tensors of a step, what it has sent."""
    model = torch.nn.ModuleDict({"tables": collection(is_pooled, optimizer)})
    plan = planner(dist.get_world_size(), kind).plan(model, get_default_sharders())
    assert plan.report is not None
    sharded = DistributedModelParallel(model, plan=plan)
    weights = sum(param.untyped_storage().nbytes() for param in sharded.parameters())
    generator = torch.Generator().manual_seed(dist.get_rank())
    values = [torch.randint(rows, (BATCH * n,), generator=generator) for _, rows, _, n in TABLES]
    lengths = torch.cat([torch.full((BATCH,), n) for *_, n in TABLES])
    batch = KeyedJaggedTensor([name for name, *_ in TABLES], torch.cat(values), lengths=lengths)
    batch.offsets()
    tables = sharded.module.get_submodule("tables")

    def loss() -> torch.Tensor:
        found = tables(batch)
        vectors = [found.values()] if is_pooled else [each.values() for each in found.values()]
        return torch.stack([each.sum() for each in vectors]).sum()

    wire = tables.tables.wire
    loss().backward()
    live, sent = LiveBytes(), wire.sent_bytes
    with live:
        loss().backward()
    return plan.report.ranks[dist.get_rank()].num_bytes, weights + live.peak + (
        wire.sent_bytes - sent
    )


@pytest.mark.parametrize(
    ("kind", "is_pooled"),
    [
        ("row_wise", True),
        pytest.param("table_wise", True, marks=pytest.mark.slow),
        pytest.param("column_wise", True, marks=pytest.mark.slow),
        pytest.param("table_wise", False, marks=pytest.mark.slow),
        pytest.param("row_wise", False, marks=pytest.mark.slow),
        pytest.param("column_wise", False, marks=pytest.mark.slow),
    ],
)
def test_planned_memory_is_what_a_step_has(kind, is_pooled):
    for planned, found in run(measured, 2, kind, is_pooled):
        # What kernels work in is planned and not found here; small messages that steps begin with are found.
        assert planned == pytest.approx(found, rel=0.12), (planned, found)


@pytest.mark.parametrize("kind", ["column_wise", "table_column_wise"])
def test_a_rank_alone_adds_no_squares_of_columns(kind):
    tables = collection(is_pooled=True, optimizer=OptimizerType.ROWWISE_ADAGRAD)
    model = torch.nn.ModuleDict({"tables": tables})
    plans = [planner(1, each).plan(model, get_default_sharders()) for each in (kind, "table_wise")]
    in_parts, whole = [plan.report.ranks[0].num_bytes for plan in plans]
    assert in_parts == whole


def test_columns_of_a_rank_share_the_states_of_rows():
    tables = collection(is_pooled=True, optimizer=OptimizerType.ROWWISE_ADAGRAD)
    model = torch.nn.ModuleDict({"tables": tables})
    plan = planner(2, "column_wise").plan(model, get_default_sharders())
    assert plan.report is not None
    expected, parts = [0, 0], 0
    for name, rows, columns, _ in TABLES:
        ranks = plan.plan["tables"][name].ranks or []
        parts += len(ranks)
        for rank in set(ranks):
            share = ranks.count(rank) / len(ranks)
            expected[rank] += 4 * rows * (int(columns * share) + 1)
    assert parts == 8
    assert [rank.memory.table_bytes for rank in plan.report.ranks] == expected


def test_a_plan_fits_as_a_whole():
    """Vectors of 1 MB are in pages of 2 MB: tables one by one take less than a step does."""
    table = EmbeddingBagConfig(1000, 128, "a", feature_names=["a"], optimizer="sgd", lr=0.1)
    model = EmbeddingBagCollection([table], device=torch.device("meta"))

    def most(memory: int) -> int:
        topology = Topology(1, "cpu", ddr_cap=memory)
        kept = FixedPercentageStorageReservation(0.0)
        made = EmbeddingShardingPlanner(topology, 2100, storage_reservation=kept)
        report = made.plan(model, get_default_sharders()).report
        assert report is not None
        return report.ranks[0].num_bytes

    fullest = most(10**9)
    # A page, the gradient, and ids in order of rows.
    assert fullest == 4 * 1000 * 128 + 2 * 2**20 + 2100 * (4 * 128 + 8)
    assert most(fullest) == fullest
    with pytest.raises(PlannerError) as caught:
        most(fullest - 1)
    more = re.search(r"([\d.]+) B more memory on each rank", str(caught.value))
    assert more is not None, caught.value
    assert most(fullest - 1 + int(more[1])) == fullest  # what would do does


def test_layers_need_their_memory_while_vectors_are_there():
    def fullest(dense: DensePart | None) -> int:
        kept = HeuristicalStorageReservation(0.0, dense_tensor_estimate=dense)
        topology = Topology(1, "cpu", ddr_cap=10**9)
        made = EmbeddingShardingPlanner(topology, BATCH, storage_reservation=kept)
        report = made.plan(collection(True), get_default_sharders()).report
        assert report is not None
        assert report.ranks[0].dense_bytes == (0 if dense is None else 30)
        return report.ranks[0].num_bytes

    vectors = BATCH * (64 + 32 + 32) * 4
    alone, small = fullest(None), fullest(DensePart(10, 20, 0, 10, 1.0))
    assert small == alone  # vectors take as much as their gradients later
    large = fullest(DensePart(10, 20, 10 * vectors, 10, 1.0))
    assert alone + 9 * vectors < large <= alone + 10 * vectors
