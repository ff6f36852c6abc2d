"""Tables under `DistributedDataParallel`: several ranks are one that has the whole batch, or are refused."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.once

SCRIPT = """
import copy, warnings
from torch.nn.parallel import DistributedDataParallel
from torchrec import (
    EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor,
)
warnings.simplefilter("ignore")
world = dist.get_world_size()
KINDS = {
    "dense": {},
    "sparse": {"sparse": True},
    "sgd": {"optimizer": "sgd"},
    "adagrad": {"optimizer": "rowwise_adagrad"},
    "adam": {"optimizer": "adam"},
}
SIZES = {"t": (9, 4, ["a", "b"]), "u": (5, 3, ["b"]), "v": (6, 2, ["c"])}


class Model(nn.Module):
    def __init__(self, pooled, kinds, spare=False, calls=1):
        super().__init__()
        torch.manual_seed(3)
        config = EmbeddingBagConfig if pooled else EmbeddingConfig
        collection = EmbeddingBagCollection if pooled else EmbeddingCollection
        self.tables = collection(tables=[
            config(rows, dim, name, feature_names=features, **KINDS[kind])
            for kind, (name, (rows, dim, features)) in zip(kinds, SIZES.items())
        ])
        self.over = nn.LazyLinear(1)
        self.pooled, self.calls = pooled, calls
        if spare:
            self.spare = nn.Linear(1, 1)
        self(batch(0, 0))

    def forward(self, kjt, skip=False):
        if skip:  # the tables are not used
            return self.over(torch.ones(1, self.over.in_features or 1)).sum()
        loss = 0
        for call in range(self.calls):
            out = self.tables(kjt)
            if self.pooled:
                hidden = out.values()
            else:
                parts = [out[k] for k in out]
                hidden = torch.cat([jt.values().sum(0, keepdim=True) for jt in parts], 1)
            loss = loss + (call + 1) * self.over(hidden).sin().sum()
        return loss


def batch(step, number):
    # Uneven: some ranks have nothing for a feature.
    generator = torch.Generator().manual_seed(100 * step + number)
    lists = {}
    for key, rows in (("a", 9), ("b", 5), ("c", 6)):
        lengths = torch.randint(0, 4, (number + 2,), generator=generator).tolist()
        if number == 1 and key == "b":
            lengths = [0] * len(lengths)
        lists[key] = [torch.randint(rows, (n,), generator=generator).tolist() for n in lengths]
    return KeyedJaggedTensor.from_lists(lists)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def difference(pooled, kinds, options, accumulate=1, skip=None, steps=4, model=None, **more):
    model = model or Model(pooled, kinds, "find_unused_parameters" in options, **more)
    alone = copy.deepcopy(model)
    around = DistributedDataParallel(model, **options)
    optimizer, its = optimizer_of(model), optimizer_of(alone)
    for step in range(steps):
        optimizer.zero_grad()
        its.zero_grad()
        for part in range(accumulate):
            number = accumulate * step + part
            for r in range(world):
                loss = alone(batch(number, r), skip == step and r == 0) / world
                loss.backward()
            def forward_backward():
                around(batch(number, rank), skip == step and rank == 0).backward()
            if part < accumulate - 1:
                with around.no_sync():
                    forward_backward()
            else:
                forward_backward()
        optimizer.step()
        its.step()
    return max(
        (a - b).abs().max().item() for a, b in zip(model.parameters(), alone.parameters())
    )


result = {}
"""


PLAIN = (
    SCRIPT
    + """
MIXES = [["dense", "sparse", "adagrad"], ["adam", "dense", "sgd"], ["sparse", "adam", "dense"]]
for pooled in (True, False):
    for kinds in MIXES[: 3 if world == 2 else 1]:
        name = f"{pooled} {'-'.join(kinds)} "
        unused = {"find_unused_parameters": True}
        result[name + "as it is"] = difference(pooled, kinds, {})
        result[name + "two look-ups"] = difference(pooled, kinds, {"static_graph": True}, calls=2)
        result[name + "accumulated"] = difference(pooled, kinds, {}, accumulate=3, steps=2)
        result[name + "unused"] = difference(pooled, kinds, unused)
        result[name + "accumulated and unused"] = difference(pooled, kinds, unused, 2, steps=2)
    result[f"{pooled} not used in one step"] = difference(
        pooled, ["dense"] * 3, {"find_unused_parameters": True}, skip=1
    )
"""
)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_are_one_that_has_the_whole_batch(run_ranks, world: int) -> None:
    for result in run_ranks(PLAIN, world):
        assert len(result) == (32 if world == 2 else 12)
        assert {name: far for name, far in result.items() if not far < 1e-5} == {}


FUSED = (
    SCRIPT
    + """
KINDS["fused"] = {"optimizer": "sgd", "lr": 0.1}
for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
    for pooled in (True, False):
        around = DistributedDataParallel(Model(pooled, ["dense", "fused", "adagrad"]), **options)
        try:
            around(batch(0, rank))
        except RuntimeError as error:
            result[f"{pooled} {list(options)}"] = str(error)
"""
)


def test_fused_tables_are_refused_with_the_ways_out(run_ranks) -> None:
    results = run_ranks(FUSED)
    for result in results:
        assert len(result) == 6
        for said in result.values():
            assert said.startswith("Table 'u' should have no `lr`, so that the ranks add its grad")
            assert "shard it over the ranks" in said


MODELS = (
    SCRIPT
    + """
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN

def tables(kind):
    return EmbeddingBagCollection(tables=[
        EmbeddingBagConfig(rows, 4, name, feature_names=features, **KINDS[kind])
        for name, (rows, _, features) in SIZES.items()
    ])

MODELS = {
    "dlrm": lambda kind: DLRM(tables(kind), 3, [5, 4], [6, 1]),
    "dcn": lambda kind: DLRM_DCN(tables(kind), 3, [5, 4], [6, 1], 2, 2),
    "deepfm": lambda kind: SimpleDeepFMNN(3, tables(kind), 5, 4),
}

class Loss(nn.Module):
    def __init__(self, name, kind):
        super().__init__()
        torch.manual_seed(1)
        self.model = MODELS[name](kind)

    def forward(self, kjt, skip):
        size = kjt.stride()
        dense = torch.arange(3.0 * size).view(size, 3) / 10
        return self.model(dense, kjt).square().sum()

for name in MODELS:
    for kind in ("sparse", "adagrad"):
        result[name, kind] = difference(True, [], {}, model=Loss(name, kind), steps=3)
result = {" ".join(key): value for key, value in result.items()}
"""
)


def test_models_of_ranks(run_ranks) -> None:
    for result in run_ranks(MODELS):
        assert len(result) == 6
        assert {name: far for name, far in result.items() if not far < 1e-5} == {}


MAPS = (
    SCRIPT
    + """
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule,
)

torch.manual_seed(0)
tables = [
    EmbeddingBagConfig(6, 2, name, feature_names=[feature], sparse=True)
    for name, feature in (("plain", "a"), ("t", "b"))
]
mapped = MCHManagedCollisionModule(6, torch.device("cpu"), LFU_EvictionPolicy(), 1)
maps = ManagedCollisionCollection({"plain": None, "t": mapped}, tables)
module = ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection(tables=tables), maps)
kjt = KeyedJaggedTensor.from_lists({"a": [[rank]], "b": [[100 + rank]]})
around = DistributedDataParallel(module)
try:
    around(kjt)
except RuntimeError as error:
    result["learning"] = str(error)
maps.eval()
out, _ = around(kjt)
out.values().sum().backward()
result["eval"] = module._embedding_module.embedding_bags["plain"].weight.grad.to_dense()[:3, 0].tolist()
DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
    module, [n for n, _ in [*module.named_parameters(), *module.named_buffers()] if "plain" not in n]
)
maps.train()
out, _ = DistributedDataParallel(module)(kjt)
out.values().sum().backward()
result["left out"] = mapped.rows_of(torch.tensor([100, 101])).tolist()
"""
)


def test_maps_that_learn_on_each_rank_are_refused(run_ranks) -> None:
    results = run_ranks(MAPS)
    for rank, result in enumerate(results):
        assert result["learning"].startswith("The map of table 't' should not learn within Distr")
        assert result["eval"] == [0.5, 0.5, 0.0]
        assert [row >= 0 for row in result["left out"]] == [rank == 0, rank == 1]


SHARDED = (
    SCRIPT
    + """
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

KINDS["fused"] = {"optimizer": "sgd", "lr": 0.1}
device = torch.device("cpu")
WRAPPERS = {
    "views": lambda m: FullyShardedDataParallel(m, device_id=device),
    "parameters": lambda m: FullyShardedDataParallel(m, use_orig_params=True, device_id=device),
    "in place": fully_shard,
}

def whole(module):
    if isinstance(module, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(module):
            return [p.detach().clone() for p in module.parameters()]
    return [p.full_tensor().detach() for p in module.parameters()]

def sharded(wrapper, kinds):
    model = Model(True, kinds)
    alone = copy.deepcopy(model)
    around = WRAPPERS[wrapper](model)
    optimizer, its = optimizer_of(around), optimizer_of(alone)
    for step in range(3):
        optimizer.zero_grad()
        its.zero_grad()
        for r in range(world):
            (alone(batch(step, r)) / world).backward()
        around(batch(step, rank)).backward()
        optimizer.step()
        its.step()
    return max((a - b).abs().max().item() for a, b in zip(whole(around), alone.parameters()))

for wrapper, kind in (
    ("views", "dense"), ("parameters", "dense"), ("parameters", "sparse"), ("in place", "dense"),
    ("parameters", "adagrad"), ("parameters", "fused"), ("in place", "fused"),
):
    try:
        result[f"{wrapper} {kind}"] = sharded(wrapper, ["dense", kind])
    except RuntimeError as error:
        result[f"{wrapper} {kind}"] = str(error)
"""
)


def test_tables_that_are_cut_up_are_right_or_refused(run_ranks) -> None:
    for result in run_ranks(SHARDED):
        for right in ("parameters dense", "parameters sparse", "in place dense"):
            assert result.pop(right) < 1e-5
        wanted = {
            "views dense": "The weights of tables should be parameters.",
            "parameters adagrad": "Table 'u' should have no `optimizer`, or be left out of Fully",
            "parameters fused": "Table 'u' should have no `optimizer`, or be left out of Fully",
            "in place fused": "Table 'u' should have its memory until the end of the backward pass",
        }
        assert result.keys() == wanted.keys()
        for name, said in wanted.items():
            assert result[name].startswith(said)


COMPILED = (
    SCRIPT
    + """
KINDS["fused"] = {"optimizer": "sgd", "lr": 0.1}
WRAPPERS = {
    "inside": lambda m: DistributedDataParallel(torch.compile(m, backend="eager")),
    "outside": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
}
for name, wrap in WRAPPERS.items():
    try:
        wrap(Model(True, ["dense", "fused"]))(batch(0, rank))
    except RuntimeError as error:
        result[name] = str(error)
    torch._dynamo.reset()
"""
)


def test_compiled_models_with_fused_tables_are_refused(run_ranks) -> None:
    for result in run_ranks(COMPILED):
        assert set(result) == {"inside", "outside"}
        assert all("Table 'u' should have no `lr`, so that" in said for said in result.values())


ORDINARY = (
    SCRIPT
    + """
model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
apply_optimizer_in_backward(torch.optim.SGD, model[0].parameters(), {"lr": 0.1})
around = DistributedDataParallel(model)
try:
    around(torch.ones(1, 2) * (rank + 1)).sum().backward()
except RuntimeError as error:
    result["inside"] = str(error)
del around
model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
for param in model.parameters():
    nn.init.ones_(param)
apply_optimizer_in_backward(torch.optim.SGD, [model[0].bias], {"lr": 0.1})
DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.bias"])
around = DistributedDataParallel(model)
around(torch.ones(1, 2) * (rank + 1)).sum().backward()
result["left out"] = model[0].bias.tolist(), model[0].weight.grad[0].tolist()
"""
)


def test_ordinary_parameters_that_the_backward_pass_updates_are_refused(run_ranks) -> None:
    for result in run_ranks(ORDINARY):
        assert "should have no optimizer in the backward pass, or be left" in result["inside"]
        assert result["inside"].startswith(
            ("Parameter '0.weight' of shape (2, 2)", "Parameter '0.bias' of shape (2,)")
        )
        bias, grad = result["left out"]
        assert bias == pytest.approx([0.9, 0.9])
        assert grad == [1.5, 1.5]  # the mean of the ranks
