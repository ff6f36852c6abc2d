"""One model with modules of every kind, sharded: copied, saved and loaded under another plan, brought back."""

from __future__ import annotations

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from tests.distributed.plans import batch, plan_of
from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_tower_sharding import (
    EmbeddingTowerCollectionSharder,
    EmbeddingTowerSharder,
)
from torchrec.distributed.embeddingbag import EmbeddingBagSharder
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.tensor_pool import TensorPoolSharder
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import (
    ObjectPoolShardingPlan,
    ObjectPoolShardingType,
    ShardingPlan,
)
from torchrec.distributed.unshard import unshard
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.tensor_pool import TensorPool
from torchrec.optim import Adam, RowWiseAdagrad, apply_optimizer_in_backward

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

ROWS = {"f1": 7, "f2": 9}
OWN = {
    "tower": EmbeddingTowerSharder(),
    "towers": EmbeddingTowerCollectionSharder(),
    "bag": EmbeddingBagSharder(),
}
SHARDERS = [*OWN.values(), TensorPoolSharder(), *get_default_sharders()]


class Over(nn.Module):
    """What a tower makes of its vectors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, pooled):
        return self.layer(pooled.values()).tanh()


def bags(name, feature, **options):
    return [EmbeddingBagConfig(ROWS[feature], 4, name, feature_names=[feature], **options)]


class Model(nn.Module):
    """Modules of every kind, side by side."""

    def __init__(self, updates_bag):
        super().__init__()
        torch.manual_seed(6)
        fused = {"optimizer": "rowwise_adagrad", "lr": 0.1}
        self.fused = FusedEmbeddingBagCollection(bags("a", "f1"), Adam, {"lr": 0.1})
        self.fp = FeatureProcessedEmbeddingBagCollection(
            EmbeddingBagCollection(bags("b", "f2", **fused), is_weighted=True),
            PositionWeightedModuleCollection({"f1": 3, "f2": 3}),
        )
        self.tower = EmbeddingTower(EmbeddingBagCollection(bags("c", "f1", **fused)), Over())
        self.towers = EmbeddingTowerCollection(
            [EmbeddingTower(EmbeddingBagCollection(bags("d", "f2")), Over())]
        )
        self.bag = nn.EmbeddingBag(7, 4, mode="sum")
        if updates_bag:
            apply_optimizer_in_backward(RowWiseAdagrad, self.bag.parameters(), {"lr": 0.1})
        self.pool = TensorPool(7, 4, torch.float32, loaded_values=torch.arange(28.0).view(7, 4))
        self.over = nn.Linear(20, 1)

    def forward(self, features):
        ids = features["f1"]
        found = [
            self.fused(features).values(),
            self.fp(features).values(),
            self.tower(features),
            self.towers(features),
            self.bag(ids.values(), ids.offsets()[:-1]),
            self.pool.lookup(torch.arange(features.stride()) % 7) / 28,
        ]
        scores = self.over(torch.cat(found, 1))
        return scores.square().sum() + scores.sin().sum()


def plan(kind):
    model, world_size = Model(False), dist.get_world_size()
    tables = {
        path: plan_of(model.get_submodule(path), kind, world_size, OWN.get(path))
        for path in ("fused", "fp", "tower", "towers", "bag")
    }
    pool = ObjectPoolShardingPlan(ObjectPoolShardingType.ROW_WISE)
    return ShardingPlan({**tables, "pool": pool})


def lived(folder, updates_bag):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = Model(updates_bag)
    batches = [[batch(ROWS, r, step) for r in range(world_size)] for step in range(3)]
    sharded = assert_same_training(model, plan("row_wise"), batches, sharders=SHARDERS)
    assert list(sharded.state_dict()) == list(model.state_dict())
    features = batch(ROWS, rank, 7)
    expected = sharded(features).detach()
    if updates_bag:
        with pytest.raises(ValueError, match="The EmbeddingBag 'bag' should be trained by an opt"):
            unshard(sharded)
    else:
        plain = unshard(sharded)
        assert {path: type(m) for path, m in plain.named_modules()} == {
            path: type(m) for path, m in model.named_modules()
        }
        torch.testing.assert_close(plain(features).detach(), expected)
    assert torch.equal(copy.deepcopy(sharded)(features), expected)
    states = {"model": sharded.state_dict(), "tables": sharded.fused_optimizer.state_dict()}
    dcp.save(states, checkpoint_id=folder)
    other = DistributedModelParallel(
        Model(updates_bag), plan=plan("column_wise"), sharders=SHARDERS
    )
    states = {"model": other.state_dict(), "tables": other.fused_optimizer.state_dict()}
    dcp.load(states, checkpoint_id=folder)
    other.load_state_dict(states["model"])
    other.fused_optimizer.load_state_dict(states["tables"])
    torch.testing.assert_close(other(features).detach(), expected)
    for trained in (sharded, other):  # and on, with the state of the optimizers
        trained(features).backward()
    torch.testing.assert_close(other(features), sharded(features))
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")
@pytest.mark.parametrize("updates_bag", [True, False])
def test_a_model_of_all_kinds_of_modules(updates_bag):
    with tempfile.TemporaryDirectory() as folder:
        assert run(lived, 2, folder, updates_bag) == [True, True]
