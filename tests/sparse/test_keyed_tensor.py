"""KeyedTensor and the regrouping of its columns."""

from __future__ import annotations

import pytest
import torch

from torchrec.sparse.jagged_tensor import KeyedTensor, permute_multi_embedding, regroup_kts

T = torch.tensor


def kt(widths: dict[str, int], batch: int = 3, dtype: torch.dtype = torch.float32) -> KeyedTensor:
    values = torch.rand(batch, sum(widths.values())).to(dtype)
    return KeyedTensor(list(widths), list(widths.values()), values)


def test_reading():
    tensor = KeyedTensor(["a", "b", "c"], [1, 2, 0], T([[1.0, 2.0, 3.0]]))
    assert tensor.keys() == ["a", "b", "c"]
    assert tensor.offset_per_key() == [0, 1, 3, 3]
    assert tensor.index_per_key() == {"a": 0, "b": 1, "c": 2}
    assert tensor["b"].tolist() == [[2.0, 3.0]]
    assert tensor["c"].shape == (1, 0)
    assert {k: v.tolist() for k, v in tensor.to_dict().items()} == {
        "a": [[1.0]],
        "b": [[2.0, 3.0]],
        "c": [[]],
    }
    assert tensor.key_dim() == 1
    assert tensor.device() == torch.device("cpu")
    assert tensor.size_in_bytes() == 12
    assert tensor.to(torch.device("meta")).values().is_meta
    assert str(tensor) == (
        'KeyedTensor({\n    "a": [[1.0]],\n    "b": [[2.0, 3.0]],\n    "c": [[]]\n})\n'
    )


def test_other_dimensions():
    tensors = [torch.rand(2, 3), torch.rand(1, 3)]
    tensor = KeyedTensor.from_tensor_list(["a", "b"], tensors, key_dim=0, cat_dim=0)
    assert torch.equal(tensor["b"], tensors[1])
    (found,) = KeyedTensor.regroup([tensor], [["b", "a"]])
    assert torch.equal(found, torch.cat(tensors[::-1]))


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("regroup", [KeyedTensor.regroup, regroup_kts, permute_multi_embedding])
def test_regroup(regroup, batch):
    tensors = [kt({"a": 2, "b": 3, "e": 0}, batch), kt({"c": 4}, batch), kt({"d": 1}, batch)]
    groups = [["c", "a"], ["b", "c", "b", "e"], []]
    found = regroup(tensors, groups)
    column = {key: part for tensor in tensors for key, part in tensor.to_dict().items()}
    for group, result in zip(groups, found, strict=True):
        parts = [column[key] for key in group]
        assert torch.equal(result, torch.cat(parts, 1) if parts else torch.empty(batch, 0))


def test_regroup_has_gradients():
    values = torch.rand(2, 5, requires_grad=True)
    tensor = KeyedTensor(["a", "b"], [2, 3], values)
    first, second = KeyedTensor.regroup([tensor], [["a"], ["a"]])
    (first.sum() + 2 * second.sum()).backward()
    assert values.grad.tolist() == [[3, 3, 0, 0, 0]] * 2


def test_regroup_of_dtypes_that_differ():
    tensors = [kt({"a": 2}), kt({"b": 1}, dtype=torch.float64)]
    (found,) = KeyedTensor.regroup(tensors, [["b", "a"]])
    assert found.dtype == torch.float64
    assert torch.equal(found[:, 1:], tensors[0].values().double())


def test_regroup_as_dict():
    tensors = [kt({"a": 2}), kt({"b": 1})]
    found = KeyedTensor.regroup_as_dict(tensors, [["b"], ["a"]], keys=["x", "y"])
    assert torch.equal(found["x"], tensors[1].values())
    assert torch.equal(found["y"], tensors[0].values())
    with pytest.raises(ValueError, match=r"`keys` should be one a group \(2\). Received 1"):
        KeyedTensor.regroup_as_dict(tensors, [["b"], ["a"]], keys=["x"])


def test_nothing_of_any_shape_is_accepted():
    for values in (torch.Tensor(), torch.empty(3, 0), torch.empty(0, 2, 4)):
        empty = KeyedTensor([], [], values)
        assert (empty.keys(), empty.to_dict(), empty.offset_per_key()) == ([], {}, [0])
        assert str(empty) == "KeyedTensor()\n"
        full = KeyedTensor(["a"], [2], T([[1.0, 2.0]]))
        for both in ([empty, full], [full, empty]):
            assert [t.tolist() for t in KeyedTensor.regroup(both, [["a"]])] == [[[1.0, 2.0]]]
    with pytest.raises(ValueError, match="`length_per_key` should not be negative and sum to"):
        KeyedTensor([], [], torch.ones(1, 2))


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: KeyedTensor(["a"], [2], ONES),
            ValueError,
            "`length_per_key` should not be negative and sum to values.size\\(1\\) \\(3\\)",
        ),
        (
            lambda: KeyedTensor(["a"], [1, 2], ONES),
            ValueError,
            "`length_per_key` should be one a key \\(1\\)",
        ),
        (
            lambda: KeyedTensor(["a", "b"], [4, -1], ONES),
            ValueError,
            "`length_per_key` should not be negative",
        ),
        (lambda: KeyedTensor(["a"], [3], ONES, key_dim=2), ValueError, "`key_dim` should be a dim"),
        (
            lambda: KeyedTensor(["a"], [3], ONES, offset_per_key=[0, 2]),
            ValueError,
            "`offset_per_key` should be \\[0, 3\\]",
        ),
        (
            lambda: KeyedTensor(["a", "b"], [1, 2], ONES, offset_per_key=[0, 2, 3]),
            ValueError,
            "`offset_per_key` should be \\[0, 1, 3\\]",
        ),
        (
            lambda: KeyedTensor(["a", "b"], [1, 2], ONES, index_per_key={"a": 1, "b": 0}),
            ValueError,
            "`index_per_key` should be the position of each of `keys`",
        ),
        (lambda: KeyedTensor(["a"], [3], [[1]]), TypeError, "`values` should be a tensor"),
        (lambda: KeyedTensor([1], [3], ONES), TypeError, "`keys` should be strings"),
        (
            lambda: KeyedTensor(["a", "a"], [1, 2], ONES)["a"],
            ValueError,
            "`keys` should be distinct to be told apart",
        ),
        (lambda: KeyedTensor(["a"], [3], ONES)["b"], KeyError, "Key should be one of \\['a'\\]"),
        (lambda: KeyedTensor.regroup([], [["a"]]), ValueError, "should hold at least one Keyed"),
        (
            lambda: KeyedTensor.regroup([1], [["a"]]),
            TypeError,
            "`keyed_tensors` should be a list of Keyed",
        ),
        (
            lambda: KeyedTensor.regroup([kt({"a": 1})], [["b"]]),
            KeyError,
            "Key should be one of \\[\\['a'\\]\\]. Received 'b'",
        ),
        (
            lambda: KeyedTensor.regroup([kt({"a": 1}), kt({"a": 1})], [["a"]]),
            ValueError,
            "Key 'a' should be in one of the keyed tensors. Received it in numbers 0 and 1",
        ),
        (
            lambda: KeyedTensor.from_tensor_list(["a"], []),
            ValueError,
            "`tensors` should be one a key \\(1\\)",
        ),
        (
            lambda: KeyedTensor.from_tensor_list(["a", "b"], [ONES, ONES[:1]]),
            ValueError,
            "`tensors` should be alike in every dimension but 1",
        ),
        (
            lambda: KeyedTensor.from_tensor_list(["a"], [ONES], key_dim=0),
            ValueError,
            "`cat_dim` should be `key_dim` \\(0\\)",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
