"""Models with managed collision on many ranks: plans of all kinds, pipelines, copies, checkpointing of activations."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.distributed.ranks import run
from tests.distributed.test_mc_embedding_modules import (
    DIM,
    batch,
    joined,
    make,
    same_maps,
    same_tables,
    shard,
    train,
)
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.distributed.unshard import unshard
from torchrec.modules.mc_adapter import McEmbeddingBagCollectionAdapter
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once


class Model(nn.Module):
    def __init__(self, optimizer="adagrad"):
        super().__init__()
        self.tables = make(True, optimizer)
        torch.manual_seed(4)
        self.over = nn.Linear(6 * DIM, 1)

    def forward(self, features):
        found, rows = self.tables(features)
        scores = self.over(found.values()).squeeze(1)
        return scores.square().sum(), (scores.detach(), rows)


def sharded(optimizer="adagrad", **layouts):
    model = Model(optimizer)
    default = {"users": table_wise(1), "shared": table_wise(1), "offset": row_wise()}
    default |= {"hashed": row_wise(num_buckets=4), "plain": table_wise(0)}
    plan = construct_module_sharding_plan(model.tables, {**default, **layouts})
    return DistributedModelParallel(model, plan=ShardingPlan({"tables": plan}))


def optimizer_of(model):
    dense = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    return torch.optim.SGD(dense, 0.05)


def copies(optimizer=None):
    """A map of a table that every rank has a copy of is on one rank, and rows change hands on all."""
    rank, whole = dist.get_rank(), Model(optimizer)
    model = sharded(optimizer, users=data_parallel(), shared=data_parallel(), offset=table_wise(0))
    optimizers = [optimizer_of(whole), optimizer_of(model)]
    for number in range(4):
        batches = [batch(r, number, 3) for r in range(2)]
        for each in optimizers:
            each.zero_grad()
        loss, (scores, rows) = whole(joined(batches))
        (loss / 2).backward()
        loss, (mine, here) = model(batches[rank])
        loss.backward()
        torch.testing.assert_close(mine, scores[3 * rank : 3 * rank + 3])
        assert here.to_lists() == {
            key: bags[3 * rank : 3 * rank + 3] for key, bags in rows.to_lists().items()
        }
        for each in optimizers:
            each.step()
        same_maps(whole.tables, model.module.tables)
    if optimizer is not None:
        states = [
            each.fused_optimizer.state_dict()["state"]["embedding_bags.users.weight"]
            for each in (whole.tables.table_store(), model.module.tables._embedding_module)
        ]
        torch.testing.assert_close(states[1]["sum"], states[0]["sum"])
    return True


def fused_copies():
    return copies("adagrad")


def piped():
    """Ranks with different numbers of batches; then copies of the model that train alike."""
    rank = dist.get_rank()
    model = sharded()
    pipeline = TrainPipelineSparseDist(model, optimizer_of(model), torch.device("cpu"))
    data, seen = iter([batch(rank, number, 3) for number in range(2 + 2 * rank)]), 0
    while True:
        try:
            pipeline.progress(data)
        except StopIteration:
            break
        seen += 1
    assert seen == 2 + 2 * rank
    twin = copy.deepcopy(model)
    features = batch(rank, 9, 3)
    for _ in range(2):
        (loss, (scores, rows)), (other, (its, same)) = model(features), twin(features)
        loss.backward(), other.backward()
        assert torch.equal(scores, its)
        assert rows.to_lists() == same.to_lists()
    return set(Model().state_dict()) == set(model.state_dict())


def unsharded():
    """The model of one process has the rows and the ids of all ranks."""
    rank = dist.get_rank()
    model = sharded(offset=table_wise(0))
    for number in range(3):
        model(batch(rank, number, 3))[0].backward()
    plain = unshard(model)
    same_maps(plain.tables, model.module.tables)
    same_tables(plain.tables, model.module.tables)
    features = joined([batch(r, 9, 3) for r in range(2)])
    plain.eval(), model.eval()
    expected = plain(features)[1][0][3 * rank : 3 * rank + 3]
    torch.testing.assert_close(model(batch(rank, 9, 3))[1][0], expected)
    return set(plain.state_dict()) == set(model.state_dict())


def recomputed():
    """A region that runs again in the backward pass: maps learn once, and it sees the same rows."""
    rank = dist.get_rank()
    found = []
    for way in (None, False, True):
        module = shard(make(True), "row_wise")

        def region(features, scale, module=module):
            return module(features)[0].values() * scale

        for step in range(3):
            scale = torch.ones(1, requires_grad=True)
            given = batch(rank, step, 3), scale
            out = region(*given) if way is None else checkpoint(region, *given, use_reentrant=way)
            out.square().sum().backward()
        state = module.state_dict()
        found.append(
            [out.detach(), *(w.full_tensor() for w in state.values() if hasattr(w, "full_tensor"))]
        )
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    return True


def trained():
    """A collection that has been trained in one process goes on as it would have there."""
    plain = make(True)
    for number in range(2):
        plain(batch(7, number, 4))[0].values().sum().backward()
    twin = make(True)
    twin.load_state_dict(plain.state_dict())
    twin.table_store().fused_optimizer.load_state_dict(
        plain.table_store().fused_optimizer.state_dict()
    )
    plain.stats()  # what it did before, the other has not
    train(plain, shard(twin, "table_wise"), steps=3)
    return True


def adapted():
    model = nn.Sequential(
        McEmbeddingBagCollectionAdapter(
            [*make(True).table_store().table_configs()[2:3]], 2**40, "cpu", 2
        )
    )
    features = KeyedJaggedTensor.from_lists({"f3": [[10**9], [5, 5]]})
    names = [name for name, _ in model.named_parameters()]
    sharded = DistributedModelParallel(model)
    found, adapter = sharded(features), sharded.module[0]
    assert [config.name for config in adapter.embedding_bag_configs()] == ["offset"]
    assert [name for name, _ in sharded.named_parameters()] == names
    assert len(list(adapter.parameters())) == 1
    assert all(each.weight.shape[1] == DIM for each in adapter.table_store().table_shards("offset"))
    return tuple(found["f3"].shape)


def all_of(*functions):
    return [function() for function in functions]


def test_models_of_all_kinds():
    found = run(all_of, 2, copies, fused_copies, piped, unsharded, recomputed, trained, adapted)
    assert found == [[True, True, True, True, True, True, (2, DIM)]] * 2
