"""What programs exchange themselves, each against what one process would compute of all ranks' input."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.distributed.dist_data import (
    EmbeddingsAllToOne,
    EmbeddingsAllToOneReduce,
    JaggedTensorAllToAll,
    KJTAllToAll,
    KJTOneToAll,
    PooledEmbeddingsAllGather,
    PooledEmbeddingsAllToAll,
    PooledEmbeddingsReduceScatter,
    SeqEmbeddingsAllToOne,
    SequenceEmbeddingsAllToAll,
    SplitsAllToAllAwaitable,
    TensorAllToAll,
    TensorValuesAllToAll,
    VariableBatchPooledEmbeddingsAllToAll,
    VariableBatchPooledEmbeddingsReduceScatter,
)
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

BATCHES = [3, 0, 2]  # samples of each rank; the first W of them
DIMS = [2, 5, 0]  # columns of each rank
KEYS = ["a", "b", "c", "d"]
SPLITS = {2: [3, 1], 3: [2, 0, 2]}  # keys of each rank


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


def make(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def vectors(make_one, world_size):
    """What every rank has, with gradients; the same on all ranks."""
    return [make_one(rank).requires_grad_() for rank in range(world_size)]


def compare(module_call, inputs, expected_of):
    """Output and gradient of this rank's input; ``expected_of`` computes a rank's output of all inputs."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = inputs[rank].detach().clone().requires_grad_()
    found = module_call(mine)
    outputs = [expected_of(each) for each in range(world_size)]
    torch.testing.assert_close(found, outputs[rank])
    weights = [make(*each.shape, seed=9 + r) for r, each in enumerate(outputs)]
    (found * weights[rank]).sum().backward()
    total = sum((out * w).sum() for out, w in zip(outputs, weights, strict=True))
    (total / world_size).backward()
    torch.testing.assert_close(mine.grad, inputs[rank].grad)
    return True


def pooled():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches, dims = BATCHES[:world_size], DIMS[:world_size]
    inputs = vectors(lambda r: make(sum(batches), dims[r], seed=r), world_size)
    module = copy.deepcopy(
        PooledEmbeddingsAllToAll(dist.group.WORLD, dims, callbacks=[lambda x: x * 2])
    )
    assert len(module.callbacks) == 1
    compare(
        lambda x: module(x, batches).wait(),
        inputs,
        lambda r: torch.cat([each.split(batches)[r] for each in inputs], 1) * 2,
    )
    even = make(2 * world_size, dims[rank], seed=rank)
    assert module(even).wait().shape == (2, sum(dims))
    with pytest.raises(ValueError, match="should sum to those that there are vectors of"):
        module(even, batches)
    with pytest.raises(ValueError, match="`dim_sum_per_rank` should have an entry for each of"):
        PooledEmbeddingsAllToAll(dist.group.WORLD, [1])
    return True


def reduce_scatter():
    batches = BATCHES[: dist.get_world_size()]
    inputs = vectors(lambda r: make(sum(batches), 3, seed=r), len(batches))
    module = PooledEmbeddingsReduceScatter(dist.group.WORLD)
    return compare(
        lambda x: module(x, batches).wait(),
        inputs,
        lambda r: sum(each.split(batches)[r] for each in inputs),
    )


def all_gather():
    batches = BATCHES[: dist.get_world_size()]
    inputs = vectors(lambda r: make(batches[r], 3, seed=r), len(batches))
    module = PooledEmbeddingsAllGather(dist.group.WORLD)
    return compare(lambda x: module(x).wait(), inputs, lambda r: torch.cat(inputs))


def by_feature(batches, dims):
    """Slices of each feature in flat vectors, feature after feature."""
    return [batch * dim for batch, dim in zip(batches, dims, strict=True)]


def variable_pooled():
    world_size, rank = dist.get_world_size(), dist.get_rank()
    dims = [[2, 3], [4], []][:world_size]
    batches = [[1, 2, 3], [0, 1, 2], [2, 0, 1]][:world_size]  # of each rank, for each feature
    starts = [0, 2, 3, 3]
    mine = [slice(starts[r], starts[r + 1]) for r in range(world_size)]
    sizes = [[sum(by_feature(b[mine[r]], dims[r])) for b in batches] for r in range(world_size)]
    inputs = vectors(lambda r: make(sum(sizes[r]), seed=r), world_size)
    module = VariableBatchPooledEmbeddingsAllToAll(dist.group.WORLD, dims)
    assert module.callbacks == []
    return compare(
        lambda x: module(x, [b[mine[rank]] for b in batches], batches[rank]).wait(),
        inputs,
        lambda r: torch.cat(
            [each.split(size)[r] for each, size in zip(inputs, sizes, strict=True)]
        ),
    )


def variable_reduce_scatter():
    world_size = dist.get_world_size()
    dims, batches = [2, 3], [[1, 2], [0, 3], [2, 0]][:world_size]
    sizes = [sum(by_feature(b, dims)) for b in batches]
    inputs = vectors(lambda r: make(sum(sizes), seed=r), world_size)
    module = VariableBatchPooledEmbeddingsReduceScatter(dist.group.WORLD)
    return compare(
        lambda x: module(x, batches, dims).wait(),
        inputs,
        lambda r: sum(each.split(sizes)[r] for each in inputs),
    )


def features(rank, size):
    generator = torch.Generator().manual_seed(10 + rank)
    lengths = torch.randint(0, 4, (len(KEYS) * size,), generator=generator)
    return KeyedJaggedTensor(
        KEYS, torch.randint(0, 100, (int(lengths.sum()),), generator=generator), lengths=lengths
    )


def sequence(batches):
    """Ids out by `KJTAllToAll`, vectors back, with and without an order of their own."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    given = [features(r, batches[r]) for r in range(world_size)]
    splits = SPLITS[world_size]
    came = KJTAllToAll(dist.group.WORLD, splits)(given[rank]).wait().wait()
    ids_sent = given[rank].dist_splits(splits)[1]
    ids_came = [each.dist_splits(splits)[1][rank] for each in given]
    module = SequenceEmbeddingsAllToAll(dist.group.WORLD, splits)
    table = make(100, 4)
    equal = batches if len(set(batches)) > 1 else None
    for order in (None, torch.arange(sum(ids_sent)).flip(0)):
        own = table.clone().requires_grad_()
        given_ids = given[rank].values()
        found = module(
            own[came.values()], came.lengths(), ids_sent, ids_came, order, batch_size_per_rank=equal
        ).wait()
        expected = table[given_ids if order is None else given_ids[order]]
        assert torch.equal(found, expected)
    found.sum().backward()
    counts = came.values().bincount(minlength=100)
    torch.testing.assert_close(own.grad, counts[:, None].expand(100, 4) / world_size)
    # Blocks in another order: rank after rank, as they came.
    blocks = torch.arange(world_size * splits[rank])
    mine = [each.split(splits)[rank] for each in given]
    ids = torch.cat([each.values() for each in mine])
    lengths = torch.cat([each.lengths() for each in mine])
    found = module(table[ids], lengths, ids_sent, ids_came, None, batches, blocks).wait()
    assert torch.equal(found, table[given[rank].values()])
    return True


def kjt():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    splits, pg = SPLITS[world_size], dist.group.WORLD
    given = [features(r, size) for r, size in enumerate(BATCHES[:world_size])]
    first = sum(splits[:rank])
    mine = KEYS[first : first + splits[rank]]
    tensors = KJTAllToAll(pg, splits)(given[rank]).wait()
    assert tensors.clear_inputs() == given[rank].values().nbytes + given[rank].lengths().nbytes
    assert tensors.clear_inputs() == 0
    found = tensors.wait()
    assert found.keys() == mine
    assert found.to_lists() == {
        key: [bag for each in given for bag in each.to_lists()[key]] for key in mine
    }
    with pytest.raises(ValueError, match="`splits` should have a number of keys for each of"):
        KJTAllToAll(pg, [4])
    return True


def kjt_variable():
    """Weights, and batches of their own for each key."""
    rank = dist.get_rank()
    strides = [[2, 1, 0, 3], [1, 1, 2, 0]]
    given = []
    for r in range(2):
        lengths = torch.arange(sum(strides[r])) % 3
        n = int(lengths.sum())
        per_rank = [[stride] for stride in strides[r]]
        given.append(
            KeyedJaggedTensor(
                KEYS,
                torch.arange(n) + 100 * r,
                make(n, seed=r),
                lengths=lengths,
                stride_per_key_per_rank=per_rank,
            )
        )
    found = KJTAllToAll(dist.group.WORLD, SPLITS[2])(given[rank]).wait().wait()
    mine = [["a", "b", "c"], ["d"]][rank]
    assert found.keys() == mine
    assert found.stride_per_key_per_rank() == [
        [strides[r][KEYS.index(key)] for r in range(2)] for key in mine
    ]
    for key in mine:
        parts = [each.to_dict()[key] for each in given]
        for part in ("values", "weights", "lengths"):
            expected = torch.cat([getattr(each, part)() for each in parts])
            assert torch.equal(getattr(found.to_dict()[key], part)(), expected)
    return True


def staggered():
    """Of two nodes of two ranks the first of each come first."""
    rank = dist.get_rank()
    given = KeyedJaggedTensor.from_lists({key: [[rank]] for key in KEYS})
    found = KJTAllToAll(dist.group.WORLD, [1, 1, 1, 1], stagger=2)(given).wait().wait()
    return found.values().tolist()


def parts():
    """Jagged and other tensors in parts."""
    rank, pg = dist.get_rank(), dist.group.WORLD
    counts = torch.tensor([[1, 2], [0, 3]])  # of a rank, for each rank
    lengths = torch.tensor([2, 0, 1])
    given = [JaggedTensor(torch.arange(3) + 10 * r, lengths=lengths) for r in range(2)]
    found = JaggedTensorAllToAll(given[rank], counts[rank], counts[:, rank], pg).wait()
    bags = [[[10 * r, 10 * r + 1], [], [10 * r + 2]] for r in range(2)]
    starts = [1, 0] if rank else [0, 0]
    ends = [3, 3] if rank else [1, 0]
    assert [bag.tolist() for bag in found.to_dense()] == [
        b for r in range(2) for b in bags[r][starts[r] : ends[r]]
    ]
    rows = [torch.arange(6.0).view(3, 2) + 10 * r for r in range(2)]
    expected = torch.cat([rows[r].split(counts[r].tolist())[rank] for r in range(2)])
    assert torch.equal(TensorAllToAll(pg)(rows[rank], counts[rank]).wait().wait(), expected)
    found = TensorValuesAllToAll(pg)(rows[rank], counts[rank], counts[:, rank]).wait()
    assert torch.equal(found, expected)
    numbers = [torch.tensor([1, 2]) + 10 * rank, torch.tensor([3, 4]) + 10 * rank]
    told = SplitsAllToAllAwaitable(numbers, pg).wait()
    assert told == [[1 + rank, 11 + rank], [3 + rank, 13 + rank]]
    assert SplitsAllToAllAwaitable([], pg).wait() == []
    with pytest.raises(ValueError, match=r"a number for each of 2 ranks. Received shape \(1,\)"):
        SplitsAllToAllAwaitable([torch.ones(1)], pg)
    with pytest.raises(
        ValueError, match=r"Rows sent should be told .* sum to 3. Received \[1, 1\]"
    ):
        TensorValuesAllToAll(pg)(rows[rank], torch.tensor([1, 1]), counts[:, rank])
    return True


def coded():
    """Vectors and gradients in fewer bits."""
    codecs = get_qcomm_codecs(QCommsConfig(CommType.FP16, CommType.INT8))
    rank, pg = dist.get_rank(), dist.group.WORLD
    inputs = [make(3, 4, seed=r) for r in range(2)]
    mine = inputs[rank].clone().requires_grad_()
    found = PooledEmbeddingsAllToAll(pg, [4, 4], codecs=codecs)(mine, [2, 1]).wait()
    expected = torch.cat([each.split([2, 1])[rank] for each in inputs], 1)
    assert torch.equal(found, expected.half().float())
    found.square().sum().backward()
    exact = 2 * inputs[rank].half().float() / 2
    error = (mine.grad - exact).abs()
    assert 0 < error.max() <= exact.max() / 254 * (1 + 1e-5)
    reduced = PooledEmbeddingsReduceScatter(pg, codecs)(inputs[rank], [2, 1]).wait()
    assert torch.equal(reduced, sum(each.half().float().split([2, 1])[rank] for each in inputs))
    return True


@pytest.mark.parametrize(
    "function",
    [pooled, reduce_scatter, all_gather, variable_pooled, variable_reduce_scatter, kjt],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_uneven(workers, function, world_size):
    assert workers.run(function, world_size) == [True] * world_size


@pytest.mark.parametrize("batches", [[2, 2, 2], BATCHES], ids=["even", "uneven"])
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sequences(workers, batches, world_size):
    assert workers.run(sequence, world_size, batches[:world_size]) == [True] * world_size


@pytest.mark.parametrize("function", [kjt_variable, parts, coded], ids=lambda f: f.__name__)
def test_two_ranks(workers, function):
    assert workers.run(function, 2) == [True, True]


@pytest.mark.slow
def test_nodes_in_turns(workers):
    assert workers.run(staggered, 4) == [[0, 2, 1, 3]] * 4


def test_one_to_all_and_back():
    given = KeyedJaggedTensor.from_lists({"a": [[1], []], "b": [[2], [3]], "c": [[], [4]]})
    found = KJTOneToAll([2, 1], 2, torch.device("cpu"))(given)
    assert [part.to_lists() for part in found] == [
        {"a": [[1], []], "b": [[2], [3]]},
        {"c": [[], [4]]},
    ]
    with pytest.raises(ValueError, match="a number of keys for each of 2 devices"):
        KJTOneToAll([3], 2)
    one, two = torch.ones(2, 1), torch.full((2, 1), 2.0)
    joined = EmbeddingsAllToOne(torch.device("meta"), 2, cat_dim=1)
    joined.set_device("cpu")
    assert joined([one, two]).tolist() == [[1, 2], [1, 2]]
    assert EmbeddingsAllToOneReduce(torch.device("cpu"), 2)([one, two]).tolist() == [[3], [3]]
    assert torch.equal(SeqEmbeddingsAllToOne(torch.device("cpu"), 2)([one, two])[1], two)
    with pytest.raises(ValueError, match="one for each of 2 devices"):
        joined([one])
