"""Feature processors of one feature and their collection: each weight looked up by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec import KeyedJaggedTensor
from torchrec.modules.feature_processor_ import (
    FeatureProcessor,
    FeatureProcessorsCollection,
    PositionWeightedModule,
    PositionWeightedModuleCollection,
    get_stride_per_key_per_rank,
    get_weights_list,
)

A = torch.tensor([1.0, 0.5, 0.25])
B = torch.tensor([3.0])


def batch(lengths: list[int], keys: str = "ab") -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        list(keys), torch.arange(sum(lengths)), lengths=torch.tensor(lengths, dtype=torch.int64)
    )


def collection() -> PositionWeightedModuleCollection:
    module = PositionWeightedModuleCollection({"a": 3, "b": 1})
    module.load_state_dict({"position_weights.a": A, "position_weights.b": B})
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("lengths", "expected", "gradient"),
    [
        ([], [], [0, 0, 0]),
        ([0], [], [0, 0, 0]),
        ([2], [1, 0.5], [1, 1, 0]),
        ([1, 0, 3], [1, 1, 0.5, 0.25], [2, 1, 1]),
    ],
    ids=["no_bags", "empty_bag", "one_bag", "odd"],
)
def test_module(dtype, lengths, expected, gradient) -> None:
    module = PositionWeightedModule(3)
    module.load_state_dict({"position_weight": A})
    module.to(dtype)
    feature = KeyedJaggedTensor(
        ["a"], torch.arange(sum(lengths)), lengths=torch.tensor(lengths, dtype=torch.int64)
    )["a"]
    module.pre_process_input(feature)
    result = module(feature)
    assert result.weights().dtype == dtype
    assert result.weights().tolist() == expected
    assert result.lengths().tolist() == lengths
    result.weights().sum().backward()
    assert module.position_weight.grad.tolist() == gradient
    module.reset_parameters()
    assert module.position_weight.tolist() == [1, 1, 1]


def test_module_refuses_longer_bags() -> None:
    message = r"Bags should hold at most 1 ids.*Received 2 in sample 1"
    with pytest.raises(ValueError, match=message):
        PositionWeightedModule(1)(batch([0, 2], "a")["a"])
    with pytest.raises(ValueError, match=r"`max_feature_length` should be at least 1. Received 0"):
        PositionWeightedModule(0)


def test_collection_and_its_gradients() -> None:
    module = collection()
    features = batch([1, 0, 3, 1, 1, 0])
    module.pre_process_input(features)
    result = module(features)
    assert result.weights().tolist() == [1, 1, 0.5, 0.25, 3, 3]
    result.weights().backward(torch.tensor([1.0, 10, 100, 1000, 7, 8]))
    assert module.position_weights["a"].grad.tolist() == [11, 100, 1000]
    assert module.position_weights["b"].grad.tolist() == [15]


def test_collection_weighs_other_features_with_one() -> None:
    features = batch([2, 5, 1, 2, 0, 1], "xaby"[:3])
    assert collection()(features).weights().tolist() == [1] * 7 + [1, 1, 0.5, 3]
    other = batch([2, 1], "xy")
    assert collection()(other).weights().tolist() == [1] * 3
    assert collection()(KeyedJaggedTensor.empty()).weights().tolist() == []


def test_collection_names_feature_and_sample_of_a_longer_bag() -> None:
    with pytest.raises(ValueError, match=r"of feature 'b' should hold at most 1.*2 in sample 1"):
        collection()(batch([3, 3, 0, 2]))


def test_variable_batch_per_key() -> None:
    features = KeyedJaggedTensor(
        ["b", "a"],
        torch.arange(5),
        lengths=torch.tensor([1, 1, 0, 1, 2]),
        stride_per_key_per_rank=[[3], [2]],
    )
    result = collection()(features)
    assert result.weights().tolist() == [3, 3, 1, 1, 0.5]
    assert get_stride_per_key_per_rank(result) == [[3], [2]]
    assert get_stride_per_key_per_rank(batch([1, 1])) is None
    features = KeyedJaggedTensor(
        ["b", "a"],
        torch.arange(6),
        lengths=torch.tensor([1, 1, 2, 1, 1]),
        stride_per_key_per_rank=[[3], [2]],
    )
    with pytest.raises(ValueError, match=r"of feature 'b' should hold at most 1.*2 in sample 2"):
        collection()(features)


def test_state_names_copy_and_reset() -> None:
    module = collection()
    assert list(module.state_dict()) == ["position_weights.a", "position_weights.b"]
    twin = module.copy(torch.device("cpu"))
    module.reset_parameters()
    assert module.position_weights["a"].tolist() == [1, 1, 1]
    assert twin.position_weights["a"].tolist() == A.tolist()
    with pytest.raises(RuntimeError, match=r"Missing key"):
        module.load_state_dict({"position_weights.a": A})


def test_weights_of_positions_given() -> None:
    features = batch([2, 1, 1, 0])
    weights = {"a": nn.Parameter(A), "x": nn.Parameter(B)}
    actual = get_weights_list(torch.tensor([0, 2, 1, 0]), features, weights)
    assert actual.tolist() == [1, 0.25, 0.5, 1]
    actual.sum().backward()
    assert weights["a"].grad.tolist() == [1, 1, 1]
    with pytest.raises(IndexError, match=r"of feature 'a' should be in \[0, 3\).*from 0 to 3"):
        get_weights_list(torch.tensor([0, 3, 1, 0]), features, weights)
    assert (
        get_weights_list(torch.zeros(0, dtype=torch.int64), KeyedJaggedTensor.empty(), {}) is None
    )


def test_base_classes_leave_forward_to_others() -> None:
    for base in (FeatureProcessor, FeatureProcessorsCollection):
        with pytest.raises(TypeError, match=r"abstract"):
            base()


def test_weights_are_read_as_a_dict_of_parameters() -> None:
    weights = collection().position_weights
    expected = nn.ParameterDict({"a": A, "b": B})
    assert list(weights.keys()) == list(weights) == ["a", "b"]
    assert [w.tolist() for w in weights.values()] == [A.tolist(), B.tolist()]
    assert [(k, w.tolist()) for k, w in weights.items()] == [("a", A.tolist()), ("b", B.tolist())]
    assert all(isinstance(weight, nn.Parameter) for weight in weights.values())
    assert list(reversed(weights)) == ["b", "a"]
    assert weights.get("a") is weights["a"]
    assert weights.get("x") is None
    assert weights.get("x", 5) == 5
    assert len(weights) == 2
    assert "a" in weights
    names = set(dir(nn.ParameterDict)) - set(dir(nn.Module))
    assert [name for name in names if not name.startswith("_") and not hasattr(weights, name)] == []
    assert str(dict(expected.items())) == str(dict(weights))


def test_weights_are_changed_as_a_dict_of_parameters() -> None:
    module = collection()
    weights, a = module.position_weights, module.position_weights["a"]
    twin = weights.copy()
    assert twin is not weights
    assert twin["a"] is a
    assert {twin, weights} == {weights, twin}
    weights["c"] = torch.ones(2)
    weights.update({"d": nn.Parameter(B)})
    assert list(module.state_dict()) == [f"position_weights.{name}" for name in "abcd"]
    assert weights.pop("d").tolist() == B.tolist()
    assert weights.setdefault("a", B) is a
    del weights["b"]
    assert list(dict(weights.named_parameters())) == ["a", "c"]
    assert list(weights | {"z": B}) == ["a", "c", "z"]
    assert list({"z": B} | weights) == ["z", "a", "c"]
    weights |= {"y": B}
    assert list(weights) == ["a", "c", "y"]
    assert [w.tolist() for w in weights.fromkeys(["k", "l"], B).values()] == [B.tolist()] * 2
    assert weights.popitem()[1].tolist() == A.tolist()
    weights.clear()
    assert list(module.parameters()) == []
    assert list(twin) == ["a", "b"]
    with pytest.raises(ValueError, match="`position_weights` should have names without dots"):
        weights["a.b"] = B
    with pytest.raises(TypeError, match="`position_weights` of feature 'a' should be a Tensor"):
        weights["a"] = [1.0]


def test_features_named_as_methods_have_weights() -> None:
    module = PositionWeightedModuleCollection({"values": 2, "items": 1})
    assert list(module.state_dict()) == ["position_weights.values", "position_weights.items"]
    assert [len(weight) for weight in module.position_weights.values()] == [2, 1]
