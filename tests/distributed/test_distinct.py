"""Ids that come again and travel once: the same vectors, the same training, fewer bytes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from tests.distributed.test_coding import Counted
from tests.distributed.test_collections import (
    FEATURES,
    PLANS,
    batch,
    compare,
    joined,
    loss,
    make,
    of_samples,
    outputs,
    shard,
)
from torchrec.distributed.distinct import distinct_rows
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


@pytest.mark.parametrize("counts", [[], [0], [1], [5], [0, 7, 0, 3], [40, 60]], ids=str)
def test_each_row_of_each_slot_once_in_the_order_of_the_batch(counts):
    rows = torch.randint(-1, 9, (sum(counts),), generator=torch.Generator().manual_seed(0))
    kept, places, kept_counts = distinct_rows(rows, counts)
    expected = [list(dict.fromkeys(mine.tolist())) for mine in rows.split(counts)]
    assert [mine.tolist() for mine in kept.split(kept_counts)] == expected
    assert torch.equal(kept[places], rows)
    starts = torch.tensor([0, *kept_counts]).cumsum(0)
    for s, mine in enumerate(places.split(counts)):
        assert ((mine >= starts[s]) & (mine < starts[s + 1])).all()


def trained(kind, optimizer, policy):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain = make(False, optimizer, policy=policy)
    module = shard(make(False, optimizer, policy=policy), kind, use_index_dedup=True)
    beyond = 0 if policy == IdPolicy.ERROR else 4
    for step in range(3):
        sizes = [6 + r if r != step else 0 for r in range(world_size)]
        batches = [batch(r, step, size, beyond=beyond) for r, size in enumerate(sizes)]
        found = outputs(plain, joined(batches))
        starts = [sum(sizes[:r]) for r in range(world_size + 1)]
        parts = [of_samples(found, starts[r], starts[r + 1]) for r in range(world_size)]
        expected = [part.detach().clone() for part in parts[rank]]
        sum(loss(each) for each in parts).div(world_size).backward()
        mine = [values for values, _ in outputs(module, batches[rank])]
        loss(mine).backward()
        for received, wanted in zip(mine, expected, strict=True):
            torch.testing.assert_close(received, wanted)
            assert step or torch.equal(received, wanted)
    compare(module, plain, exact=False)
    if policy != IdPolicy.ERROR:
        counts = module.out_of_range_counts()
        assert sum(counts.values()) > 0
    return True


@pytest.mark.parametrize("kind", PLANS)
def test_training_equals_one_process(workers, kind):
    for optimizer, policy in (
        ("sgd", IdPolicy.ERROR),
        ("rowwise_adagrad", IdPolicy.IGNORE),
        ("adam", IdPolicy.HASH),
    ):
        assert workers.run(trained, 2, kind, optimizer, policy) == [True, True]


def bytes_sent(kind):
    """Of ids, and of vectors and gradients; with and without."""
    features, found = batch(dist.get_rank(), 0, 40), []
    for distinct in (False, True):
        module = shard(make(False, "sgd"), kind, use_index_dedup=distinct)
        with Counted() as counted:
            loss([values for values, _ in outputs(module, features)]).backward()
        found.append((counted.bytes[torch.int32], counted.bytes[torch.float32]))
    return found, [len(features[key].values()) for key in FEATURES]


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_bytes_on_the_wire(workers, kind):
    found, sizes = zip(*workers.run(bytes_sent, 2, kind), strict=True)
    # Slots: f1 and f2 of table a, f2 of b, f3 of c; all of 7, 7, 7 and 3 rows come in 40 samples. Vectors of 8
    # columns go one way, their gradients the other.
    ids = sum(f1 + 2 * f2 + f3 for f1, f2, f3 in sizes)
    distinct = 2 * (7 + 7 + 7 + 3)
    assert [sum(rank[way][0] for rank in found) for way in (0, 1)] == [4 * ids, 4 * distinct]
    assert [sum(rank[way][1] for rank in found) for way in (0, 1)] == [
        2 * 32 * ids,
        2 * 32 * distinct,
    ]


def exact():
    with pytest.raises(ValueError, match="`exact` should be False with `use_index_dedup`"):
        shard(make(False), "table_wise", True, use_index_dedup=True)
    return True


def test_exact_is_refused(workers):
    assert workers.run(exact, 1) == [True]
