"""Pools whose rows lie on several ranks, against a pool of one process."""

from __future__ import annotations

import copy
import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.ranks import run
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.keyed_jagged_tensor_pool import KeyedJaggedTensorPoolSharder
from torchrec.distributed.tensor_pool import ShardedTensorPool, TensorPoolSharder
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ObjectPoolShardingPlan,
    ObjectPoolShardingType,
    ShardingEnv,
    ShardingEnv2D,
    ShardingPlan,
)
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool
from torchrec.modules.tensor_pool import TensorPool

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

SHARDERS = {TensorPool: TensorPoolSharder(), KeyedJaggedTensorPool: KeyedJaggedTensorPoolSharder()}
LENGTHS = {"a": 2, "b": 3}


def plan(kind="row_wise"):
    return ObjectPoolShardingPlan(ObjectPoolShardingType(kind))


def shard(pool, kind="row_wise"):
    group = dist.group.WORLD if dist.is_initialized() else None
    env = ShardingEnv.from_process_group(group) if group else ShardingEnv.from_local(1, 0)
    return SHARDERS[type(pool)].shard(pool, plan(kind), env)


def vectors(ids, seed, dtype):
    return torch.randint(1, 100, (len(ids), 3), generator=torch.manual_seed(seed)).to(dtype)


def samples(ids, seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    # One key more than the pool has, and another order.
    keys = ["b", "other", "a"]
    lengths = torch.cat(
        [
            torch.randint(0, most + 1, (len(ids),), generator=generator)
            for most in (3, 1, 2)
        ]
    )  # fmt: skip
    values = torch.randint(1, 100, (int(lengths.sum()),), generator=generator)
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys, values, weights, lengths)


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    weights = True
    if expected.weights_or_none() is not None:
        weights = torch.equal(found.weights(), expected.weights())
    return found.to_lists() == expected.to_lists() and weights


# Ids of both ranks that are written, with ones that come again, here and there; then ids that are read.
STEPS = [
    ([[3, 0, 6, 3], [6, 1]], [[6, 3, 6], [0, 2, 1, 3]]),
    ([[], [5, 2, 5]], [[5, 2], []]),
    ([[4, 4], []], [[], [4, 6, 0]]),
]


def used(kind):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    pools = [
        (TensorPool(7, 3, torch.float32), lambda ids, s: vectors(ids, s, torch.float32)),
        (TensorPool(1, 3, torch.int64), lambda ids, s: vectors(ids, s, torch.int64)),
        (TensorPool(7, 3, torch.bfloat16), lambda ids, s: vectors(ids, s, torch.bfloat16)),
        (TensorPool(7, 3, torch.bool), lambda ids, s: vectors(ids, s, torch.bool)),
        (KeyedJaggedTensorPool(7, LENGTHS), lambda ids, s: samples(ids, s, False)),
        (KeyedJaggedTensorPool(7, LENGTHS, is_weighted=True), lambda ids, s: samples(ids, s, True)),
    ]
    for pool, values in pools:
        most = pool.pool_size - 1
        pool.update(torch.tensor([most]), values([0], 5))  # what is there when it is sharded
        sharded = shard(copy.deepcopy(pool), kind)
        assert sharded.pool_size == pool.pool_size
        for step, (written, read) in enumerate(STEPS):
            written, read = written[:world_size], read[:world_size]
            for r, ids in enumerate(written):  # one process, rank by rank
                ids = torch.tensor(ids, dtype=torch.int64).clamp(max=most)
                pool.update(ids, values(ids, 10 * step + r))
            ids = torch.tensor(written[rank], dtype=torch.int32).clamp(max=most)
            sharded.update(ids, values(ids, 10 * step + rank))
            ids = torch.tensor(read[rank], dtype=torch.int64).clamp(max=most)
            assert same(sharded.lookup(ids).wait(), pool.lookup(ids))
        everything = torch.arange(pool.pool_size)
        assert same(sharded(everything).wait(), pool(everything))
        assert list(sharded.state_dict()) == list(pool.state_dict())
        for name, whole in pool.state_dict().items():
            assert sharded.state_dict()[name].shape == whole.shape
        fresh = shard(copy.deepcopy(pool), kind)
        fresh.update(everything, values(everything, 77))
        fresh.load_state_dict(pool.state_dict())  # of a pool that is not sharded
        assert same(fresh(everything).wait(), pool(everything))
    return len(sharded.values)


def test_pools_by_rows_hold_what_one_process_would():
    assert run(used, 2, "row_wise") == [4, 3]


def by_hosts():
    """Two hosts of one rank each: both have all rows."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    return used("replicated_row_wise")


def test_every_host_has_all_rows_of_a_replicated_pool():
    assert run(by_hosts, 2) == [7, 7]
    assert run(used, 2, "replicated_row_wise") == [4, 3]  # one host


@pytest.mark.slow
def test_two_hosts_of_two_ranks():
    assert run(two_hosts, 4) == [4, 3, 4, 3]


def two_hosts():
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    pool = TensorPool(7, 3, torch.float32)
    sharded = shard(copy.deepcopy(pool), "replicated_row_wise")
    everything = torch.arange(7)
    for step in range(2):
        for r in range(4):
            ids = torch.tensor([r, r + 1, r + 2])
            pool.update(ids, vectors(ids, 10 * step + r, torch.float32))
        ids = torch.tensor([dist.get_rank() + n for n in range(3)])
        sharded.update(ids, vectors(ids, 10 * step + dist.get_rank(), torch.float32))
        assert torch.equal(sharded.lookup(everything).wait(), pool.lookup(everything))
    return len(sharded.get_buffer("_pool"))


def failing(action):
    pool = shard(KeyedJaggedTensorPool(7, LENGTHS))
    there, rank = torch.tensor([1]), dist.get_rank()
    if action == "read":
        pool.lookup(torch.tensor([7]) if rank else there)
    elif action == "write":
        pool.update(torch.tensor([-1]) if rank else there, samples([1], 0, False))
    else:
        bags = {"a": [[1, 2, 3] if rank else [1]], "b": [[]]}
        pool.update(there, KeyedJaggedTensor.from_lists(bags))


@pytest.mark.parametrize(
    ("action", "kind", "message"),
    [
        ("read", IndexError, r"On rank 1: `ids` should be in \[0, 7\).* Received 7"),
        ("write", IndexError, r"On rank 1: `ids` should be in \[0, 7\).* Received -1"),
        ("too long", ValueError, "On rank 1: Bags of feature 'a' should hold at most 2 values"),
    ],
)
def test_what_one_rank_asks_for_in_vain_is_raised_on_all(action, kind, message):
    for error in run(failing, 2, action):
        with pytest.raises(kind, match=message):
            raise error


class Model(nn.Module):
    """A pool beside a layer, which the data-parallel wrapper sends about."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pool = TensorPool(5, 3, torch.float32, loaded_values=torch.arange(15.0).view(5, 3))
        self.over = nn.Linear(3, 1)

    def forward(self, ids):
        return self.over(self.pool.lookup(ids)).square().sum()


def in_a_model(folder):
    model = Model()
    plans = ShardingPlan({"pool": plan()})
    sharded = DistributedModelParallel(
        copy.deepcopy(model), plan=plans, sharders=[TensorPoolSharder()]
    )
    assert isinstance(sharded.module.pool, ShardedTensorPool)
    ids = torch.tensor([4, 0, 1][: 1 + dist.get_rank()])
    loss = sharded(ids)
    assert torch.equal(loss, model(ids))
    loss.backward()
    sharded.module.pool.update(ids, torch.full((len(ids), 3), 50.0 + dist.get_rank()))
    dcp.save(sharded.state_dict(), checkpoint_id=folder)
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")
def test_a_pool_in_a_model_and_in_a_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        assert run(in_a_model, 2, folder) == [True, True]
        model = Model()
        state = model.state_dict()
        dcp.load(state, checkpoint_id=folder)
    expected = torch.arange(15.0).view(5, 3)
    expected[[4, 0]] = 51.0
    assert torch.equal(model.pool.pool, expected)


def test_plans_that_are_not_supported_and_plans_of_tables_are_refused():
    pool, alone = TensorPool(5, 3, torch.float32), ShardingEnv.from_local(1, 0)
    row_wise = ObjectPoolShardingType.ROW_WISE
    with pytest.raises(ValueError, match="without `inference`"):
        TensorPoolSharder().shard(pool, ObjectPoolShardingPlan(row_wise, True), alone)
    with pytest.raises(ValueError, match="should be given a process group for its 2 ranks"):
        TensorPoolSharder().shard(pool, plan(), ShardingEnv.from_local(2, 0))
    plans = ShardingPlan({"pool": EmbeddingModuleShardingPlan()})
    with pytest.raises(
        TypeError, match=r"'pool' should be an ObjectPoolShardingPlan\. Received Emb"
    ):
        DistributedModelParallel(Model(), plan=plans, sharders=[TensorPoolSharder()])


def in_groups():
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    groups = mesh.get_group("shard"), mesh.get_group("replicate"), dist.group.WORLD
    TensorPoolSharder().shard(TensorPool(5, 3, torch.float32), plan(), ShardingEnv2D(*groups, mesh))


def test_groups_of_ranks_are_refused():
    for error in run(in_groups, 2):
        assert isinstance(error, ValueError)
        assert "ranks of one dimension" in str(error)


def test_one_rank_and_planners():
    pool = TensorPool(5, 3, torch.float32)
    sharded = shard(pool)
    sharded.update(torch.tensor([1, 1]), torch.tensor([[1.0, 1, 1], [2, 2, 2]]))
    assert sharded.lookup(torch.tensor([1])).tolist() == [[2.0, 2.0, 2.0]]
    assert (sharded.dim, sharded.dtype) == (3, torch.float32)
    with pytest.raises(IndexError, match="Received 5 at position 0"):
        sharded.lookup(torch.tensor([5]))
    with pytest.raises(TypeError, match=r"`values` should be of torch\.float32"):
        sharded.update(torch.tensor([1]), torch.ones(1, 3, dtype=torch.int64))
    assert TensorPoolSharder().shardable_parameters(pool) == {}
    # Planners leave pools alone.
    model = DistributedModelParallel(Model(), sharders=[TensorPoolSharder()])
    assert isinstance(model.module.pool, TensorPool)
    meta = shard(KeyedJaggedTensorPool(4, LENGTHS, device=torch.device("meta")))
    assert meta.lookup(torch.tensor([3])).to_lists() == {"a": [[]], "b": [[]]}
    assert (meta.feature_max_lengths, meta.values_dtype, meta.is_weighted) == (
        LENGTHS,
        torch.int64,
        False,
    )
