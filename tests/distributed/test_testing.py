"""What `assert_same_training` compares, and how it says what differs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


class Model(nn.Module):
    def __init__(self, lr=0.1):
        super().__init__()
        torch.manual_seed(2)
        options = {"optimizer": "rowwise_adagrad", "lr": lr}
        self.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(9, 4, "fused", feature_names=["f"], **options),
                EmbeddingBagConfig(9, 4, "plain", feature_names=["g"]),
            ]
        )
        self.over = nn.Linear(8, 1)

    def forward(self, features):
        pooled = self.tables(features)
        return self.over(pooled.values()).square().mean(), {"pooled": pooled}


class Sharder(EmbeddingBagCollectionSharder):
    """Does something to what it has sharded."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def shard(self, *args, **kwargs):
        sharded = super().shard(*args, **kwargs)
        self._change(sharded)
        return sharded


def no_change(collection):
    pass


def weights_of_one_rank(collection):
    if dist.get_rank() == 1:
        collection.embedding_bags["fused"].weight.data[3] += 1


def states(collection):
    for state in collection.fused_optimizer.state_dict()["state"].values():
        for shard in state["sum"].local_shards():
            shard.tensor.fill_(1)


def train(change, lr, optimizer=None):
    model, world_size = Model(lr), dist.get_world_size()
    tables = construct_module_sharding_plan(
        model.tables, {"fused": row_wise(), "plain": data_parallel()}, device_type="cpu"
    )
    batches = [
        [
            KeyedJaggedTensor.from_lists({"f": [[rank], [step, 8]], "g": [[], [rank, step]]})
            for rank in range(world_size)
        ]
        for step in range(2)
    ]
    before = [param.clone() for param in model.parameters()]
    plan = ShardingPlan({"tables": tables})
    sharders = [Sharder(change)]
    sharded = assert_same_training(
        model, plan, batches, sharders=sharders, lr=0.1, optimizer=optimizer
    )
    for param, same in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, same)  # the model is left as it is
    return sharded.module.over.weight.detach()


def test_the_rest_is_trained_by_the_optimizer_that_is_asked_for():
    by_sgd, by_adam = run(train, 2, no_change, 0.1), run(train, 2, no_change, 0.1, torch.optim.Adam)
    for found in (by_sgd, by_adam):
        assert torch.equal(*found)
    assert (by_adam[0] - Model().over.weight).abs().max() < 0.0021  # two steps of at most its rate
    assert (by_sgd[0] - by_adam[0]).abs().max() > 1e-3


def test_all_ranks_are_told_what_differs_on_one_of_them():
    errors = run(train, 2, weights_of_one_rank, 0.1)
    assert {type(error) for error in errors} == {AssertionError}
    assert len({str(error) for error in errors}) == 1
    assert str(errors[0]).startswith(
        "The loss of step 0 on rank 0 should be as in one process. Received others, by up to"
    )


def test_states_are_compared():
    errors = run(train, 2, states, 0.0)
    assert {type(error) for error in errors} == {AssertionError}
    assert str(errors[0]).startswith(
        "State 'sum' of 'tables.embedding_bags.fused.weight', from (0, 0) on, on rank 0 should be as in one process."
    )


def other_outputs():
    class Reading(Model):
        def forward(self, features):
            loss, _ = super().forward(features)
            # No model should: what a rank returns depends on who it is.
            return loss, features.values() * (1 + isinstance(self.tables, EmbeddingBagCollection))

    model = Reading()
    tables = construct_module_sharding_plan(
        model.tables, {name: table_wise(0) for name in ("fused", "plain")}, device_type="cpu"
    )
    batch = KeyedJaggedTensor.from_lists({"f": [[1]], "g": [[2]]})
    assert_same_training(model, ShardingPlan({"tables": tables}), [[batch]])


def test_outputs_beside_the_loss_are_compared():
    [error] = run(other_outputs, 1)
    assert str(error) == (
        "Output 1 of step 0 on rank 0 should be as in one process. Received others, by up to 2."
    )
