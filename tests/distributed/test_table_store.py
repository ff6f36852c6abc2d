"""The tables of sharded collections, as reports and counters speak to them, against one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import Workers
from tests.distributed.test_collections import TABLES, batch, joined, make, shard
from torchrec import PoolingType
from torchrec.modules.collection import Collection, collections_in
from torchrec.training.id_counts import out_of_range_counts, tables_by_ids
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.fixture(scope="module")
def workers():
    with Workers() as workers:
        yield workers


def stores(pooled, kind):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    given = pooled, "adagrad", False, PoolingType.SUM, IdPolicy.HASH
    plain, module = make(*given), shard(make(*given), kind)
    assert isinstance(module, Collection)
    model = nn.Sequential(module)
    assert [path for path, _ in collections_in(model)] == ["0"]
    store, expected = module.table_store(), plain.table_store()
    assert store.table_configs() == expected.table_configs()
    assert store.embedding_names_by_table() == expected.embedding_names_by_table()
    assert store.device == torch.device("cpu")
    assert list(store.fused_optimizer.params) == list(expected.fused_optimizer.params)
    assert tables_by_ids(model) == tables_by_ids(nn.Sequential(plain))
    # Parts are the very weights.
    for name, (rows, _, _) in TABLES.items():
        whole = plain.table_shards(name)[0].weight
        for part in store.table_shards(name):
            area = (
                slice(part.rows.start, part.rows.stop),
                slice(part.columns.start, part.columns.stop),
            )
            assert torch.equal(part.weight, whole[area])
        # Rows are written and read by all ranks alike.
        ids = torch.tensor([rows - 1, 0])
        vectors = torch.arange(2 * whole.shape[1]).view(2, -1) + 0.5
        for each in (store, expected):
            each.load_rows(name, ids, vectors, reset_state=True)
            each.reset_rows(name, torch.tensor([1]))
        for asked in (ids, None):
            found, wanted = store.export_rows(name, asked), expected.export_rows(name, asked)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
    # Counts are those of this rank's batches.
    batches = [batch(r, 0, 3, beyond=4) for r in range(world_size)]
    module(batches[rank])
    plain(joined(batches))
    mine = store.out_of_range_counts()
    assert out_of_range_counts(model) == mine == module.out_of_range_counts()
    store.set_out_of_range_counts({"a": 100})
    assert store.out_of_range_counts(reset=True) == {**mine, "a": 100}
    assert set(store.out_of_range_counts().values()) == {0}
    return mine, expected.out_of_range_counts()


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "mixed"])
def test_sharded_collections_are_collections(workers, kind, pooled):
    (one, whole), (other, _) = workers.run(stores, 2, pooled, kind)
    assert {name: one[name] + other[name] for name in one} == whole
    assert sum(whole.values()) > 0


def wrong(what):
    store = shard(make(True), "mixed").table_store()
    call = {
        "table": lambda: store.table_shards("z"),
        "count": lambda: store.set_out_of_range_counts({"z": 1}),
        "row": lambda: store.export_rows("a", torch.tensor([7])),
        "shape": lambda: store.load_rows("a", torch.tensor([1]), torch.zeros(2, 8)),
        "twice": lambda: store.load_rows("a", torch.tensor([1, 1]), torch.zeros(2, 8)),
    }
    call[what]()


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("table", ValueError, "`table` should be one of ['a', 'b', 'c']. Received 'z'."),
        ("count", ValueError, "`table` should be one of ['a', 'b', 'c']. Received 'z'."),
        ("row", IndexError, "`ids` of table 'a' should be in [0, 7). Received 7."),
        (
            "shape",
            ValueError,
            "`vectors` of table 'a' should have the shape (1, 8). Received (2, 8).",
        ),
        ("twice", ValueError, "`ids` of table 'a' should be distinct."),
    ],
)
def test_rows_and_tables_that_are_not_there_are_refused(workers, what, kind, message):
    for error in workers.run(wrong, 2, what):
        assert isinstance(error, kind)
        assert str(error) == message
