"""Input of unusual form, and tables of unusual shapes, on two ranks against one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.fixture(scope="module")
def workers():
    with Workers() as workers:
        yield workers


# Fewer rows than ranks, dims of 1, a feature in two tables.
TABLES = {"one": (1, 1, ["x"]), "two": (2, 3, ["y"]), "long": (9, 1, ["z", "y"])}
ROWS = {"x": 1, "y": 2, "z": 9}
KINDS = {
    "table_wise": lambda dim: table_wise(1),
    "row_wise": lambda dim: row_wise(),
    "column_wise": lambda dim: column_wise(
        [0, 1] if dim == 3 else [1], [1, 2] if dim == 3 else [1]
    ),
}


def make(pooled, optimizer="adagrad"):
    torch.manual_seed(4)
    options = {"optimizer": optimizer, "lr": 0.1}
    if pooled:
        return EmbeddingBagCollection(
            [
                EmbeddingBagConfig(rows, dim, name, feature_names=features, **options)
                for name, (rows, dim, features) in TABLES.items()
            ]
        )
    return EmbeddingCollection(
        [
            EmbeddingConfig(rows, 1, name, feature_names=features, **options)
            for name, (rows, _, features) in TABLES.items()
        ]
    )


def features_of(rank, step, keys=("x", "y", "z"), dtype=torch.int64, size=3):
    """The same ids of each feature, whatever the order of the keys."""
    lengths, values = [], []
    for key in keys:
        generator = torch.Generator().manual_seed(100 * rank + 10 * step + ord(key))
        lengths.append(torch.randint(0, 3, (size,), generator=generator))
        number = int(lengths[-1].sum())
        values.append(torch.randint(0, ROWS.get(key, 50), (number,), generator=generator))
    return KeyedJaggedTensor(list(keys), torch.cat(values).to(dtype), lengths=torch.cat(lengths))


def every_second(tensor):
    """The same numbers, not one behind the other in memory."""
    return torch.stack([tensor, tensor - 1], dim=1)[:, 0]


def not_contiguous(rank, step):
    given = features_of(rank, step)
    return KeyedJaggedTensor(
        given.keys(), every_second(given.values()), lengths=every_second(given.lengths())
    )


def by_offsets(rank, step):
    given = features_of(rank, step)
    return KeyedJaggedTensor(given.keys(), given.values(), offsets=given.offsets())


def weights_nobody_asked_for(rank, step):
    given = features_of(rank, step)
    weights = torch.rand(len(given.values()), requires_grad=True)
    return KeyedJaggedTensor(given.keys(), given.values(), weights, lengths=given.lengths())


INPUTS = {
    "int32": lambda rank, step: features_of(rank, step, dtype=torch.int32),
    "int32 on one rank": lambda rank, step: features_of(
        rank, step, dtype=(torch.int32, torch.int64)[rank]
    ),
    "not contiguous": not_contiguous,
    "offsets": by_offsets,
    "keys in another order": lambda rank, step: features_of(rank, step, keys="zxy"),
    "more keys": lambda rank, step: features_of(rank, step, keys="axbyzc"),
    "other keys on each rank": lambda rank, step: features_of(
        rank, step, keys=("ayzx", "zyx")[rank]
    ),
    "permuted": lambda rank, step: features_of(rank, step, keys="axbyz").permute([4, 3, 1]),
    "split": lambda rank, step: features_of(rank, step, keys="axyzb").split([1, 3, 1])[1],
    "no samples": lambda rank, step: features_of(rank, step, size=0),
    "no samples on one rank": lambda rank, step: features_of(rank, step, size=3 * rank),
    "weights": weights_nobody_asked_for,
}


def vectors(module, features):
    found = module(features)
    if hasattr(found, "length_per_key"):
        return [found.values()]
    return [found[name].values() for name in sorted(found)]


def trains_alike(pooled, kind):
    """Every kind of input, on one model, so that what one leaves behind shows in the next."""
    rank = dist.get_rank()
    plain, twin = make(pooled), make(pooled)
    dims = {name: dim if pooled else 1 for name, (_, dim, _) in TABLES.items()}
    plan = construct_module_sharding_plan(
        twin, {name: KINDS[kind](dim) for name, dim in dims.items()}, device_type="cpu"
    )
    model = DistributedModelParallel(twin, plan=ShardingPlan({"": plan}))
    for step, (name, make_input) in enumerate(INPUTS.items()):
        batches = [make_input(r, step) for r in range(2)]
        expected = [vectors(plain, each) for each in batches]
        found = vectors(model, batches[rank])
        for received, wanted in zip(found, expected[rank], strict=True):
            assert torch.allclose(received, wanted, atol=1e-6), name
        losses = [sum((v.sin() ** 2).sum() for v in each) for each in expected]
        (sum(losses) / 2).backward()
        sum((v.sin() ** 2).sum() for v in found).backward()
        with torch.no_grad():
            for received, wanted in zip(
                vectors(model, batches[rank]), vectors(plain, batches[rank]), strict=True
            ):
                assert torch.allclose(received, wanted, atol=1e-6), name
    for name, whole in plain.state_dict().items():
        for part in model.state_dict()[name].local_shards():
            (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
            torch.testing.assert_close(
                part.tensor, whole[row : row + rows, column : column + columns]
            )
    return True


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
@pytest.mark.parametrize("kind", KINDS)
def test_input_of_any_form_trains_as_in_one_process(workers, kind, pooled):
    assert workers.run(trains_alike, 2, pooled, kind) == [True, True]


def no_tables(pooled):
    collection = EmbeddingBagCollection([]) if pooled else EmbeddingCollection([])
    model = torch.nn.Sequential(collection, torch.nn.Identity())
    plan = ShardingPlan({"0": construct_module_sharding_plan(collection, {}, device_type="cpu")})
    model = DistributedModelParallel(model, plan=plan)
    found = model(features_of(dist.get_rank(), 0))
    assert list(model.state_dict()) == []
    return found.values().shape if pooled else len(found)


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_a_collection_may_have_no_tables(workers, pooled):
    assert workers.run(no_tables, 2, pooled) == [torch.Size([3, 0]) if pooled else 0] * 2
