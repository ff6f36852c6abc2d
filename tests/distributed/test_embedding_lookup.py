"""Groups of parts of tables, looked up: against rows taken by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec import KeyedJaggedTensor, PoolingType
from torchrec.distributed.composable.table_batched_embedding_slice import TableBatchedEmbeddingSlice
from torchrec.distributed.embedding_lookup import (
    GroupedEmbeddingsLookup,
    GroupedPooledEmbeddingsLookup,
)
from torchrec.distributed.embedding_types import (
    EmbeddingComputeKernel,
    GroupedEmbeddingConfig,
    ShardedEmbeddingTable,
)
from torchrec.distributed.types import ShardingEnv
from torchrec.types import DataType

pytestmark = pytest.mark.once

DENSE, FUSED = EmbeddingComputeKernel.DENSE, EmbeddingComputeKernel.FUSED


def group(tables, kernel=DENSE, pooling=PoolingType.SUM, weighted=False):
    parts = [
        ShardedEmbeddingTable(
            num_embeddings=20,
            embedding_dim=8,
            name=name,
            feature_names=features,
            local_rows=rows,
            local_cols=dim,
        )
        for name, rows, dim, features in tables
    ]
    fused = {"optimizer": "exact_sgd", "learning_rate": 0.5} if kernel is FUSED else None
    return GroupedEmbeddingConfig(DataType.FP32, pooling, weighted, False, kernel, parts, fused)


def features(weighted=False):
    """Of f1 and f2 in table a, f1 in b, f3 in c."""
    weights = torch.arange(1.0, 7.0) if weighted else None
    return KeyedJaggedTensor(
        ["f1", "f2", "f3"],
        torch.tensor([1, 2, 3, 4, 2, 1]),
        weights,
        lengths=torch.tensor([1, 1, 2, 0, 0, 2]),
    )


def groups(kernel=DENSE, **options):
    return [
        group([("a", 10, 4, ["f1", "f2"]), ("b", 5, 4, ["f1"])], kernel, **options),
        group([("c", 3, 4, ["f3"])], kernel, **options),
    ]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
def test_bags(weighted, pooling):
    lookup = GroupedPooledEmbeddingsLookup(groups(pooling=pooling, weighted=weighted))
    assert list(lookup.state_dict()) == ["a.weight", "b.weight", "c.weight"]
    assert [name for name, _ in lookup.named_parameters()] == list(lookup.state_dict())
    assert [name for name, _ in lookup.named_parameters_by_table()] == ["a", "b", "c"]
    weight = dict(lookup.named_parameters_by_table())
    bags = features(weighted)
    columns = []
    for table, jagged in zip("aabc", by_key(bags), strict=True):
        rows = []
        for ids, scales in jagged:
            found = sum(
                (s * weight[table][i] for i, s in zip(ids, scales, strict=True)), torch.zeros(4)
            )
            rows.append(found / max(len(ids), 1) if pooling is PoolingType.MEAN else found)
        columns.append(torch.stack(rows))
    torch.testing.assert_close(lookup(bags), torch.cat(columns, 1))


def by_key(bags):
    """For each look-up, f1, f2, f1 and f3, its bags as pairs of ids and weights."""
    offsets = bags.offsets().tolist()
    weights = bags.weights_or_none()
    weights = torch.ones(len(bags.values())) if weights is None else weights
    found = []
    for key in (0, 1, 0, 2):
        pairs = []
        for sample in range(2):
            a, b = offsets[2 * key + sample], offsets[2 * key + sample + 1]
            pairs.append((bags.values()[a:b].tolist(), weights[a:b].tolist()))
        found.append(pairs)
    return found


def test_sequences():
    lookup = GroupedEmbeddingsLookup(groups())
    weight = dict(lookup.named_parameters_by_table())
    expected = [
        weight[table][i]
        for table, pairs in zip("aabc", by_key(features()), strict=True)
        for ids, _ in pairs
        for i in ids
    ]
    assert torch.equal(lookup(features()), torch.cat(expected))


@pytest.mark.parametrize("made", [GroupedPooledEmbeddingsLookup, GroupedEmbeddingsLookup])
def test_groups_that_the_backward_pass_updates_and_states_that_load(made):
    lookup, dense = made(groups(FUSED)), made(groups())
    dense.load_state_dict(lookup.state_dict())
    before = dense(features()).detach()
    lookup(features()).sum().backward()
    dense(features()).sum().backward()
    for (name, mine), (_, other) in zip(
        lookup.named_parameters(), dense.named_parameters(), strict=True
    ):
        assert mine.grad is None
        torch.testing.assert_close(mine, other - 0.5 * other.grad, msg=name)
    lookup.load_state_dict(dense.state_dict())
    assert torch.equal(lookup(features()), before)
    assert lookup.double().a.weight.dtype == torch.float64


def test_gradients_of_weights_are_multiplied_by_the_number_of_ranks():
    found = []
    for options in ({}, {"scale_weight_gradients": False}):
        torch.manual_seed(1)
        lookup = GroupedPooledEmbeddingsLookup(
            groups(weighted=True), env=ShardingEnv.from_local(4, 0), **options
        )
        weighted = features(True)
        weights = weighted.weights().requires_grad_()
        lookup(weighted.with_weights(weights)).sum().backward()
        found.append(weights.grad)
    assert torch.equal(found[0], 4 * found[1])


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="Received two of table 'a'"):
        GroupedEmbeddingsLookup([groups()[0], groups()[0]])
    with pytest.raises(ValueError, match="`compute_kernel` of a group should be one of"):
        GroupedEmbeddingsLookup(groups(EmbeddingComputeKernel.KEY_VALUE))
    with pytest.raises(ValueError, match="`feature_processor` should be None"):
        GroupedPooledEmbeddingsLookup(groups(), feature_processor=nn.Identity())
    lookup = GroupedPooledEmbeddingsLookup(groups())
    with pytest.raises(ValueError, match="should have the key 'f2' of table 'a'"):
        lookup(KeyedJaggedTensor.from_lists({"f1": [[1]]}))
    with pytest.raises(NotImplementedError, match="does not tell a tracker"):
        lookup.register_optim_state_tracker_fn(lambda *args: None)
    assert list(lookup.get_named_split_embedding_weights_snapshot()) == []
    assert lookup.get_resize_awaitables() == []


def test_a_table_that_is_a_part_of_a_tensor():
    weights = nn.Parameter(torch.arange(10.0))
    first = TableBatchedEmbeddingSlice(weights, 0, 6, 3, 2)
    second = TableBatchedEmbeddingSlice(weights, 6, 10, 1, 4)
    assert isinstance(first, nn.Parameter)
    assert first.grad is None
    assert first.grad_fn is None
    (weights * torch.arange(10.0)).sum().backward()
    assert first.grad.tolist() == [[0, 1], [2, 3], [4, 5]]
    second.grad = None  # the other one keeps its gradient
    assert weights.grad.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]
    second.grad = torch.ones(1, 4)
    torch.optim.SGD([first, second], 1.0).step()
    assert weights.tolist() == [0, 0, 0, 0, 0, 0, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="A table of 2 x 2 should be 4 weights"):
        TableBatchedEmbeddingSlice(weights, 0, 5, 2, 2)
