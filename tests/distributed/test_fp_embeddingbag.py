"""Collections behind feature processors, sharded: weights of tables and of processors, names, errors."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.plans import batch, plan_of
from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import (
    DistributedModelParallel,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fp_embeddingbag import (
    FeatureProcessedEmbeddingBagCollectionSharder,
    ShardedFeatureProcessedEmbeddingBagCollection,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.train_pipeline import (
    TrainPipelineFusedSparseDist,
    TrainPipelineSemiSync,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.feature_processor_ import (
    FeatureProcessor,
    PositionWeightedModule,
    PositionWeightedModuleCollection,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import JaggedTensor

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

ROWS = {"f1": 7, "f2": 7, "f3": 20}


class Scale(FeatureProcessor):
    """Weighs each id by one number that is learned, in a parameter that is called as those of tables are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.5]]))

    def reset_parameters(self):
        nn.init.constant_(self.weight, 1.5)

    def forward(self, features):
        weights = self.weight.view(1).expand(len(features.values()))
        return JaggedTensor(features.values(), weights, features.lengths(), features.offsets())


def make(collection, fused, device="cpu"):
    torch.manual_seed(5)
    options = {"optimizer": "rowwise_adagrad", "lr": 0.1}
    tables = [
        EmbeddingBagConfig(7, 8, "a", feature_names=["f1", "f2"], **(options if fused else {})),
        EmbeddingBagConfig(
            20, 4, "b", feature_names=["f3"], pooling=PoolingType.MEAN, **(options if fused else {})
        ),
    ]
    if collection:
        processors = PositionWeightedModuleCollection({"f1": 3, "f2": 3, "f3": 3}, device)
    else:
        processors = {
            "f1": PositionWeightedModule(3, device),
            "f2": Scale().to(device),
            "f3": PositionWeightedModule(3, device),
        }
    ebc = EmbeddingBagCollection(tables, is_weighted=True, device=torch.device(device))
    return FeatureProcessedEmbeddingBagCollection(ebc, processors)


class Model(nn.Module):
    """Tables behind processors, with a layer over them, or bare."""

    def __init__(self, collection, fused, device="cpu"):
        super().__init__()
        self.fp = make(collection, fused, device)
        self.over = nn.Linear(20, 1)

    def forward(self, features):
        scores = self.over(self.fp(features).values())
        return scores.square().sum() + scores.sin().sum()


def trained():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = [[batch(ROWS, r, step) for r in range(world_size)] for step in range(3)]
    for kind in ("table_wise", "row_wise", "column_wise", "grid_shard", "data_parallel", "mixed"):
        replicated = kind in ("data_parallel", "mixed")
        for collection, fused in ((True, not replicated), (False, False)):
            model = Model(collection, fused)
            plan = ShardingPlan({"fp": plan_of(model.fp, kind, world_size)})
            exact = FeatureProcessedEmbeddingBagCollectionSharder(
                EmbeddingBagCollectionSharder(exact=True)
            )
            for sharders in (None, [exact]):
                assert_same_training(model, plan, batches, sharders=sharders)
    return rank


def test_tables_and_processors_train_as_in_one_process():
    assert run(trained, 2) == [0, 1]


def bare():
    """A collection that is the whole model: what it returns goes straight through the data-parallel wrapper."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain = make(True, True)
    plan = ShardingPlan({"": plan_of(plain, "row_wise", world_size)})
    sharded = DistributedModelParallel(copy.deepcopy(plain), plan=plan)
    names = set(dict(plain.named_parameters()))
    assert set(dict(sharded.named_parameters())) == names == set(sharded.state_dict())
    assert set(sharded.fused_optimizer.params) < names
    assert isinstance(sharded.module, ShardedFeatureProcessedEmbeddingBagCollection)
    for step in range(2):
        batches = [batch(ROWS, r, step) for r in range(world_size)]
        plain.zero_grad()
        sharded.zero_grad()
        (sum(plain(each).values().square().sum() for each in batches) / world_size).backward()
        sharded(batches[rank]).values().square().sum().backward()
        for (name, param), (_, other) in zip(
            plain.named_parameters(), sharded.named_parameters(), strict=True
        ):
            if "position" in name:
                torch.testing.assert_close(other.grad, param.grad)
                assert param.grad.abs().sum() > 0
    return rank


def test_processors_of_a_bare_collection_have_the_mean_gradient():
    assert run(bare, 2) == [0, 1]


class Scored(Model):
    """Returns a loss and scores, as pipelines want it."""

    def forward(self, features):
        scores = self.over(self.fp(features).values())
        return scores.square().sum(), scores


def runs_out(collection):
    """A rank that has run out of batches takes part with batches of no samples, processors too."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = Scored(collection, True)
    plan = ShardingPlan({"fp": plan_of(model.fp, "row_wise", world_size)})
    sharded = DistributedModelParallel(copy.deepcopy(model), plan=plan)
    optimizers = [
        torch.optim.SGD(
            [param for _, param in in_backward_optimizer_filter(each.named_parameters())], 0.1
        )
        for each in (model, sharded)
    ]
    pipeline = TrainPipelineSparseDist(sharded, optimizers[1], torch.device("cpu"))
    data = iter([batch(ROWS, rank, step) for step in range(2 + rank)])
    with suppress(StopIteration):
        while True:
            pipeline.progress(data)
    for step in range(3):
        batches = [batch(ROWS, r, step) for r in range(world_size) if step < 2 + r]
        optimizers[0].zero_grad()
        (sum(model(each)[0] for each in batches) / world_size).backward()
        optimizers[0].step()
    features = batch(ROWS, rank, 9)
    torch.testing.assert_close(sharded(features)[1], model(features)[1])
    return True


@pytest.mark.parametrize("collection", [True, False], ids=["collection", "by feature"])
def test_ranks_that_run_out_of_batches(collection):
    assert run(runs_out, 2, collection) == [True, True]


def too_long():
    model = Model(True, True)
    plan = ShardingPlan({"fp": plan_of(model.fp, "row_wise", dist.get_world_size())})
    sharded = DistributedModelParallel(model, plan=plan)
    bags = {"f1": [[1]], "f2": [[1]], "f3": [[1, 2, 3, 4] if dist.get_rank() else [1]]}
    sharded(KeyedJaggedTensor.from_lists(bags))


def test_what_a_processor_refuses_is_raised_on_all_ranks():
    for error in run(too_long, 2):
        assert isinstance(error, ValueError)
        assert str(error).startswith("On rank 1: ")
        assert "f3" in str(error)


@pytest.mark.parametrize("collection", [True, False])
def test_one_rank_on_meta(collection):
    model = DistributedModelParallel(Model(collection, True, "meta"))
    plain = Model(collection, True)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    features = batch(ROWS, 0, 0)
    assert torch.equal(model(features), plain(features))
    weighted = model.module.fp.apply_feature_processors_to_kjt_list(KJTList([features]))
    expected = plain.fp.split()[0](features).weights()
    assert torch.equal(weighted[0].weights(), expected)


def test_only_tables_are_shardable():
    sharder = FeatureProcessedEmbeddingBagCollectionSharder()
    assert list(sharder.shardable_parameters(make(False, False))) == ["a", "b"]
    given = EmbeddingBagCollectionSharder(fused_params={"learning_rate": 0.5})
    assert FeatureProcessedEmbeddingBagCollectionSharder(given).fused_params == {
        "learning_rate": 0.5
    }


PIPELINES = (
    TrainPipelineBase,
    TrainPipelineFusedSparseDist,
    TrainPipelineSemiSync,
    TrainPipelineSparseDist,
)


def positions():
    """A model whose processors give weights alone, one a feature."""
    model = Scored(False, True)
    processors = {key: PositionWeightedModule(3) for key in ROWS}
    model.fp = FeatureProcessedEmbeddingBagCollection(make(False, True).table_store(), processors)
    return model


def ahead(kind):
    """Train one step behind the other, and with ids sent ahead; return what the pipeline says of it."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    said = []
    for number, model in enumerate((Scored(True, True), positions(), Scored(False, True))):
        found = []
        for pipeline in PIPELINES if number == 0 else PIPELINES[::3]:
            plan = ShardingPlan({"fp": plan_of(model.fp, kind, world_size)})
            sharded = DistributedModelParallel(copy.deepcopy(model), plan=plan)
            dense = [p for _, p in in_backward_optimizer_filter(sharded.named_parameters())]
            # Nothing is looked up early, which another one would do.
            early = {"start_batch": 0} if pipeline is TrainPipelineSemiSync else {}
            steps = pipeline(sharded, torch.optim.Adam(dense, 0.1), torch.device("cpu"), **early)
            data = iter([batch(ROWS, rank, step) for step in range(4 + rank)])
            outputs = [steps.progress(data).detach() for _ in range(4 + rank)]
            state = [p.detach() for p in sharded.parameters()]
            with suppress(StopIteration):
                while True:
                    steps.progress(data)
            found.append([*outputs, *state])
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))
        (call,) = steps.report().exchanges
        said.append((call.ahead > 0, list(call.not_ahead)))
    return said


@pytest.mark.parametrize(
    "kind",
    [
        "row_wise",
        pytest.param("table_wise", marks=pytest.mark.slow),
        pytest.param("grid_shard", marks=pytest.mark.slow),
        pytest.param("mixed", marks=pytest.mark.slow),
    ],
)
def test_ids_go_ahead_of_weights_by_position(kind):
    first = "was not known ahead in the first steps"
    trained = "sends what follows from parameters, which the step before trains"
    expected = [(True, [first]), (True, [first]), (False, [trained])]
    assert run(ahead, 2, kind) == [expected] * 2


def too_long_ahead():
    model = Scored(True, True)
    plan = ShardingPlan({"fp": plan_of(model.fp, "row_wise", dist.get_world_size())})
    sharded = DistributedModelParallel(model, plan=plan)
    dense = [p for _, p in in_backward_optimizer_filter(sharded.named_parameters())]
    steps = TrainPipelineSparseDist(sharded, torch.optim.SGD(dense, 0.1), torch.device("cpu"))
    last = {"f1": [[1]], "f2": [[1]], "f3": [[1, 2, 3, 4] if dist.get_rank() else [1]]}
    data = iter(
        [*(batch(ROWS, dist.get_rank(), n) for n in range(3)), KeyedJaggedTensor.from_lists(last)]
    )
    for _ in range(3):
        steps.progress(data)
    steps.progress(data)


def test_what_a_processor_refuses_after_ids_went_ahead_is_raised_on_all_ranks():
    for error in run(too_long_ahead, 2):
        assert isinstance(error, ValueError)
        assert str(error).startswith("On rank 1: ")
        assert "f3" in str(error)
