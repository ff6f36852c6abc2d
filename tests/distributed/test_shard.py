"""Modules sharded without a model around them: `shard` and `shard_modules`."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import Model, batch, plan_of
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.shard import shard, shard_modules
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardedModule, ShardingPlan
from torchrec.distributed.unshard import unshard

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def ways():
    """Each way to say where tables go gives what the collection gave, and trains it."""
    plain = Model().tables
    plans = [
        row_wise(),
        {"user": row_wise(), "item": table_wise(rank=1)},
        construct_module_sharding_plan(plain, {"user": table_wise(rank=1), "item": row_wise()}),
    ]
    features = batch(dist.get_rank(), 0)
    expected = plain(features).values()
    found = []
    for plan in plans:
        sharded = shard(Model().tables, plan)
        values = sharded(features).values()
        torch.testing.assert_close(values, expected)
        values.sum().backward()
        found.append(sorted(n for n, p in sharded.named_parameters() if p.grad is not None))
    return found


def model_and_rest():
    model = Model()
    features = batch(dist.get_rank(), 0)
    _, scores = model(features)
    sharded = shard_modules(model, plan=plan_of(model, user=("row_wise",), item=("row_wise",)))
    assert sharded is model
    assert isinstance(model.tables, ShardedModule)
    torch.testing.assert_close(sharded(features)[1], scores)
    model.over.weight.data.fill_(dist.get_rank())
    sharded(features)[0].backward()
    # Nobody keeps the layers alike, nor adds their gradients up.
    grads = [torch.empty(1, 16) for _ in range(2)]
    dist.all_gather(grads, model.over.weight.grad)
    return torch.equal(*grads)


def test_a_collection_is_sharded_by_any_kind_of_plan():
    user, item = "embedding_bags.user.weight", "embedding_bags.item.weight"
    first, second = run(ways, 2)
    assert first == [[item, user], [user], [item]]
    assert second == [[item, user], [item, user], [item, user]]


def test_a_model_is_sharded_and_its_layers_left_alone():
    assert run(model_and_rest, 2) == [False, False]


def test_what_is_left_on_meta_gets_memory_if_it_is_asked_for():
    tables = [EmbeddingBagConfig(5, 2, "t", feature_names=["f"])]
    for init_params in (False, True):
        model = nn.Sequential(
            EmbeddingBagCollection(tables, device="meta"), nn.Linear(2, 1, device="meta")
        )
        model = shard_modules(model, init_params=init_params)
        assert not model[0].embedding_bags["t"].weight.is_meta
        assert model[1].weight.is_meta != init_params


def test_a_collection_is_a_whole_model():
    tables = [EmbeddingBagConfig(5, 2, "t", feature_names=["f"])]
    sharded = shard_modules(
        EmbeddingBagCollection(tables), sharders=[EmbeddingBagCollectionSharder()]
    )
    assert isinstance(sharded, ShardedModule)
    assert list(sharded.state_dict()) == ["embedding_bags.t.weight"]


def test_what_nobody_shards_is_refused():
    with pytest.raises(ValueError, match=r"The module should be of a type .* Received Linear"):
        shard(nn.Linear(2, 1), row_wise())
    sharded = shard(Model().tables, row_wise())
    with pytest.raises(ValueError, match="should not be sharded yet"):
        shard(sharded, row_wise())
    with pytest.raises(ValueError, match="should not be sharded yet"):
        shard_modules(nn.Sequential(sharded))


def frozen_before(optimizer):
    """What becomes of two tables of which one is frozen before they are sharded, under every plan."""
    found = {}
    for name, kind in PLANS_OF_TWO.items():
        torch.manual_seed(1)
        options = {"optimizer": optimizer, "lr": 0.1 if optimizer else None}
        tables = EmbeddingBagCollection(
            [EmbeddingBagConfig(9, 4, each, feature_names=[each], **options) for each in "ab"]
        )
        tables.embedding_bags["a"].weight.requires_grad_(False)
        before = copy.deepcopy(tables.state_dict())
        plan = construct_module_sharding_plan(tables, {"a": kind, "b": kind}, device_type="cpu")
        model = DistributedModelParallel(tables, plan=ShardingPlan({"": plan}))
        rest = [p for p in model.parameters() if p.requires_grad]
        outer = torch.optim.SGD(rest, lr=0.1) if rest else None
        ids = KeyedJaggedTensor.from_lists({"a": [[1, 8]], "b": [[2, 7]]})
        model(ids).values().square().sum().backward()
        if outer is not None:
            outer.step()
        after = unshard(model).state_dict()
        found[name] = [each for each in before if not torch.equal(before[each], after[each])]
    return found


PLANS_OF_TWO = {
    "table_wise": table_wise(1),
    "row_wise": row_wise(),
    "column_wise": column_wise([0, 1]),
    "data_parallel": data_parallel(),
}


@pytest.mark.parametrize("optimizer", [None, "sgd", "rowwise_adagrad"])
def test_a_table_that_was_frozen_before_stays_so(optimizer):
    expected = {name: ["embedding_bags.b.weight"] for name in PLANS_OF_TWO}
    assert run(frozen_before, 2, optimizer, timeout=30) == [expected] * 2
