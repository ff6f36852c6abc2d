"""Maps on many ranks by themselves, without the tables: rows, evictions, and what a rank can ask of its own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec import EmbeddingBagConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.layout import row_wise, spec_of, table_wise
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

pytestmark = pytest.mark.once


def collection():
    tables = [
        EmbeddingBagConfig(10, 4, "a", feature_names=["f"]),
        EmbeddingBagConfig(6, 4, "b", feature_names=["g"]),
    ]
    a = MCHManagedCollisionModule(10, "cpu", LFU_EvictionPolicy(), 1, name="a")
    b = HashZchManagedCollisionModule(6, "cpu", 1, write_runtime_meta_dim=1, name="b")
    return ManagedCollisionCollection({"a": a, "b": b}, tables)


def sharded():
    shards = {"a": row_wise((10, 4), [0, 1], [4, 6]), "b": table_wise((6, 4), 1)}
    plan = {
        table: ParameterSharding("row_wise", "fused", [s.rank for s in found], spec_of(found))
        for table, found in shards.items()
    }
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    return ManagedCollisionCollectionSharder().shard(collection(), plan, env)


def asked():
    rank, maps = dist.get_rank(), sharded()
    ids = {"f": [[5, -7], [5 + 100 * rank]], "h": [[1], []], "g": [[9], [8 + rank]]}
    features = KeyedJaggedTensor.from_lists(ids)
    assert all(rows is None for rows in maps.evict().values())
    ctx = maps.create_context()
    sent = maps.input_dist(ctx, features).wait().wait()
    assert isinstance(sent, KJTList)
    assert [each.stride() for each in sent] == [2] * (1 + rank)  # a bag for each rank
    rows = maps.output_dist(ctx, maps.compute(ctx, sent))
    assert isinstance(rows, KeyedJaggedTensor)
    assert rows.keys() == ["f", "h", "g"]
    assert rows["h"].values().tolist() == [1]  # of no table: as it was
    again = maps(features)
    found = again.to_lists()
    slots = {table: int(count) for table, count in maps.open_slots().items()}
    evicted = {table: None if v is None else v.tolist() for table, v in maps.evict().items()}
    return found, slots, evicted


def test_rows_come_from_the_rank_that_has_the_map():
    (one, free, given), (other, more, taken) = run(asked, 2)
    assert one["f"][0] == other["f"][0]  # the same ids have the same rows
    rows = {row for found in (one, other) for bag in found["f"] for row in bag}
    assert len(rows) == 3
    assert rows.isdisjoint({3, 9})  # those are shared by ids without one, of either range
    assert free["a"] + more["a"] == 3 + 5 - 3
    assert (free["b"], more["b"]) == (0, 6 - 2)
    assert sorted([*(given["a"] or []), *(taken["a"] or [])]) == sorted(rows)
    assert given["b"] is None


def own():
    rank, maps = dist.get_rank(), sharded()
    first = 4 * rank
    local = maps.global_to_local_index(
        {"f": JaggedTensor(torch.tensor([first, first + 2]), lengths=torch.tensor([2]))}
    )
    assert local["f"].values().tolist() == [0, 2]
    ids = KeyedJaggedTensor.from_lists({"g": [[9], [8]]})
    if rank == 0:
        with pytest.raises(ValueError, match="Received 'b', with 0"):
            maps.get_lookup_value("b", ids)
        return True
    found = maps.get_lookup_value("b", ids, torch.tensor([[3], [4]]))["g"].values()
    assert maps.maps()["b"][0].lookup_custom_runtime_meta(found).tolist() == [[3], [4]]
    with pytest.raises(NotImplementedError, match="nothing tracks look-ups"):
        maps.register_post_lookup_tracker_fn(print)
    return True


def test_a_rank_can_ask_its_own_maps():
    assert run(own, 2) == [True, True]
