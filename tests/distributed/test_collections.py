"""Sharded collections against one process: outputs, weights and states, under every plan."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.layout import column_wise, grid_shard, row_wise, spec_of, table_wise
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.errors import IdOutOfRangeError
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

# Name -> rows, dim, features. A feature in two tables, two features in one, dims that no block of 16 divides.
TABLES = {"a": (7, 8, ["f1", "f2"]), "b": (20, 5, ["f2"]), "c": (3, 12, ["f3"])}
FEATURES = {"f1": 7, "f2": 7, "f3": 3}
PLANS = ("table_wise", "row_wise", "column_wise", "grid", "mixed")


def shards(kind, t, shape, world_size):
    """The layout of table number ``t``; more shards than ranks where there is one rank or two."""
    ranks = list(range(world_size))
    if kind == "mixed":
        kind = ("row_wise", "table_wise", "column_wise")[t]
    if kind == "table_wise":
        return table_wise(shape, t % world_size)
    if kind == "row_wise":
        return row_wise(shape, ranks)
    if kind == "grid" and world_size > 2:
        return grid_shard(shape, [range(2), range(2, world_size)], [2, shape[1] - 2])
    sizes = [1] * world_size + [shape[1] - world_size]
    return column_wise(shape, [*ranks, 0], sizes)


def make(
    pooled,
    optimizer=None,
    weighted=False,
    pooling=PoolingType.SUM,
    policy=IdPolicy.ERROR,
    batch_l2=0.0,
):
    torch.manual_seed(3)
    options = {"id_policy": policy}
    if optimizer is not None:
        options |= {"optimizer": optimizer, "lr": 0.1, "optimizer_options": {"batch_l2": batch_l2}}
    if pooled:
        configs = [
            EmbeddingBagConfig(rows, dim, name, feature_names=features, pooling=pooling, **options)
            for name, (rows, dim, features) in TABLES.items()
        ]
        return EmbeddingBagCollection(configs, is_weighted=weighted)
    return EmbeddingCollection(
        [
            EmbeddingConfig(rows, 8, name, feature_names=features, **options)
            for name, (rows, _, features) in TABLES.items()
        ]
    )


def shard(module, kind, exact=False, **options):
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    plan = {}
    for t, config in enumerate(module.table_configs()):
        shape = config.num_rows, config.embedding_dim
        found = shards(kind, t, shape, env.world_size)
        ranks = [shard.rank for shard in found]
        plan[config.name] = ParameterSharding("row_wise", "fused", ranks, spec_of(found))
    sharders = {
        EmbeddingBagCollection: EmbeddingBagCollectionSharder,
        EmbeddingCollection: EmbeddingCollectionSharder,
    }
    return sharders[type(module)](exact=exact, **options).shard(module, plan, env)


def batch(rank, step, size, weighted=False, beyond=0):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    lengths = [torch.randint(0, 5, (size,), generator=generator) for _ in FEATURES]
    values = torch.cat(
        [
            torch.randint(-beyond, rows + beyond, (int(mine.sum()),), generator=generator)
            for mine, rows in zip(lengths, FEATURES.values(), strict=True)
        ]
    )
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return KeyedJaggedTensor(list(FEATURES), values, weights, lengths=torch.cat(lengths))


def joined(batches):
    parts = [each.to_dict() for each in batches]
    weighted = batches[0].weights_or_none() is not None
    return KeyedJaggedTensor(
        list(FEATURES),
        torch.cat([part[key].values() for key in FEATURES for part in parts]),
        torch.cat([part[key].weights() for key in FEATURES for part in parts])
        if weighted
        else None,
        lengths=torch.cat([part[key].lengths() for key in FEATURES for part in parts]),
    )


def outputs(module, features):
    """The output as a list of tensors whose rows are samples, or ids of samples, with the lengths."""
    found = module(features)
    if hasattr(found, "length_per_key"):
        return [(found.values(), None)]
    return [(each.values(), each.lengths()) for each in found.values()]


def of_samples(found, first, last):
    """The part of the outputs that belongs to some samples."""
    parts = []
    for values, lengths in found:
        a, b = first, last
        if lengths is not None:
            a, b = int(lengths[:first].sum()), int(lengths[:last].sum())
        parts.append(values[a:b])
    return parts


def loss(parts):
    return sum((part * torch.arange(part.numel()).sin().view_as(part)).sum() for part in parts)


def compare(module, plain, exact):
    """Weights and states of this rank against those of one process."""
    for name, whole in plain.state_dict().items():
        compare_parts(module.state_dict()[name], whole, exact, name)
    states = plain.fused_optimizer.state_dict()["state"]
    for name, found in module.fused_optimizer.state_dict()["state"].items():
        assert found.keys() == states[name].keys()
        for kind, state in found.items():
            compare_parts(state, states[name][kind], False, f"{kind} of {name}")


def compare_parts(found, whole, exact, name):
    """What a rank shows of a tensor, its parts or all of it, against the whole."""
    if not hasattr(found, "local_shards"):
        torch.testing.assert_close(found, whole)
        return
    assert found.size() == whole.shape, name
    for part in found.local_shards():
        (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
        expected = whole[row : row + rows, column : column + columns]
        if exact:
            assert torch.equal(part.tensor, expected), name
        else:
            torch.testing.assert_close(part.tensor, expected)


def train(pooled, kind, optimizer, weighted, pooling, policy, exact):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    given = pooled, optimizer, weighted, pooling, policy
    plain, module = make(*given), shard(make(*given), kind, exact)
    beyond = 0 if policy == IdPolicy.ERROR else 4
    # One reordered sum where columns are split and a row has one state, or where rows are summed by rank.
    by_row = optimizer not in (None, "sgd", "adagrad", "adam")
    bits = exact and not (by_row and kind in ("column_wise", "grid", "mixed"))
    for step in range(3):
        sizes = [3 + r * step if r != 1 or step != 1 else 0 for r in range(world_size)]
        batches = [batch(r, step, size, weighted, beyond) for r, size in enumerate(sizes)]
        found = outputs(plain, joined(batches))
        starts = [sum(sizes[:r]) for r in range(world_size + 1)]
        parts = [of_samples(found, starts[r], starts[r + 1]) for r in range(world_size)]
        expected = [part.detach().clone() for part in parts[rank]]
        plain.zero_grad()
        sum(loss(each) for each in parts).div(world_size).backward()
        mine = [values for values, _ in outputs(module, batches[rank])]
        module.zero_grad()
        loss(mine).backward()
        for received, wanted in zip(mine, expected, strict=True):
            if bits:
                assert torch.equal(received, wanted)
            else:
                torch.testing.assert_close(received, wanted)
        if optimizer is None:
            for model in (plain, module):
                for param in model.parameters():
                    if param.grad is not None:
                        param.data -= 0.1 * param.grad
    compare(module, plain, bits)
    return True


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_training_equals_one_process_to_the_last_bit(world_size, kind, pooled):
    assert run(train_several, world_size, pooled, kind, True) == [True] * world_size


@pytest.mark.parametrize("kind", ["row_wise", "mixed"])
def test_training_by_sums_equals_one_process(kind):
    assert run(train_several, 2, True, kind, False) == [True] * 2


def train_several(pooled, kind, exact):
    for optimizer in ("sgd", "rowwise_adagrad", "adam", "lamb", None):
        train(pooled, kind, optimizer, False, PoolingType.SUM, IdPolicy.ERROR, exact)
    for policy in (IdPolicy.HASH, IdPolicy.UNKNOWN, IdPolicy.IGNORE):
        train(pooled, kind, "adagrad", False, PoolingType.SUM, policy, exact)
    if pooled:
        for weighted, pooling in product((True, False), (PoolingType.SUM, PoolingType.MEAN)):
            train(pooled, kind, "adagrad", weighted, pooling, IdPolicy.IGNORE, exact)
    return True


def weights_gradients(kind, exact):
    """Gradients of the weights of ids, which go back to the rank whose ids they are."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain, module = make(True, "sgd", True), shard(make(True, "sgd", True), kind, exact)
    batches = [batch(r, 0, 3, weighted=True) for r in range(world_size)]
    asked = [each.weights().requires_grad_() for each in batches]
    loss([plain(batches[rank]).values()]).backward()
    expected = asked[rank].grad.clone()
    asked[rank].grad = None
    loss([module(batches[rank]).values()]).backward()
    torch.testing.assert_close(asked[rank].grad, expected)
    return True


@pytest.mark.parametrize("exact", [True, False], ids=["by rows", "by sums"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "mixed"])
def test_weights_of_ids_have_gradients(kind, exact):
    assert run(weights_gradients, 2, kind, exact) == [True, True]


def bad_id(pooled):
    module, rank = shard(make(pooled), "mixed"), dist.get_rank()
    features = batch(rank, 0, 3)
    if rank == 1:
        features = KeyedJaggedTensor.from_lists(
            {"f1": [[], [1]], "f2": [[6], [0, 7]], "f3": [[], []]}
        )
    module(features)


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_every_rank_raises_the_same_error_for_an_id_without_a_row(pooled):
    for error in run(bad_id, 2, pooled):
        assert isinstance(error, IdOutOfRangeError)
        assert str(error) == (
            "Ids of feature 'f2' should be in [0, 7), the rows of table 'a'. Received 7 in sample 1 of rank 1."
        )


def missing_key():
    module, rank = shard(make(True), "row_wise"), dist.get_rank()
    module(batch(rank, 0, 3) if rank else KeyedJaggedTensor.from_lists({"f1": [[1]]}))


def test_every_rank_raises_the_same_error_for_a_missing_key():
    for error in run(missing_key, 3):
        assert isinstance(error, ValueError)
        assert str(error).startswith("On rank 0: `features` should have the key 'f2' of table 'a'.")


def accumulated(kind):
    """Gradients of two passes as one update, also where ranks update rows together."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain, module = make(True, "rowwise_adagrad"), shard(make(True, "rowwise_adagrad"), kind)
    optimizer = module.fused_optimizer
    with plain.fused_optimizer.accumulate(), optimizer.accumulate():
        for step in range(2):
            batches = [batch(r, step, 3) for r in range(world_size)]
            loss([plain(joined(batches)).values()]).div(world_size).backward()
            part = plain(joined(batches)).values()  # the same weights to multiply outputs by
            rows = torch.arange(part.numel()).sin().view_as(part)[3 * rank : 3 * rank + 3]
            (module(batches[rank]).values() * rows).sum().backward()
    for each in (plain.fused_optimizer, optimizer):
        each.step()
    compare(module, plain, exact=False)
    return True


@pytest.mark.parametrize("kind", ["table_wise", "column_wise"])
def test_accumulated_gradients_are_one_update(kind):
    assert run(accumulated, 2, kind) == [True, True]


def kept_state():
    """Weights and state of a collection that has been trained before."""
    plain = make(True, "rowwise_adagrad")
    loss([plain(batch(0, 0, 5)).values()]).backward()
    twin = make(True, "rowwise_adagrad")
    twin.load_state_dict(plain.state_dict())
    twin.fused_optimizer.load_state_dict(plain.fused_optimizer.state_dict())
    module = shard(twin, "row_wise")
    compare(module, plain, exact=True)
    states = module.fused_optimizer.state_dict()["state"].values()
    return [part.tensor for state in states for part in state["sum"].local_shards()]


def test_weights_and_state_survive_sharding():
    plain = make(True, "rowwise_adagrad")
    loss([plain(batch(0, 0, 5)).values()]).backward()
    states = plain.fused_optimizer.state_dict()["state"].values()
    by_rank = run(kept_state, 2)
    for whole, *parts in zip([state["sum"] for state in states], *by_rank, strict=True):
        assert torch.equal(torch.cat(parts), whole)


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [
            EmbeddingBagConfig(50, 4, "plain", feature_names=["f"]),
            EmbeddingBagConfig(9, 4, "normal", feature_names=["f"], init_fn=nn.init.normal_),
            EmbeddingBagConfig(
                9, 4, "xavier", feature_names=["f"], init_fn=nn.init.xavier_uniform_
            ),
        ]
        self.tables = EmbeddingBagCollection(tables, device="meta")


def drawn(kind):
    torch.manual_seed(5 + dist.get_rank())  # the first rank's counts
    module = shard(Drawn().tables, kind)
    return {
        name: [(tuple(s.metadata.shard_offsets), s.tensor) for s in value.local_shards()]
        for name, value in module.state_dict().items()
    }


def test_initial_weights_do_not_depend_on_the_plan():
    wholes = []
    for kind, world_size in (("table_wise", 1), ("row_wise", 3), ("column_wise", 2), ("grid", 4)):
        found = {}
        for of_rank in run(drawn, world_size, kind):
            for name, parts in of_rank.items():
                for (row, column), part in parts:
                    whole = found.setdefault(name, torch.zeros(50 if "plain" in name else 9, 4))
                    whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        wholes.append(found)
    for other in wholes[1:]:
        for name, whole in wholes[0].items():
            assert torch.equal(other[name], whole), name
            assert whole.abs().min() > 0
    assert wholes[0]["embedding_bags.plain.weight"].abs().max() <= 50**-0.5


def counted(pooled, kind):
    """Ids out of range of this rank's batches, against those of a collection that is not sharded."""
    rank, found = dist.get_rank(), []
    for policy in (IdPolicy.UNKNOWN, IdPolicy.IGNORE, IdPolicy.HASH):
        plain, module = make(pooled, policy=policy), shard(make(pooled, policy=policy), kind)
        for step in range(2):
            features = batch(rank, step, 6, beyond=3)
            plain(features)
            module(features)
        assert module.out_of_range_counts() == plain.out_of_range_counts()
        found += plain.out_of_range_counts().values()
        module.out_of_range_counts(reset=True)
        assert set(module.out_of_range_counts().values()) == {0}
    return sum(found) > 0


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["row_wise", "mixed"])
@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_ids_out_of_range_are_counted_by_the_rank_that_has_the_sample(world_size, kind, pooled):
    assert run(counted, world_size, pooled, kind) == [True] * world_size


def late_optimizer(kind, optimizer):
    plain, module = make(True), shard(make(True), kind)
    apply_optimizer_in_backward(optimizer, module.parameters(), {"lr": 0.1})
    apply_optimizer_in_backward(optimizer, plain.parameters(), {"lr": 0.1})
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for step in range(2):
        batches = [batch(r, step, 3) for r in range(world_size)]
        (sum(loss([plain(each).values()]) for each in batches) / world_size).backward()
        loss([module(batches[rank]).values()]).backward()
    for name, whole in plain.state_dict().items():
        for part in module.state_dict()[name].local_shards():
            (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
            torch.testing.assert_close(
                part.tensor, whole[row : row + rows, column : column + columns]
            )
    return True


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_tables_may_get_their_optimizer_after_they_were_sharded(kind, optimizer):
    assert run(late_optimizer, 2, kind, optimizer) == [True, True]
