"""Features with batches of their own, against one process that brings them to the full batch before it looks up."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from tests.distributed.test_coding import Counted
from tests.distributed.test_collections import (
    FEATURES,
    PLANS,
    batch,
    compare,
    joined,
    loss,
    make,
    of_samples,
    outputs,
    shard,
    shards,
)
from torchrec import KeyedJaggedTensor, PoolingType
from torchrec.distributed.channel import use_channel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.layout import spec_of
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.errors import IdOutOfRangeError
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


def own(rank, step, size, weighted=False, beyond=0, inverse=True, unused=0):
    """Samples that share bags; how many bags there are varies by key, rank and step."""
    generator = torch.Generator().manual_seed(77 * rank + step)
    values, lengths, strides, indices, weights = [], [], [], [], []
    for k, rows in enumerate(FEATURES.values()):
        bags = min(size, 1 + (k + step + rank) % 3) + unused
        mine = torch.randint(0, 4, (bags,), generator=generator)
        ids = (int(mine.sum()),)
        values.append(torch.randint(-beyond, rows + beyond, ids, generator=generator))
        weights.append(torch.rand(ids, generator=generator))
        lengths.append(mine)
        strides.append([bags])
        # Each bag is some sample's, in an order of their own.
        order = torch.randperm(size, generator=generator) % max(bags - unused, 1)
        indices.append(order)
    return KeyedJaggedTensor(
        list(FEATURES),
        torch.cat(values),
        torch.cat(weights) if weighted else None,
        lengths=torch.cat(lengths),
        stride_per_key_per_rank=strides,
        inverse_indices=(list(FEATURES), torch.stack(indices)) if inverse else None,
    )


def sizes_of(step, world_size):
    return [0 if rank == step else 4 + rank + step for rank in range(world_size)]


def trained(
    kind, optimizer, pooling=PoolingType.SUM, weighted=False, exact=False, unused=0, batch_l2=0.0
):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    given = True, optimizer, weighted, pooling, IdPolicy.IGNORE, batch_l2
    plain, module = make(*given), shard(make(*given), kind, exact)
    for step in range(4):
        sizes = sizes_of(step, world_size)
        batches = [own(r, step, size, weighted, 2, unused=unused) for r, size in enumerate(sizes)]
        if step == 3:  # the first rank has a batch of the usual kind
            batches[0] = batch(0, step, sizes[0], weighted, 2)
        whole = [
            each if each.inverse_indices_or_none() is None else each.expand_inverse()
            for each in batches
        ]
        found = outputs(plain, joined(whole))
        starts = [sum(sizes[:r]) for r in range(world_size + 1)]
        parts = [of_samples(found, starts[r], starts[r + 1]) for r in range(world_size)]
        expected = [part.detach().clone() for part in parts[rank]]
        sum(loss(each) for each in parts).div(world_size).backward()
        mine = [values for values, _ in outputs(module, batches[rank])]
        loss(mine).backward()
        for received, wanted in zip(mine, expected, strict=True):
            torch.testing.assert_close(received, wanted)
            assert not exact or torch.equal(received, wanted)
    compare(module, plain, exact and kind == "row_wise")
    return True


def several(kind):
    for optimizer in ("sgd", "rowwise_adagrad", "adam"):
        trained(kind, optimizer)
    trained(kind, "adagrad", PoolingType.MEAN)
    trained(kind, "adagrad", PoolingType.SUM, weighted=True)
    trained(kind, "adagrad", PoolingType.MEAN, weighted=True)
    trained(kind, "adam", unused=1)
    return True


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", PLANS)
def test_training_equals_one_process(workers, kind, world_size):
    assert workers.run(several, world_size, kind) == [True] * world_size


def penalised():
    return trained("mixed", "adam", batch_l2=0.5)


def test_an_update_that_counts_ids_has_those_of_all_samples(workers):
    assert workers.run(penalised, 2) == [True, True]


def test_exactly_where_that_is_asked_for(workers):
    arguments = "row_wise", "sgd", PoolingType.MEAN, False, True
    assert workers.run(trained, 2, *arguments) == [True, True]


def weights_gradients(kind):
    plain, module = make(True, "sgd", True), shard(make(True, "sgd", True), kind)
    features = own(dist.get_rank(), 0, 5, weighted=True)
    asked = features.weights().requires_grad_()
    loss([plain(features).values()]).backward()
    expected, asked.grad = asked.grad.clone(), None
    loss([module(features).values()]).backward()
    torch.testing.assert_close(asked.grad, expected)
    return True


@pytest.mark.parametrize("kind", ["table_wise", "mixed"])
def test_weights_of_ids_have_gradients(workers, kind):
    assert workers.run(weights_gradients, 2, kind) == [True, True]


def bytes_sent(kind):
    """Of a batch whose 64 samples share a few bags, and of the same batch at its full size."""
    features, found = own(dist.get_rank(), 1, 64), []
    channel = Counted(dist.group.WORLD)
    use_channel(dist.group.WORLD, channel)
    for each in (features.expand_inverse(), features):
        module = shard(make(True, "sgd"), kind)
        channel.bytes.clear()
        loss([module(each).values()]).backward()
        found.append((channel.bytes[torch.int32], channel.bytes[torch.float32]))
    return found


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_bytes_on_the_wire(workers, kind):
    """At most 3 bags a feature, instead of 64: so much less of ids, vectors and gradients."""
    for (ids, vectors), (own_ids, own_vectors) in workers.run(bytes_sent, 2, kind):
        assert own_ids * 12 < ids
        assert own_vectors * 12 < vectors


def counted(policy):
    plain, module = make(True, policy=policy), shard(make(True, policy=policy), "mixed")
    features = own(dist.get_rank(), 1, 6, beyond=3)
    plain(features)
    module(features)
    assert module.out_of_range_counts() == plain.out_of_range_counts()
    return sum(module.out_of_range_counts().values()) > 0


def test_ids_out_of_range_are_counted_by_sample(workers):
    assert workers.run(counted, 2, IdPolicy.UNKNOWN) == [True, True]


def bad_id():
    module = shard(make(True), "mixed")
    features = own(dist.get_rank(), 0, 3)
    if dist.get_rank() == 1:
        features = KeyedJaggedTensor(
            ["f1", "f2", "f3"],
            torch.tensor([1, 0, 7, 2]),
            lengths=torch.tensor([1, 1, 1, 1]),
            stride_per_key_per_rank=[[1], [2], [1]],
            inverse_indices=(
                ["f3", "f1", "f2"],
                torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
            ),
        )
    module(features)


def test_an_id_without_a_row_is_told_by_sample(workers):
    for error in workers.run(bad_id, 2):
        assert isinstance(error, IdOutOfRangeError)
        assert str(error) == (
            "Ids of feature 'f2' should be in [0, 7), the rows of table 'a'. Received 7 in sample 2 of rank 1."
        )


def without_inverse():
    features = own(dist.get_rank(), 0, 3, inverse=dist.get_rank() != 1)
    shard(make(True), "mixed")(features)


def test_batches_that_nobody_brings_together(workers):
    for error in workers.run(without_inverse, 2):
        assert isinstance(error, ValueError)
        assert str(error).startswith("On rank 1: `inverse_indices` should be given to be read")


def rounded():
    registry = get_qcomm_codecs_registry(QCommsConfig(CommType.FP16, CommType.INT8))
    plain, module = make(True), shard(make(True), "table_wise", qcomm_codecs_registry=registry)
    features = own(dist.get_rank(), 1, 6)
    found = module(features).values()
    assert torch.equal(found, plain(features).values().half().float())
    loss([found]).backward()
    return True


def test_in_fewer_bits(workers):
    assert workers.run(rounded, 2) == [True, True]


def sequences(kind, inverse, distinct):
    """Sequences of features that differ in their numbers of bags."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain = make(False, "adagrad")
    module = shard(make(False, "adagrad"), kind, use_index_dedup=distinct)
    for step in range(3):
        batches = [own(r, step, 4 + r, inverse=inverse) for r in range(world_size)]
        found = [outputs(plain, each) for each in batches]
        expected = [(part.detach().clone(), lengths) for part, lengths in found[rank]]
        sum(loss([part for part, _ in each]) for each in found).div(world_size).backward()
        mine = outputs(module, batches[rank])
        loss([values for values, _ in mine]).backward()
        for (values, lengths), (wanted, wanted_lengths) in zip(mine, expected, strict=True):
            torch.testing.assert_close(values, wanted)
            assert torch.equal(lengths, wanted_lengths)
    compare(module, plain, exact=False)
    return True


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize(
    ("inverse", "distinct"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["own batches", "full batches", "own batches, ids once", "full batches, ids once"],
)
def test_sequences_equal_one_process(workers, kind, inverse, distinct):
    assert workers.run(sequences, 2, kind, inverse, distinct) == [True, True]


def beside_copies():
    """A table that every rank has a copy of, looked up at the full batch, beside tables that lie on several ranks."""
    module, plain = make(True, policy=IdPolicy.IGNORE), make(True, policy=IdPolicy.IGNORE)
    world_size = dist.get_world_size()
    plan = {}
    for t, config in enumerate(module.table_configs()):
        found = shards("mixed", t, (config.num_rows, config.embedding_dim), world_size)
        kind = ("row_wise", "data_parallel", "column_wise")[t]
        ranks = [each.rank for each in found]
        plan[config.name] = ParameterSharding(kind, "dense", ranks, spec_of(found))
    plan["b"] = ParameterSharding("data_parallel", "dense", list(range(world_size)))
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    module = EmbeddingBagCollectionSharder().shard(module, plan, env)
    for step in range(2):
        features = own(dist.get_rank(), step, 5, beyond=2)
        found, expected = module(features), plain(features)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found.values(), expected.values())
    assert module.out_of_range_counts() == plain.out_of_range_counts()
    return True


@pytest.mark.parametrize("world_size", [1, 2])
def test_beside_copies(workers, world_size):
    assert workers.run(beside_copies, world_size) == [True] * world_size
