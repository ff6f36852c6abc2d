"""Look-ups of pools: the objects, and the tensors that their owner registers."""

from __future__ import annotations

import random

import pytest
import torch

from torchrec import JaggedTensor
from torchrec.modules import object_pool_lookups
from torchrec.modules.object_pool_lookups import (
    KeyedJaggedTensorPoolLookup,
    TensorJaggedIndexSelectLookup,
    TensorLookup,
    TensorPoolLookup,
)

CPU = torch.device("cpu")
T = torch.tensor


def test_vectors():
    lookup = TensorLookup(4, 2, torch.float32, CPU)
    lookup.update(T([3, 1, 3]), T([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert lookup(T([1, 0, 3])).tolist() == [[3, 4], [0, 0], [5, 6]]
    ((name, tensor),) = lookup.states_to_register()
    assert (name, tensor.tolist()) == ("_pool", [[0, 0], [3, 4], [0, 0], [5, 6]])
    lookup.set_state(torch.arange(8.0).view(4, 2))
    assert lookup.lookup(T([3], dtype=torch.int32)).tolist() == [[6, 7]]
    assert tensor[0].tolist() == [0, 1]  # the one that was registered
    with pytest.raises(ValueError, match=r"`values` should be \(4, 2\)\. Received \(3, 2\)"):
        lookup.set_state(torch.zeros(3, 2))
    with pytest.raises(IndexError, match=r"`ids` should be in \[0, 4\).* Received 4 at position 1"):
        lookup(T([0, 4]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_samples(seed, is_weighted):
    """Against a list of samples, each of a bag a feature."""
    draw = random.Random(seed)
    limits = {"a": 2, "b": 3, "c": 1}
    lookup = TensorJaggedIndexSelectLookup(5, torch.int64, limits, is_weighted, CPU)
    kept = [[[] for _ in limits] for _ in range(5)]
    for _ in range(4):
        ids = [draw.randrange(5) for _ in range(draw.randint(0, 4))]
        samples = [
            [
                [draw.randrange(100) for _ in range(draw.randint(0, most))]
                for most in limits.values()
            ]
            for _ in ids
        ]
        bags = [bag for sample in samples for bag in sample]
        values = T([v for bag in bags for v in bag], dtype=torch.int64)
        lookup.update(
            T(ids, dtype=torch.int64),
            JaggedTensor(
                values,
                weights=values / 2 if is_weighted else None,
                lengths=T([len(bag) for bag in bags], dtype=torch.int32),
            ),
        )
        for at, sample in zip(ids, samples, strict=True):
            kept[at] = sample
        asked = [draw.randrange(5) for _ in range(3)]
        found = lookup(T(asked))
        assert [bag.tolist() for bag in found.to_dense()] == [b for at in asked for b in kept[at]]
        if is_weighted:
            assert torch.equal(found.weights(), found.values() / 2)
        else:
            assert found.weights_or_none() is None
    tensors = dict(lookup.states_to_register())
    assert list(tensors) == ["values", *(["weights"] if is_weighted else []), "key_lengths"]
    assert tensors["key_lengths"].tolist() == [[len(bag) for bag in sample] for sample in kept]


@pytest.mark.parametrize(
    "lookup",
    [
        TensorLookup(4, 2, torch.float32, CPU),
        TensorJaggedIndexSelectLookup(4, torch.int64, {"a": 1}, True, CPU),
    ],
    ids=lambda lookup: type(lookup).__name__,
)
def test_a_look_up_has_no_state_itself(lookup):
    assert (dict(lookup.state_dict()), list(lookup.buffers()), list(lookup.parameters())) == (
        {},
        [],
        [],
    )


def test_one_bag_a_feature_and_id():
    lookup = TensorJaggedIndexSelectLookup(4, torch.int64, {"a": 1, "b": 1}, False, CPU)
    with pytest.raises(ValueError, match=r"should have 2 bags for each of the 1 ids\. Received 3"):
        lookup.update(T([0]), JaggedTensor(T([1]), lengths=T([1, 0, 0])))


@pytest.mark.parametrize("kind", ["Float", "Int32", "Int64"])
def test_shared_memory_is_refused(kind):
    cls = getattr(object_pool_lookups, f"UVMCaching{kind}Lookup")
    arguments = (4, torch.float32, CPU) if kind == "Float" else ({"a": 2}, False, CPU)
    with pytest.raises(NotImplementedError, match=f"UVMCaching{kind}Lookup keeps .* not supported"):
        cls(4, *arguments)
    assert issubclass(cls, TensorPoolLookup if kind == "Float" else KeyedJaggedTensorPoolLookup)
