"""Whole models, sharded: training, names, errors, checkpoints."""

from __future__ import annotations

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


class Model(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        torch.manual_seed(2)
        tables = [
            EmbeddingBagConfig(30, 8, "user", feature_names=["u"]),
            EmbeddingBagConfig(11, 8, "item", feature_names=["i"]),
        ]
        self.tables = EmbeddingBagCollection(tables, device=torch.device(device))
        self.over = nn.Linear(16, 1)

    def forward(self, features):
        scores = self.over(self.tables(features).values()).squeeze(1)
        return scores.square().mean(), scores


def fused(device="cpu"):
    model = Model(device)
    apply_optimizer_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": 0.1})
    return model


def plan_of(model, **kinds):
    """Plan tables by the names of generators with their arguments: ``item=("table_wise", 1)``."""
    tables = construct_module_sharding_plan(
        model.tables,
        {name: getattr(sharding_plan, kind)(*given) for name, (kind, *given) in kinds.items()},
        local_size=dist.get_world_size(),
        world_size=dist.get_world_size(),
        device_type="cpu",
    )
    return ShardingPlan({"tables": tables})


def batch(rank, step, size=4):
    generator = torch.Generator().manual_seed(100 * rank + step)
    users = torch.randint(0, 30, (size, 3), generator=generator)
    items = torch.randint(0, 11, (size, 1), generator=generator)
    return KeyedJaggedTensor.from_lists({"u": users.tolist(), "i": items.tolist()})


def same_training(kinds):
    world_size = dist.get_world_size()
    model = fused()
    plan = plan_of(model, **kinds)
    batches = [[batch(rank, step) for rank in range(world_size)] for step in range(4)]
    assert_same_training(model, plan, batches)
    return True


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "kinds",
    [
        {"user": ("row_wise",), "item": ("table_wise", 0)},
        {"user": ("column_wise", [0]), "item": ("row_wise",)},
    ],
    ids=["rows and a table", "columns and rows"],
)
def test_a_model_trains_as_in_one_process(world_size, kinds):
    assert run(same_training, world_size, kinds) == [True] * world_size


def names():
    model = fused("meta")
    kinds = {"user": ("data_parallel",), "item": ("table_wise", 1)}
    sharded = DistributedModelParallel(model, plan=plan_of(model, **kinds))
    params = {name: tuple(param.shape) for name, param in sharded.named_parameters()}
    outside = [name for name, _ in in_backward_optimizer_filter(sharded.named_parameters())]
    state = sharded.state_dict()
    shown = {name: (type(value).__name__, tuple(value.shape)) for name, value in state.items()}
    return params, outside, list(sharded.fused_optimizer.params), shown


def test_names_do_not_know_the_plan():
    (params, outside, updated, shown), (_, _, updated_there, shown_there) = run(names, 2)
    assert params == {
        "tables.embedding_bags.user.weight": (30, 8),
        "tables.embedding_bags.item.weight": (0, 8),  # of the other rank
        "over.weight": (1, 16),
        "over.bias": (1,),
    }
    # A replica is an ordinary parameter; a part that is not here is nobody's.
    assert outside == [name for name in params if name != "tables.embedding_bags.item.weight"]
    assert updated == updated_there == ["tables.embedding_bags.item.weight"]
    assert shown == shown_there
    assert shown["tables.embedding_bags.user.weight"] == ("Tensor", (30, 8))
    assert shown["tables.embedding_bags.item.weight"] == ("ShardedTable", (11, 8))


def trained(kinds, steps=2):
    model = fused()
    sharded = DistributedModelParallel(model, plan=plan_of(model, **kinds))
    step(sharded, steps)
    return sharded


def step(model, steps):
    dense = torch.optim.SGD([p for n, p in model.named_parameters() if n.startswith("over")], 0.1)
    for number in range(steps):
        dense.zero_grad()
        model(batch(model.rank, number))[0].backward()
        dense.step()


def save(folder, kinds):
    sharded = trained(kinds)
    dcp.save(sharded.state_dict(), checkpoint_id=folder)
    return [(name, part) for name, part in whole_parts(sharded)]


def whole_parts(sharded):
    for name, value in sharded.state_dict().items():
        if hasattr(value, "local_shards"):
            for shard in value.local_shards():
                yield name, (tuple(shard.metadata.shard_offsets), shard.tensor.clone())
        else:
            yield name, ((0, 0), value.clone())


def load(folder, kinds):
    model = fused()
    sharded = DistributedModelParallel(model, plan=plan_of(model, **kinds))
    state = sharded.state_dict()
    dcp.load(state, checkpoint_id=folder)
    sharded.load_state_dict(state)
    return list(whole_parts(sharded))


def put_together(of_ranks):
    whole = {"tables.embedding_bags.user.weight": torch.zeros(30, 8)}
    whole["tables.embedding_bags.item.weight"] = torch.zeros(11, 8)
    for parts in of_ranks:
        for name, ((row, column), part) in parts:
            if name in whole:
                whole[name][row : row + part.shape[0], column : column + part.shape[1]] = part
    return whole


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")
def test_a_checkpoint_loads_under_another_plan_and_world():
    with tempfile.TemporaryDirectory() as folder:
        saved = run(save, 3, folder, {"user": ("row_wise",), "item": ("table_wise", 2)})
        loaded = run(load, 2, folder, {"user": ("table_wise", 1), "item": ("row_wise",)})
        alone = run(load, 1, folder, {"user": ("column_wise", [0]), "item": ("data_parallel",)})
    expected = put_together(saved)
    for found in (put_together(loaded), put_together(alone)):
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name


def plain_state():
    """The state of an unsharded model loads, and a copy goes on as the model does."""
    model = fused()
    kinds = {"user": ("row_wise",), "item": ("table_wise", 0)}
    sharded = trained(kinds)
    sharded.load_state_dict(model.state_dict())
    for name, (offsets, part) in whole_parts(sharded):
        whole = model.state_dict()[name]
        for axis, (offset, size) in enumerate(zip(offsets, part.shape, strict=False)):
            whole = whole.narrow(axis, offset, size)
        assert torch.equal(part, whole), name
    item = "tables.embedding_bags.item.weight"  # of which the second rank has nothing
    with pytest.raises(
        ValueError, match=r"Table 'item' should have the shape .* Received \(2, 3\)"
    ):
        sharded.load_state_dict({**model.state_dict(), item: torch.zeros(2, 3)})
    twin = copy.deepcopy(sharded)
    loss, other = sharded(batch(sharded.rank, 9))[0], twin(batch(sharded.rank, 9))[0]
    return torch.equal(loss, other)


def test_a_plain_state_loads_and_copies_work():
    assert run(plain_state, 2) == [True, True]


def refused(plan):
    model = fused()
    DistributedModelParallel(model, plan=plan(model))


def no_such_module(model):
    return ShardingPlan(
        {"towers": plan_of(model, user=("row_wise",), item=("row_wise",)).plan["tables"]}
    )


def a_table_forgotten(model):
    plan = plan_of(model, user=("row_wise",), item=("row_wise",))
    del plan.plan["tables"]["item"]
    return plan


def nobody_shards_it(model):
    return ShardingPlan(
        {"over": plan_of(model, user=("row_wise",), item=("row_wise",)).plan["tables"]}
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (no_such_module, "The plan should name modules of the model. Received 'towers'"),
        (a_table_forgotten, r"Module 'tables' should have its tables .* Received no table 'item'"),
        (nobody_shards_it, "Module 'over' should be of a type that some sharder shards"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_plans_that_do_not_fit_are_refused(plan, message):
    for error in run(refused, 2, plan):
        with pytest.raises(ValueError, match=message):
            raise error


def test_a_collection_is_not_sharded_apart_from_its_map():
    table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
    maps = ManagedCollisionCollection(
        {"t": MCHManagedCollisionModule(10, torch.device("cpu"), LFU_EvictionPolicy(), 2)}, [table]
    )
    model = nn.Sequential(
        ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection([table]), maps)
    )
    inside = {"t": ParameterSharding("data_parallel", "dense", [0])}
    plan = ShardingPlan({"0._embedding_module": EmbeddingModuleShardingPlan(inside)})
    with pytest.raises(
        ValueError, match="together with the ManagedCollisionEmbeddingBagCollection"
    ):
        DistributedModelParallel(model, plan=plan)


def test_a_model_is_sharded_once():
    model = DistributedModelParallel(fused())
    with pytest.raises(ValueError, match="`module` should not be sharded yet"):
        DistributedModelParallel(model)


def test_without_a_process_group_it_is_one_rank(caplog):
    model = DistributedModelParallel(fused("meta"))
    assert "torch.distributed has not been initialised" in caplog.text
    assert (model.rank, model.world_size) == (0, 1)
    before = model.state_dict()["tables.embedding_bags.user.weight"].clone()
    step(model, 2)
    assert not torch.equal(model.state_dict()["tables.embedding_bags.user.weight"], before)
