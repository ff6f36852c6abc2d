"""Managed collision on many ranks against one process: outputs, rows, weights, states and maps, under every plan."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.banded_maps import BandedMap
from tests.distributed.ranks import run
from tests.distributed.test_collections import loss, of_samples, shards
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.layout import row_wise, spec_of
from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.model_tracker.model_delta_tracker import ModelDeltaTrackerTrec
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
    average_threshold_filter,
    dynamic_threshold_filter,
)

pytestmark = pytest.mark.once

# Name -> rows, features. `shared` has the map of `users`; `plain` has none; `hashed` one of four buckets.
TABLES = {
    "users": (13, ["f1", "f2"]),
    "shared": (13, ["f2"]),
    "offset": (20, ["f3"]),
    "hashed": (16, ["f4"]),
    "plain": (7, ["f5"]),
}
DIM = 8
FEATURES = ("f1", "f2", "f3", "f4", "f5")


def shifted(ids, size):
    return ids * 3 % size


def maps():
    users = MCHManagedCollisionModule(
        13, "cpu", LRU_EvictionPolicy(), 1, 10**15, shifted, name="users"
    )
    offset = MCHManagedCollisionModule(
        12,
        "cpu",
        DistanceLFU_EvictionPolicy(),
        2,
        mch_size=5,
        name="offset",
        output_global_offset=2,
    )
    hashed = HashZchManagedCollisionModule(
        16,
        "cpu",
        4,
        max_probe=4,
        name="hashed",
        eviction_policy_name=HashZchEvictionPolicyName.LRU_EVICTION,
        eviction_config=HashZchEvictionConfig(["f4"]),
    )
    return {"users": users, "shared": users, "offset": offset, "hashed": hashed, "plain": None}


def make(pooled, optimizer="adagrad", init_fn=None, made=maps, tables=None, **options):
    torch.manual_seed(3)
    fused = {} if optimizer is None else {"optimizer": optimizer, "lr": 0.1}
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    configs = [
        kind(
            rows,
            DIM,
            name,
            feature_names=features,
            init_fn=init_fn,
            # Fused tables and others side by side.
            **(fused if name != "offset" else {}),
            **({"pooling": PoolingType.MEAN} if pooled and name == "users" else {}),
        )
        for name, (rows, features) in (tables or TABLES).items()
    ]
    if pooled:
        held = EmbeddingBagCollection(configs, is_weighted=options.pop("weighted", False))
        around = ManagedCollisionEmbeddingBagCollection
    else:
        held, around = EmbeddingCollection(configs), ManagedCollisionEmbeddingCollection
    return around(held, ManagedCollisionCollection(made(), configs), True)


def layout_of(kind, t, shape, world_size):
    if kind == "hashed by rows":
        kind = "row_wise" if t == 3 else "table_wise"
    if kind == "row_wise" and t == 3:  # four buckets of four rows
        sizes = [4 * len(range(rank, 4, world_size)) for rank in range(world_size)]
        return row_wise(shape, list(range(world_size)), sizes)
    return shards(kind, t, shape, world_size)


def shard(module, kind):
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    plan = {}
    for t, config in enumerate(module.table_store().table_configs()):
        found = layout_of(kind, t, (config.num_rows, config.embedding_dim), env.world_size)
        ranks = [shard.rank for shard in found]
        plan[config.name] = ParameterSharding("row_wise", "fused", ranks, spec_of(found))
    if isinstance(module, ManagedCollisionEmbeddingBagCollection):
        inner = EmbeddingBagCollectionSharder(exact=True)
        return ManagedCollisionEmbeddingBagCollectionSharder(inner).shard(module, plan, env)
    inner = EmbeddingCollectionSharder(exact=True)
    return ManagedCollisionEmbeddingCollectionSharder(inner).shard(module, plan, env)


def batch(rank, step, size, weighted=False):
    """Ids of a skewed, drifting stream without bounds; of `plain`, rows."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    lengths = [torch.randint(0, 6, (size,), generator=generator) for _ in FEATURES]
    parts = []
    for key, mine in zip(FEATURES, lengths, strict=True):
        count = int(mine.sum())
        if key == "f5":
            parts.append(torch.randint(0, 7, (count,), generator=generator))
        else:
            drawn = torch.rand(count, generator=generator) ** 2 * 40 + 10 * step
            parts.append(drawn.long() * (10**12 + 1) - 7)
    values = torch.cat(parts)
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return KeyedJaggedTensor(list(FEATURES), values, weights, lengths=torch.cat(lengths))


def joined(batches):
    parts = [each.to_dict() for each in batches]

    def all_of(what):
        return torch.cat([what(part[key]) for key in FEATURES for part in parts])

    weighted = batches[0].weights_or_none() is not None
    return KeyedJaggedTensor(
        list(FEATURES),
        all_of(lambda jt: jt.values()),
        all_of(lambda jt: jt.weights()) if weighted else None,
        lengths=all_of(lambda jt: jt.lengths()),
    )


def outputs(found):
    if hasattr(found, "length_per_key"):
        return [(found.values(), None)]
    return [(each.values(), each.lengths()) for each in found.values()]


def rows_of_samples(rows, first, last):
    return {key: bags[first:last] for key, bags in rows.to_lists().items()}


def same_maps(plain, module):
    """The ids and rows of this rank's maps against those of one process."""
    for table, parts in module._managed_collision_collection.maps().items():
        rows, ids = plain.managed_collision_collection().maps()[table].held()
        for part in parts:
            first = part.output_offset
            here = (rows >= first) & (rows < first + part.output_size())
            assert torch.equal(part.held()[0], rows[here]), table
            assert torch.equal(part.held()[1], ids[here]), table


def parts(value):
    """Pairs of the part of a sharded tensor that is here, and where it is in the whole."""
    if not hasattr(value, "local_shards"):
        yield value, ...
        return
    for each in value.local_shards():
        known = each.metadata
        where = zip(known.shard_offsets, known.shard_sizes, strict=True)
        yield each.tensor, tuple(slice(first, first + size) for first, size in where)


def same_tables(plain, module):
    """The weights and states of this rank against those of one process."""
    tables, whole = module._embedding_module, plain.table_store()
    for name, value in tables.state_dict().items():
        for part, where in parts(value):
            assert torch.equal(part, whole.state_dict()[name][where]), name
    states = whole.fused_optimizer.state_dict()["state"]
    for name, found in tables.fused_optimizer.state_dict()["state"].items():
        for kind, value in found.items():
            for part, where in parts(value):
                wanted = states[name][kind]
                if part.numel() > 1:
                    assert torch.equal(part, wanted.view(len(wanted), -1)[where]), (name, kind)


def train(plain, module, steps=5, weighted=False, eval_last=True):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    evicted = 0
    for step in range(steps):
        last = eval_last and step == steps - 1
        plain.train(not last), module.train(not last)
        sizes = [3 + r * step if r != 1 or step != 1 else 0 for r in range(world_size)]
        batches = [batch(r, step, size, weighted) for r, size in enumerate(sizes)]
        found, rows = plain(joined(batches))
        starts = [sum(sizes[:r]) for r in range(world_size + 1)]
        of_ranks = [of_samples(outputs(found), starts[r], starts[r + 1]) for r in range(world_size)]
        expected = [part.detach().clone() for part in of_ranks[rank]]
        plain.zero_grad()
        sum(loss(each) for each in of_ranks).div(world_size).backward()
        found, mine = module(batches[rank])
        assert mine.to_lists() == rows_of_samples(rows, starts[rank], starts[rank + 1])
        vectors = [values for values, _ in outputs(found)]
        for received, wanted in zip(vectors, expected, strict=True):
            assert torch.equal(received, wanted)
        module.zero_grad()
        loss(vectors).backward()
        for model in (plain, module):
            for param in model.parameters():
                if param.grad is not None:
                    param.data -= 0.1 * param.grad
        same_maps(plain, module)
        done = plain.stats()
        for table, each in module.stats().items():
            if table in done and each.rows == done[table].rows:  # all of it is here
                assert each == done[table]
        evicted += sum(each.evicted for each in done.values())
    same_tables(plain, module)
    return evicted


def as_one_process(pooled, kind, optimizer, weighted=False):
    given = {"optimizer": optimizer, "weighted": weighted}
    plain, module = make(pooled, **given), shard(make(pooled, **given), kind)
    return train(plain, module, weighted=weighted)


def several(pooled, kind):
    for optimizer in ("adagrad", "rowwise_adagrad") if kind != "column_wise" else ("adagrad",):
        assert as_one_process(pooled, kind, optimizer) >= 20
    if pooled:
        as_one_process(pooled, kind, "adam", weighted=True)
    return True


@pytest.mark.parametrize("kind", ["table_wise", "column_wise", "hashed by rows"])
@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_whole_maps_and_those_of_buckets_do_what_they_do_in_one_process(pooled, kind):
    assert run(several, 2, pooled, kind) == [True, True]


def filtered():
    """Maps that admit ids by how often they came, of every policy."""
    policies = {
        "users": LFU_EvictionPolicy(average_threshold_filter),
        "shared": LRU_EvictionPolicy(
            threshold_filtering_func=partial(
                dynamic_threshold_filter, threshold_skew_multiplier=0.5
            )
        ),
        "offset": DistanceLFU_EvictionPolicy(threshold_filtering_func=average_threshold_filter),
        "hashed": LFU_EvictionPolicy(),
    }
    made = {
        table: MCHManagedCollisionModule(TABLES[table][0], "cpu", policy, 2, name=table)
        for table, policy in policies.items()
    }
    return {**made, "plain": None}


def by_filters(kind):
    given = {"init_fn": nn.init.ones_}
    slow = filtered if kind != "row_wise" else partial(banded, dist.get_world_size(), filtered)
    plain, module = make(True, made=slow, **given), shard(make(True, made=filtered, **given), kind)
    evicted = train(plain, module)
    return evicted > 0 or kind == "row_wise"  # the slow maps do not count


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_maps_of_all_policies_admit_the_ids_that_they_do_in_one_process(kind):
    assert run(by_filters, 2, kind) == [True, True]


def banded(world_size, made_whole=None):
    """The maps that there are where all tables are divided by rows."""
    made = {}
    for t, (table, module) in enumerate((made_whole or maps)().items()):
        if isinstance(module, MCHManagedCollisionModule):
            found = layout_of("row_wise", t, (TABLES[table][0], DIM), world_size)
            made[table] = BandedMap(module, [shard.rows for shard in found])
        else:
            made[table] = module
    if made_whole is None:
        made["shared"] = made["users"]
    return made


def by_rows(pooled, optimizer):
    world_size = dist.get_world_size()
    # Rows that are reset together are drawn together: here of one band, there of all.
    given = {"optimizer": optimizer, "init_fn": nn.init.ones_}
    plain = make(pooled, made=lambda: banded(world_size), **given)
    train(plain, shard(make(pooled, **given), "row_wise"))
    return True


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_maps_of_rows_are_a_map_for_each_range_of_rows(pooled, world_size):
    assert run(by_rows, world_size, pooled, "adagrad") == [True] * world_size


def told_with_rows():
    """The ids that are told with rows find these rows."""
    rank, model = dist.get_rank(), nn.Module()
    model.add_module("tables", shard(make(pooled=True), "row_wise"))
    tracker = ModelDeltaTrackerTrec(model)
    for step in range(2):
        model.tables(batch(rank, step, 5))
    told = {fqn.rpartition(".")[2]: rows for fqn, rows in tracker.get_unique().items()}
    assert told["plain"].raw_ids is None
    model.eval()
    for name, feature in (("offset", "f3"), ("hashed", "f4")):
        has_id = told[name].raw_ids >= 0
        rows, ids = told[name].ids[has_id], told[name].raw_ids[has_id]
        assert len(ids) > 2, name
        features = {key: [ids.tolist() if key == feature else []] for key in FEATURES}
        _, remapped = model.tables(KeyedJaggedTensor.from_lists(features))
        assert torch.equal(remapped[feature].values(), rows), name


@pytest.mark.slow
def test_a_tracker_tells_the_ids_that_hold_rows():
    assert run(told_with_rows, 2) == [None, None]
