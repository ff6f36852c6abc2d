"""Tables under `DistributedDataParallel`: several ranks are one that has the whole batch, or are refused."""

from __future__ import annotations

import pytest

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


def difference(pooled, kinds, options, accumulate=1, skip=None, steps=4, **more):
    model = Model(pooled, kinds, "find_unused_parameters" in options, **more)
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
