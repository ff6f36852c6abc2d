"""Modules sharded without a model around them: `shard` and `shard_modules`."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import Model, batch, plan_of
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.shard import shard, shard_modules
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardedModule

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
