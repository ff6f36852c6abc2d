import itertools

import pytest
import torch

from torchrec.datasets.random import RandomRecDataset

pytestmark = pytest.mark.once


def test_defaults():
    batch = next(iter(RandomRecDataset(["a", "b"], batch_size=3)))
    assert batch.dense_features.shape == (3, 50)
    assert batch.sparse_features.keys() == ["a", "b"]
    assert batch.sparse_features.lengths().shape == (6,)
    assert batch.sparse_features.lengths().max() <= 2
    assert batch.sparse_features.lengths().dtype == torch.int32
    assert batch.sparse_features.values().max() < 100
    assert set(batch.labels.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("arguments", "lengths", "values", "dense", "labels"),
    [
        ({}, [2, 0, 1, 1, 2, 0, 2, 2, 0], [3, 6, 1, 4, 0, 6, 2, 4, 5, 6], -0.28159845, [0, 1, 0]),
        (
            {"ids_per_features": [2, 0, 5]},
            [2, 0, 1, 0, 0, 0, 4, 1, 0], [3, 6, 1, 4, 2, 3, 2, 4], 0.28521800, [0, 0, 0],
        ),
        (
            {"ids_per_features": [2, 4, 5], "min_ids_per_feature": 1},
            [2, 1, 2, 1, 1, 4, 1, 3, 5],
            [3, 6, 1, 1, 3, 6, 4, 2, 3, 2, 4, 3, 1, 0, 4, 1, 0, 1, 3, 6], 0.34009245, [1, 0, 1],
        ),
        (
            {"min_ids_per_features": [1, 0, 2]},
            [2, 1, 2, 0, 1, 1, 2, 2, 2], [3, 6, 1, 1, 3, 6, 4, 4, 5, 6, 5, 3, 1],
            -0.82341051, [0, 1, 1],
        ),
        (
            {"ids_per_feature": 1},
            [1] * 9, [3, 6, 1, 4, 0, 6, 2, 4, 5], -0.90101069, [0, 0, 1],
        ),
    ],
    ids=["default", "each", "least", "least of each", "fixed"],
)  # fmt: skip
def test_lengths_and_ids_are_drawn_key_by_key(arguments, lengths, values, dense, labels):
    dataset = RandomRecDataset(
        ["a", "b", "c"], 3, hash_size=7, num_dense=2, manual_seed=5, **arguments
    )
    batch = next(iter(dataset))
    assert batch.sparse_features.lengths().tolist() == lengths
    assert batch.sparse_features.values().tolist() == values
    assert batch.dense_features[0, 0].item() == pytest.approx(dense, abs=1e-6)
    assert batch.labels.tolist() == labels


def test_no_ids_are_asked_for():
    batch = next(iter(RandomRecDataset(["a"], 3, ids_per_feature=0)))
    assert batch.sparse_features.lengths().tolist() == [0, 0, 0]


def test_ids_and_lengths_stay_in_their_ranges():
    dataset = RandomRecDataset(
        ["a", "b"], 200, hash_sizes=[5, 1000], ids_per_features=[4, 2],
        min_ids_per_features=[0, 1], num_dense=0, manual_seed=1,
    )  # fmt: skip
    batch = next(iter(dataset))
    a, b = batch.sparse_features["a"], batch.sparse_features["b"]
    assert set(a.values().tolist()) == set(range(5))
    assert set(a.lengths().tolist()) == {0, 1, 2, 3, 4}
    assert b.values().max() > 5
    assert set(b.lengths().tolist()) == {1, 2}
    assert batch.dense_features.shape == (200, 0)


def test_a_seed_gives_the_same_batches_and_leaves_pytorchs_generator_alone():
    state = torch.get_rng_state()
    pair = [list(RandomRecDataset(["a"], 4, manual_seed=7, num_batches=3)) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(*pair, strict=True):
        assert torch.equal(one.dense_features, other.dense_features)
        assert torch.equal(one.sparse_features.values(), other.sparse_features.values())
    assert not torch.equal(pair[0][0].dense_features, pair[0][1].dense_features)


def test_batches_come_again_after_those_generated():
    dataset = RandomRecDataset(["a"], 2, num_batches=5, num_generated_batches=2)
    batches = list(dataset)
    assert len(dataset) == len(batches) == 5
    assert batches[0] is batches[2] is batches[4]
    assert batches[0] is not batches[1]


def test_every_batch_is_new_where_none_is_kept():
    dataset = RandomRecDataset(["a"], 2, num_generated_batches=0)
    one, other = itertools.islice(dataset, 2)
    assert not torch.equal(one.dense_features, other.dense_features)


def test_there_is_no_length_without_an_end():
    with pytest.raises(TypeError, match="`num_batches` is None"):
        len(RandomRecDataset(["a"], 2))


def test_no_keys_and_no_samples():
    batch = next(iter(RandomRecDataset([], 3)))
    assert batch.sparse_features.keys() == []
    batch = next(iter(RandomRecDataset(["a"], 0)))
    assert batch.labels.shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hash_sizes": [1]}, r"`hash_sizes` should have one entry a key \(2\). Received 1."),
        ({"hash_size": 1, "hash_sizes": [1, 1]}, "`hash_size` should be given for all keys or for"),
        ({"hash_size": 0}, r"`hash_size` of key 'a' should be at least 1. Received 0."),
        (
            {"ids_per_feature": 2, "min_ids_per_feature": 5},
            r"`min_ids_per_feature` of key 'a' should be from 0 to ids_per_feature \(2\). Received 5",
        ),
        ({"num_dense": -1}, "`num_dense` should be at least 0. Received -1."),
        ({"num_batches": -1}, "`num_batches` should be at least 0. Received -1."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        RandomRecDataset(["a", "b"], 2, **wrong)
