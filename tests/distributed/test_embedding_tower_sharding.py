"""Towers whose tables are sharded: training, names, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.plans import batch, plan_of
from tests.distributed.ranks import run
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_tower_sharding import (
    EmbeddingTowerCollectionSharder,
    EmbeddingTowerSharder,
    ShardedEmbeddingTower,
    ShardedEmbeddingTowerCollection,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

ROWS = {"f1": 7, "f2": 7, "f3": 20}
SHARDERS = [EmbeddingTowerSharder(), EmbeddingTowerCollectionSharder()]


class Over(nn.Module):
    """A layer over pooled vectors, or over the sums of sequences."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 3)

    def forward(self, found):
        if hasattr(found, "length_per_key"):
            return self.layer(found.values()).tanh()
        dense = [jagged.to_padded_dense(3).sum(1) for jagged in found.values()]
        return self.layer(torch.cat(dense, 1)).tanh()


def bags(name, features, rows=7, weighted=False, **options):
    table = EmbeddingBagConfig(rows, 4, name, feature_names=features, **options)
    return EmbeddingBagCollection([table], is_weighted=weighted)


FUSED = {"optimizer": "rowwise_adagrad", "lr": 0.1}


def towers(fused):
    torch.manual_seed(4)
    options = FUSED if fused else {}
    fp = FeatureProcessedEmbeddingBagCollection(
        bags("c", ["f3"], 20, weighted=True, **options),
        PositionWeightedModuleCollection({"f3": 3}),
    )
    sequence = EmbeddingCollection([EmbeddingConfig(7, 4, "d", feature_names=["f2"], **options)])
    return [
        EmbeddingTower(bags("a", ["f1", "f2"], **options), Over(8)),
        EmbeddingTower(bags("b", ["f3"], 20, weighted=True, **options), Over(4)),
        EmbeddingTower(fp, Over(4)),
        EmbeddingTower(sequence, Over(4)),
    ]


class Model(nn.Module):
    """Towers, together or one by one, and a layer over them."""

    def __init__(self, fused, together):
        super().__init__()
        made = towers(fused)
        self.towers = EmbeddingTowerCollection(made) if together else nn.ModuleList(made)
        self.over = nn.Linear(12, 1)

    def forward(self, features):
        if isinstance(self.towers, nn.ModuleList):
            found = torch.cat([tower(features) for tower in self.towers], 1)
        else:
            found = self.towers(features, features)
        scores = self.over(found)
        return scores.square().sum() + scores.sin().sum()


def trained(together):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = [[batch(ROWS, r, step, True) for r in range(world_size)] for step in range(3)]
    for kind in ("table_wise", "row_wise", "column_wise", "grid_shard", "data_parallel", "mixed"):
        replicated = kind in ("data_parallel", "mixed")
        for fused in (False,) if replicated else (True, False):
            model = Model(fused, together)
            if together:
                tables = {
                    "towers": plan_of(model.towers, kind, world_size, SHARDERS[1]),
                }
            else:
                tables = {
                    f"towers.{n}": plan_of(tower, kind, world_size, SHARDERS[0])
                    for n, tower in enumerate(model.towers)
                }
            sharded = assert_same_training(model, ShardingPlan(tables), batches, sharders=SHARDERS)
            names = set(dict(model.named_parameters()))
            assert set(dict(sharded.named_parameters())) == names
            assert set(sharded.fused_optimizer.params) <= names
            if fused and kind == "row_wise":
                assert sharded.fused_optimizer.params
            assert isinstance(
                sharded.module.towers if together else sharded.module.towers[0],
                ShardedEmbeddingTowerCollection if together else ShardedEmbeddingTower,
            )
    return rank


@pytest.mark.parametrize("together", [True, False], ids=["collection", "one by one"])
def test_towers_train_as_in_one_process(together):
    assert run(trained, 2, together) == [0, 1]


def missing():
    model = EmbeddingTowerCollection(towers(True))
    plan = plan_of(model, "row_wise", dist.get_world_size(), SHARDERS[1])
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"": plan}), sharders=SHARDERS)
    features = batch(ROWS, 0, 0, True)
    sharded(features=features, weighted_features=None if dist.get_rank() else features)


def test_what_one_rank_lacks_is_raised_on_all():
    for error in run(missing, 2):
        assert isinstance(error, ValueError)
        assert str(error) == (
            "On rank 1: `weighted_features` should be given, as tower number 1 takes them. Received None."
        )


def alone():
    return ShardingEnv.from_local(1, 0)


def test_features_and_tables_of_towers():
    sharder = EmbeddingTowerSharder()
    made = towers(False)
    assert sharder.embedding_feature_names(made[0]) == (["f1", "f2"], [])
    assert sharder.embedding_feature_names(made[1]) == ([], ["f3"])
    together = EmbeddingTowerCollection(made)
    tables = EmbeddingTowerCollectionSharder().shardable_parameters(together)
    assert list(tables) == ["a", "b", "c", "d"]
    assert tables["c"].shape == (20, 4)


def test_tables_of_one_name_are_refused():
    twice = EmbeddingTowerCollection([towers(False)[0], towers(False)[0]])
    with pytest.raises(ValueError, match="two of the name 'a', one of them in tower number 1"):
        EmbeddingTowerCollectionSharder().shardable_parameters(twice)


def test_an_embedding_that_nobody_shards_is_refused():
    tower = EmbeddingTower(nn.EmbeddingBag(3, 4), Over(4))
    with pytest.raises(TypeError, match=r"should be of a type .* Received EmbeddingBag\."):
        EmbeddingTowerSharder().shardable_parameters(tower)


def test_tables_that_no_tower_has_and_two_batches_for_one_tower_are_refused():
    made = EmbeddingTowerCollection(towers(False))
    plan = plan_of(made, "row_wise", 1, SHARDERS[1])
    with pytest.raises(ValueError, match="should have its tables"):
        SHARDERS[1].shard(made, type(plan)({"a": plan["a"]}), alone(), module_fqn="towers")
    with pytest.raises(ValueError, match=r"at 'towers' should have their tables.*'other'"):
        SHARDERS[1].shard(made, type(plan)(plan, other=plan["a"]), alone(), module_fqn="towers")
    tower = towers(False)[0]
    sharded = SHARDERS[0].shard(tower, plan_of(tower, "row_wise", 1, SHARDERS[0]), alone())
    features = batch(ROWS, 0, 0)
    with pytest.raises(ValueError, match="`optional_features` should be None"):
        sharded(features, features)
    assert torch.equal(sharded(features).wait(), tower(features))


def test_fused_params_reach_the_tables_and_are_not_given_twice():
    sharder = EmbeddingTowerSharder(fused_params={"optimizer": "adam", "learning_rate": 0.5})
    tower = towers(False)[0]
    plan = plan_of(tower, "row_wise", 1, sharder)
    assert plan["a"].compute_kernel == "fused"
    sharded = sharder.shard(tower, plan, alone())
    assert list(sharded.fused_optimizer.params) == ["embedding.embedding_bags.a.weight"]
    inner = sharder.embedding_sharder(tower)
    with pytest.raises(ValueError, match="`fused_params` should be None, or those of the sharder"):
        ShardedEmbeddingTower(tower, plan, inner, [], [], alone(), {"learning_rate": 0.1})


def test_fused_collections_can_be_in_towers():
    tables = [EmbeddingBagConfig(7, 4, "a", feature_names=["f1"])]
    tower = EmbeddingTower(
        FusedEmbeddingBagCollection(tables, torch.optim.SGD, {"lr": 0.1}), Over(4)
    )
    assert list(EmbeddingTowerSharder().shardable_parameters(tower)) == ["a"]


class First(nn.Module):
    """A layer over the first of what a managed collection returns."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, found):
        return self.layer(found[0].values())


def managed():
    torch.manual_seed(2)
    table = EmbeddingBagConfig(40, 4, "a", feature_names=["f1"], **FUSED)
    maps = ManagedCollisionCollection(
        {"a": MCHManagedCollisionModule(40, torch.device("cpu"), LFU_EvictionPolicy(), 2)}, [table]
    )
    return EmbeddingTower(
        ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection([table]), maps), First()
    )


def over_maps(fails):
    """One map on one rank: after enough batches every id has a row of its own."""
    tower, rank = managed(), dist.get_rank()
    plan = ShardingPlan({"": plan_of(tower, "table_wise", 2, SHARDERS[0])})
    sharded = DistributedModelParallel(tower, plan=plan, sharders=SHARDERS)
    features = batch({"f1": 9}, rank, 5)
    if fails and rank:
        features = batch({"g": 9}, rank, 5)
    losses = []
    for _ in range(12):
        loss = sharded(features).square().mean()
        loss.backward()
        losses.append(float(loss))
    return losses[-1] < 0.9 * losses[0]


def test_managed_collections_can_be_in_towers():
    assert run(over_maps, 2, False) == [True, True]
    for error in run(over_maps, 2, True):
        assert isinstance(error, ValueError)
        assert "On rank 1" in str(error)
