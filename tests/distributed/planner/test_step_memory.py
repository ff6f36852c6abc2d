"""What a step has in memory: blocks that are kept, and all tensors of a step as they really come and go."""

from __future__ import annotations

import re
from pathlib import Path

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
from torchrec.ops.signals import can_signal
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


def test_what_earlier_tensors_have_written_of_a_block_stays_in_memory():
    heap = Heap()
    heap.free(heap.vector(4.5 * MB))  # of 8 MB, the first three pages
    heap.free(heap.kept([(0.0, 1.0), (5 * MB, 7 * MB)]))  # all but the second
    assert heap.left == heap.peak == 8 * MB
    heap.free(heap.kept([(0.0, 3.0)]), heap.kept([(0.0, 2.0), (5.0, 8.0)]))
    heap.free(heap.kept([(1.0, 6.0)]))
    # The first of the small ones, now to its sixth byte, and the second.
    assert heap.left == 8 * MB + 6 + 5


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


def batch_of_rank() -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(dist.get_rank())
    values = [torch.randint(rows, (BATCH * n,), generator=generator) for _, rows, _, n in TABLES]
    lengths = torch.cat([torch.full((BATCH,), n) for *_, n in TABLES])
    batch = KeyedJaggedTensor([name for name, *_ in TABLES], torch.cat(values), lengths=lengths)
    batch.offsets()
    return batch


def measured(
    kind: str, is_pooled: bool, optimizer: OptimizerType = OptimizerType.SGD
) -> tuple[int, int]:
    """Return what is planned for this rank, and what it has: weights, tensors of a step, what it has sent."""
    model = torch.nn.ModuleDict({"tables": collection(is_pooled, optimizer)})
    plan = planner(dist.get_world_size(), kind).plan(model, get_default_sharders())
    assert plan.report is not None
    sharded = DistributedModelParallel(model, plan=plan)
    weights = sum(param.untyped_storage().nbytes() for param in sharded.parameters())
    batch = batch_of_rank()
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


@pytest.mark.parametrize(("rows", "pages"), [(16_000, 4), (15_000, None)])
def test_large_tables_lie_on_whole_pages(rows, pages):
    table = EmbeddingBagConfig(rows, 128, "a", feature_names=["a"], optimizer="sgd", lr=0.1)
    model = EmbeddingBagCollection([table], device=torch.device("meta"))
    report = (
        EmbeddingShardingPlanner(Topology(1, "cpu"), 8).plan(model, get_default_sharders()).report
    )
    weights = rows * 128 * 4
    expected = weights if pages is None else pages * 2**21
    assert weights <= expected
    assert report is not None
    assert report.ranks[0].memory.table_bytes == expected


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


@pytest.mark.parametrize(("rows", "of_id"), [(2**22, 8), (2**22 + 1, 16)])
def test_ids_are_put_in_order_in_less_where_row_and_bag_need_32_bits(rows, of_id):
    table = EmbeddingBagConfig(rows, 4, "a", feature_names=["a"], optimizer="sgd", lr=0.1)
    model = EmbeddingBagCollection([table], device=torch.device("meta"))
    kept = FixedPercentageStorageReservation(0.0)
    made = EmbeddingShardingPlanner(Topology(1, "cpu"), 2**10, storage_reservation=kept)
    report = made.plan(model, get_default_sharders()).report
    assert report is not None
    assert report.ranks[0].memory.step_bytes == 2**10 * (4 * 4 + of_id)  # with the gradient


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


def layered(
    dense: DensePart | None, topology: Topology, kind: str | None = None
) -> list[tuple[int, int]]:
    """Return for each rank what a plan has of messages, and in all."""
    kept = HeuristicalStorageReservation(0.0, dense_tensor_estimate=dense)
    wishes = {
        name: ParameterConstraints(
            pooling_factors=[float(ids)],
            sharding_types=["table_wise" if kind is None or name != "b" else kind],
        )
        for name, _, _, ids in TABLES
    }
    made = EmbeddingShardingPlanner(topology, BATCH, storage_reservation=kept, constraints=wishes)
    report = made.plan(collection(True, OptimizerType.SGD), get_default_sharders()).report
    assert report is not None
    return [(rank.memory.message_bytes, rank.num_bytes) for rank in report.ranks]


@pytest.mark.parametrize(
    ("gradients", "more"), [(3 * 2**20, 3 * 2**20), (30 * 2**20, (30 + 5) * 2**20)]
)
def test_gradients_are_added_up_in_memory_that_ranks_of_a_host_share(gradients, more):
    dense = DensePart(gradients, 2 * gradients, 0, gradients, 1.0)
    one_host, hosts = Topology(2, "cpu"), Topology(2, "cpu", local_world_size=1)
    together, apart = layered(dense, one_host), layered(dense, hosts)
    assert [a - b for (a, _), (b, _) in zip(together, apart, strict=True)] == [more] * 2
    assert [a - b for (_, a), (_, b) in zip(together, apart, strict=True)] == [more] * 2
    assert layered(None, one_host) == layered(None, hosts)  # what was not measured is not known


def test_a_rank_alone_adds_up_nothing():
    gradients = 3 * 2**20
    dense = DensePart(gradients, 2 * gradients, 0, gradients, 1.0)
    assert layered(dense, Topology(1, "cpu"))[0][0] == 0


class Layered(torch.nn.Module):
    """Tables, and a layer with 1 MiB of weights on their vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = collection(True)
        self.layer = torch.nn.Linear(128, 2**11, bias=False)

    def forward(self, batch: KeyedJaggedTensor) -> torch.Tensor:
        return self.layer(self.tables(batch).values()).sum()


def messages_of_layers() -> tuple[int, int]:
    """Return the bytes of messages of all ranks: as planned, and as this one has them in memory."""
    model, gradients = Layered(), 2**20
    kept = HeuristicalStorageReservation(
        0.0, dense_tensor_estimate=DensePart(gradients, 2 * gradients, 0, gradients, 1.0)
    )
    wishes = {name: ParameterConstraints(pooling_factors=[float(ids)]) for name, *_, ids in TABLES}
    made = EmbeddingShardingPlanner(
        Topology(2, "cpu"), BATCH, storage_reservation=kept, constraints=wishes
    )
    plan = made.plan(model, get_default_sharders())
    assert plan.report is not None
    sharded, batch = DistributedModelParallel(model, plan=plan), batch_of_rank()
    for _ in range(4):
        sharded.zero_grad()
        sharded(batch).backward()
    mapped = re.findall(
        r"/memfd:rowwise-.*\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text()
    )
    planned = sum(rank.memory.message_bytes for rank in plan.report.ranks)
    return planned, 1024 * sum(map(int, mapped))


@pytest.mark.skipif(not can_signal(), reason="there is no native library, or no Linux")
def test_messages_of_layers_are_what_ranks_share():
    for planned, found in run(messages_of_layers, 2):
        assert planned > 2 * 2**20
        # Small messages of tables take other places, where a rank is ahead; and there is what stands before messages.
        assert abs(found - planned) < 2**18


@pytest.mark.parametrize("kinds", [None, ["row_wise", "column_wise"]], ids=["free", "wished"])
def test_no_more_memory_is_asked_for_than_steps_of_a_plan_take(kinds):
    tables = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(rows, columns, name, feature_names=[name], optimizer="sgd", lr=0.1)
            for name, rows, columns in (("a", 2052, 8), ("b", 708, 256))
        ],
    )
    wishes = {
        name: ParameterConstraints(sharding_types=kinds and [kinds[i]])
        for i, name in enumerate("ab")
    }

    def planned(memory: int):
        return EmbeddingShardingPlanner(
            Topology(2, "cpu", ddr_cap=memory),
            batch_size=64,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            constraints=wishes,
        ).plan(tables, get_default_sharders())

    # By rows and by columns, a rank has 675,427 bytes. The search counted up to 805,000.
    for memory in (680_000, 715_000, 760_000, 805_000):
        assert max(rank.num_bytes for rank in planned(memory).report.ranks) <= memory
    with pytest.raises(PlannerError, match="lacks"):
        planned(630_000)
