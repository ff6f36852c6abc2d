"""KeyedJaggedTensorPool against a list of samples, each a dict of lists."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec import KeyedJaggedTensor
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool

SIZE, LONGEST = 4, {"a": 2, "b": 3}


def bag(longest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 99), max_size=longest)


samples = st.fixed_dictionaries({"b": bag(3), "a": bag(2), "other": bag(4)})
places = st.integers(0, SIZE - 1)


def joined(batch: list[dict[str, list[int]]], keys: list[str], **kwargs) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lists({key: [s[key] for s in batch] for key in keys}, **kwargs)


@given(
    writes=st.lists(st.lists(st.tuples(places, samples), max_size=6), max_size=4),
    reads=st.lists(places, max_size=6),
    dtype=st.sampled_from([torch.int64, torch.int32]),
    is_weighted=st.booleans(),
)
def test_reads_what_was_written_last(writes, reads, dtype, is_weighted) -> None:
    pool = KeyedJaggedTensorPool(SIZE, LONGEST, dtype, is_weighted)
    plain = [{"a": [], "b": []} for _ in range(SIZE)]
    for write in writes:
        batch = [sample for _, sample in write]
        keys = ["other", "b", "a"]
        weights = {key: [[v / 2 for v in s[key]] for s in batch] for key in keys}
        features = joined(batch, keys, weights=weights if is_weighted else None, dtype=dtype)
        pool.update(torch.tensor([i for i, _ in write], dtype=torch.int64), features)
        for i, sample in write:
            plain[i] = {"a": sample["a"], "b": sample["b"]}
    result = pool.lookup(torch.tensor(reads, dtype=torch.int32))
    assert result.to_lists() == {key: [plain[i][key] for i in reads] for key in "ab"}
    assert result.values().dtype == dtype
    assert result.stride() == len(reads)
    if is_weighted:
        assert result.weights().tolist() == [v / 2 for v in result.values().tolist()]
    else:
        assert result.weights_or_none() is None


FEATURES = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4, 5, 6]]})


def test_state() -> None:
    pool = KeyedJaggedTensorPool(SIZE, LONGEST, enable_uvm=True)
    pool.update(torch.tensor([0, 3]), FEATURES)
    assert {name: t.tolist() for name, t in pool.state_dict().items()} == {
        "values": [[1, 0, 0, 0, 0], [0] * 5, [0] * 5, [2, 3, 4, 5, 6]],
        "key_lengths": [[1, 0], [0, 0], [0, 0], [2, 3]],
    }
    buffer = io.BytesIO()
    torch.save(pool.state_dict(), buffer)
    buffer.seek(0)
    other = KeyedJaggedTensorPool(SIZE, LONGEST, device="cpu")
    other.load_state_dict(torch.load(buffer))
    ids = torch.tensor([3, 0])
    assert other.lookup(ids).to_lists() == pool.lookup(ids).to_lists()
    weighted = KeyedJaggedTensorPool(SIZE, LONGEST, is_weighted=True, device="meta")
    assert list(weighted.state_dict()) == ["values", "weights", "key_lengths"]
    assert weighted.values.is_meta
    assert (pool.pool_size, pool.feature_max_lengths, pool.values_dtype) == (
        SIZE,
        LONGEST,
        torch.int64,
    )
    assert pool.device.type == "cpu"
    assert not pool.is_weighted


def test_bags_of_a_sample_follow_one_another() -> None:
    pool = KeyedJaggedTensorPool(2, LONGEST)
    pool.update(torch.tensor([1]), KeyedJaggedTensor.from_lists({"a": [[7]], "b": [[8, 9]]}))
    assert pool.values.tolist() == [[0] * 5, [7, 8, 9, 0, 0]]


def test_a_state_with_a_place_for_each_bag_is_refused() -> None:
    state = {
        "values": torch.tensor([[0] * 5, [7, 0, 8, 9, 0]]),
        "key_lengths": torch.tensor([[0, 0], [1, 2]], dtype=torch.int32),
    }
    with pytest.raises(RuntimeError, match="an earlier version saved them"):
        KeyedJaggedTensorPool(2, LONGEST).load_state_dict(state)


@pytest.mark.parametrize("wrong", [-1, SIZE])
def test_ids_out_of_range(wrong) -> None:
    pool = KeyedJaggedTensorPool(SIZE, LONGEST)
    ids = torch.tensor([0, wrong])
    for call in (lambda: pool.lookup(ids), lambda: pool.update(ids, FEATURES)):
        with pytest.raises(IndexError, match=rf"in \[0, 4\).*Received {wrong} at position 1"):
            call()
    assert not pool.key_lengths.any()


def test_what_does_not_fit() -> None:
    pool = KeyedJaggedTensorPool(SIZE, LONGEST)
    two = torch.tensor([0, 1])
    long = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3, 4]], "b": [[], [4]]})
    with pytest.raises(
        ValueError, match=r"of feature 'a' should hold at most 2.*Received 3 in sample 1"
    ):
        pool.update(two, long)
    assert not pool.key_lengths.any()
    with pytest.raises(ValueError, match=r"should have the feature 'b'. Received \['a'\]"):
        pool.update(two, FEATURES.permute([0]))
    with pytest.raises(ValueError, match=r"one sample an id \(1\). Received \[2, 2\]"):
        pool.update(two[:1], FEATURES)
    own_batches = KeyedJaggedTensor(
        ["a", "b"], torch.arange(3), lengths=torch.ones(3).int(), stride_per_key=[2, 1]
    )
    with pytest.raises(ValueError, match=r"one sample an id \(2\). Received \[2, 1\]"):
        pool.update(two, own_batches)
    with pytest.raises(TypeError, match=r"should hold torch.int32. Received torch.int64"):
        KeyedJaggedTensorPool(SIZE, LONGEST, torch.int32).update(two, FEATURES)
    with pytest.raises(ValueError, match=r"`values` should have weights"):
        KeyedJaggedTensorPool(SIZE, LONGEST, is_weighted=True).update(two, FEATURES)
    with pytest.raises(ValueError, match=r"at least one feature"):
        KeyedJaggedTensorPool(SIZE, {})
    with pytest.raises(ValueError, match=r"`feature_max_lengths\['a'\]` should be at least 1"):
        KeyedJaggedTensorPool(SIZE, {"a": 0})
