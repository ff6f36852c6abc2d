"""`torch.compile` of sharded models: layers become one graph, tables stay between graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch, fused, plan_of, whole_parts
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

KINDS = {"user": ("row_wise",), "item": ("table_wise", 0)}


class Over(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, values):
        return self.layers(values)


def sharded():
    model = fused()
    model.over = Over()
    return DistributedModelParallel(model, plan=plan_of(model, **KINDS))


def trained(model, call):
    dense = torch.optim.SGD([p for name, p in model.named_parameters() if "over" in name], 0.1)
    losses = []
    for number in range(4):
        dense.zero_grad()
        loss = call(batch(model.rank, number, size=4 + number % 2))[0]
        loss.backward()
        dense.step()
        losses.append(loss.item())
    return losses, {name: part for name, (_, part) in whole_parts(model)}


def same(one, other):
    names = one[1].keys() == other[1].keys()
    return names and one[0] == other[0] and all(torch.equal(one[1][n], other[1][n]) for n in one[1])


def compiled():
    plain = sharded()
    expected = trained(plain, plain)
    found = {}
    for what in ("the layers", "the model"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = sharded()
        call = model
        if what == "the layers":
            model.module.over.compile(backend=counter, fullgraph=True)
        else:
            call = torch.compile(model, backend=counter)
        found[what] = same(trained(model, call), expected), counter.frame_count
    return found


@pytest.mark.slow
def test_a_compiled_model_trains_as_one_that_is_not():
    # Twice: batches of another size come, and sizes are variables from then on.
    assert run(compiled, 2) == [{"the layers": (True, 2), "the model": (True, 2)}] * 2


# The compiler asks each tensor that comes into a graph for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_sequences_come_as_values_to_a_graph():
    torch._dynamo.reset()
    table = EmbeddingConfig(10, 4, "t", feature_names=["f"])
    model = nn.Sequential(EmbeddingCollection([table]))
    sharded = DistributedModelParallel(model)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter)
    def scores(features):
        return sharded(features)["f"].values().sum(1)

    features = KeyedJaggedTensor.from_lists({"f": [[1, 2], [9]]})
    assert torch.equal(scores(features), sharded(features)["f"].values().sum(1))
    assert counter.frame_count == 1


# The compiler asks each tensor that comes into a graph for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_collections_behind_maps_come_as_values_to_a_graph():
    torch._dynamo.reset()
    table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
    policy = LFU_EvictionPolicy()
    maps = {"t": MCHManagedCollisionModule(10, torch.device("cpu"), policy, 2)}
    managed = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection([table]), ManagedCollisionCollection(maps, [table])
    )
    sharded = DistributedModelParallel(nn.Sequential(managed)).eval()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter)
    def scores(features):
        return sharded(features)[0].values().sum(1)

    features = KeyedJaggedTensor.from_lists({"f": [[100, 2], [900]]})
    assert torch.equal(scores(features), sharded(features)[0].values().sum(1))
    assert counter.frame_count == 1
