"""Collections with one optimizer for all of their tables, sharded: training, names, states."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.plans import batch, plan_of
from tests.distributed.ranks import run
from torchrec import EmbeddingBagConfig, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.fused_embedding import (
    FusedEmbeddingCollectionSharder,
    ShardedFusedEmbeddingCollection,
)
from torchrec.distributed.fused_embeddingbag import (
    FusedEmbeddingBagCollectionSharder,
    ShardedFusedEmbeddingBagCollection,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
)
from torchrec.optim import Adam, RowWiseAdagrad

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

ROWS = {"f1": 7, "f2": 7, "f3": 3}
TABLES = {"a": (7, ["f1", "f2"]), "b": (20, ["f2"]), "c": (3, ["f3"])}


class Model(nn.Module):
    """Tables and a layer over them."""

    def __init__(self, pooled, optimizer, device="cpu"):
        super().__init__()
        torch.manual_seed(3)
        made, config = FusedEmbeddingCollection, EmbeddingConfig
        if pooled:
            made, config = FusedEmbeddingBagCollection, EmbeddingBagConfig
        tables = [
            config(rows, 8, name, feature_names=features)
            for name, (rows, features) in TABLES.items()
        ]
        self.tables = made(tables, optimizer, {"lr": 0.1}, device=torch.device(device))
        self.over = nn.Linear(8, 1)

    def forward(self, features):
        found = self.tables(features)
        names = ["f1", "f2@a", "f2@b", "f3"]
        vectors = [found[name] for name in names]
        if not isinstance(vectors[0], torch.Tensor):
            vectors = [jagged.values() for jagged in vectors]
        scores = torch.cat([self.over(each) for each in vectors])
        return scores.square().sum() + scores.sin().sum()


def trained(pooled):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = [[batch(ROWS, r, step) for r in range(world_size)] for step in range(3)]
    for kind in ("table_wise", "row_wise", "column_wise", "grid_shard"):
        for optimizer in (torch.optim.SGD, Adam, RowWiseAdagrad):
            model = Model(pooled, optimizer)
            plan = ShardingPlan({"tables": plan_of(model.tables, kind, world_size)})
            assert {sharding.compute_kernel for sharding in plan.plan["tables"].values()} == {
                "fused"
            }
            sharded = assert_same_training(model, plan, batches)
            assert sharded.module.tables.unsharded_module_type is type(model.tables)
            mine = {name for name, _ in sharded.named_parameters()}
            assert set(sharded.fused_optimizer.params) <= mine
            assert mine == set(dict(model.named_parameters()))
    return rank


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_training_equals_one_process_under_every_plan(pooled):
    assert run(trained, 2, pooled) == [0, 1]


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_a_model_finds_its_sharder_and_meta_tables_keep_their_optimizer(pooled):
    model = DistributedModelParallel(Model(pooled, Adam, "meta"))
    sharded = ShardedFusedEmbeddingBagCollection if pooled else ShardedFusedEmbeddingCollection
    assert type(model.module.tables) is sharded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch(ROWS, 0, 0)).backward()
    tables = [name for name in before if name.startswith("tables.")]
    assert len(tables) == len(TABLES)
    assert list(model.fused_optimizer.params) == tables
    for name in tables:
        assert not torch.equal(model.state_dict()[name], before[name])
    assert float(next(iter(model.fused_optimizer.state.values()))["step"]) == 1


@pytest.mark.parametrize(
    "sharder", [FusedEmbeddingBagCollectionSharder(), FusedEmbeddingCollectionSharder()]
)
def test_what_can_be_planned(sharder):
    assert sharder.compute_kernels("row_wise", "cpu") == ["fused"]
    assert "row_wise" in sharder.sharding_types("cpu")
    assert "data_parallel" not in sharder.sharding_types("cpu")


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_copies_are_refused(pooled):
    model = Model(pooled, Adam)
    plan = ShardingPlan({"tables": plan_of(model.tables, "data_parallel", 1)})
    with pytest.raises(
        ValueError, match=r"'a' of module 'tables' should have parts .*data_parallel"
    ):
        DistributedModelParallel(model, plan=plan)
