"""Ids that come again and travel once: the same vectors, the same training, fewer bytes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from tests.distributed.test_coding import Counted
from tests.distributed.test_collections import (
    PLANS,
    TABLES,
    batch,
    compare,
    joined,
    loss,
    make,
    of_samples,
    outputs,
    shard,
    shards,
)
from torchrec.distributed.channel import use_channel
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


def trained(kind, optimizer, policy, batch_l2=0.0):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    given = {"policy": policy, "batch_l2": batch_l2}
    plain = make(False, optimizer, **given)
    module = shard(make(False, optimizer, **given), kind, use_index_dedup=True)
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


def test_an_update_that_counts_ids_has_all_of_them(workers):
    assert workers.run(trained, 2, "mixed", "adam", IdPolicy.ERROR, 0.5) == [True, True]


def bytes_sent(kind):
    """Of ids, and of vectors and gradients, with and without; and of ids that other ranks have the rows of."""
    rank = dist.get_rank()
    features, found = batch(rank, 0, 40), []
    channel = Counted(dist.group.WORLD)
    use_channel(dist.group.WORLD, channel)
    for distinct in (False, True):
        module = shard(make(False, "sgd"), kind, use_index_dedup=distinct)
        channel.bytes.clear()
        loss([values for values, _ in outputs(module, features)]).backward()
        found.append((channel.bytes[torch.int32], channel.bytes[torch.float32]))
    asked = [0, 0]
    for t, (rows, _, keys) in enumerate(TABLES.values()):
        away = {row for s in shards(kind, t, (rows, 8), 2) if s.rank != rank for row in s.rows}
        for key in keys:
            ids = [each for each in features[key].values().tolist() if each in away]
            asked = [asked[0] + len(ids), asked[1] + len(set(ids))]
    return found, asked


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_bytes_on_the_wire(workers, kind):
    (found, asked), (other_found, other_asked) = workers.run(bytes_sent, 2, kind)
    for way in (0, 1):
        assert found[way][0] == 4 * asked[way]
        assert other_found[way][0] == 4 * other_asked[way]
        # Vectors of 8 columns go back for what the other rank has asked for, gradients for what this one has.
        assert found[way][1] == other_found[way][1] == 32 * (asked[way] + other_asked[way])
    assert asked[1] * 2 < asked[0]  # ids come again


def exact():
    with pytest.raises(ValueError, match="`exact` should be False with `use_index_dedup`"):
        shard(make(False), "table_wise", True, use_index_dedup=True)
    return True


def test_exact_is_refused(workers):
    assert workers.run(exact, 1) == [True]
