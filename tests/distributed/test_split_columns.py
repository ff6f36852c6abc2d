"""Tables whose columns lie on several ranks, updated by rules that look at a row as a whole."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def decayed(frozen):
    """Weights of two tables, one frozen perhaps, after a step whose rule moves rows that no id chose."""
    options = {"weight_decay": 0.5, "optimizer_options": {"lazy": False}}
    tables = [
        EmbeddingBagConfig(
            3,
            4,
            name,
            feature_names=["f"],
            optimizer="rowwise_adagrad",
            lr=0.1,
            enable_grad=name not in frozen,
            init_fn=torch.nn.init.ones_,
            **options,
        )
        for name in ("a", "b")
    ]
    model = EmbeddingBagCollection(tables)
    plan = construct_module_sharding_plan(
        model, {name: column_wise([0, 1]) for name in ("a", "b")}, device_type="cpu"
    )
    model = DistributedModelParallel(model, plan=ShardingPlan({"": plan}))
    features = KeyedJaggedTensor.from_lists({"f": [[dist.get_rank()]]})
    model(features).values().sum().backward()
    return {name: bool((param == 1).all()) for name, param in model.module.named_parameters()}


def test_a_frozen_table_stays_as_it_is():
    a, b = "embedding_bags.a.weight", "embedding_bags.b.weight"
    assert run(decayed, 2, ()) == [{a: False, b: False}] * 2
    assert run(decayed, 2, ("a",)) == [{a: True, b: False}] * 2
