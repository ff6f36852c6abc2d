"""JaggedTensor, and the conversions between the sparse types."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec.sparse.jagged_tensor import (
    ComputeJTDictToKJT,
    ComputeKJTToJTDict,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    flatten_kjt_list,
    jt_is_equal,
    kjt_is_equal,
    unflatten_kjt_list,
)

T = torch.tensor
INTEGERS = [torch.int32, torch.int64]


def test_printed_forms():
    jt = JaggedTensor(values=T([5, 7, 1]), lengths=T([1, 2]))
    assert str(jt) == "JaggedTensor({\n    [[5], [7, 1]]\n})\n"
    assert repr(jt).startswith("<torchrec.sparse.jagged_tensor.JaggedTensor object at 0x")
    weighted = JaggedTensor(T([5, 7]), weights=T([0.5, 1.0]), lengths=T([2, 0]))
    assert str(weighted) == (
        'JaggedTensor({\n    "values": [[5, 7], []],\n    "weights": [[0.5, 1.0], []]\n})\n'
    )
    assert str(JaggedTensor(torch.ones(2, 2), lengths=T([0, 2]))) == (
        "JaggedTensor({\n    [[], [[1.0, 1.0], [1.0, 1.0]]]\n})\n"
    )


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_lengths_and_offsets_follow_from_one_another(dtype):
    values = T([5, 7, 1])
    by_lengths = JaggedTensor(values, lengths=T([1, 0, 2], dtype=dtype))
    assert by_lengths.offsets_or_none() is None
    assert by_lengths.offsets().tolist() == [0, 1, 1, 3]
    assert by_lengths.offsets_or_none() is by_lengths.offsets()
    assert by_lengths.offsets().dtype == dtype
    by_offsets = JaggedTensor(values, offsets=T([0, 1, 1, 3], dtype=dtype))
    assert by_offsets.lengths_or_none() is None
    assert by_offsets.lengths().tolist() == [1, 0, 2]
    assert jt_is_equal(by_lengths, by_offsets)


def test_dense_and_back():
    bags, weights = [T([1.0, 2.0]), T([]), T([3.0])], [T([0.1, 0.2]), T([]), T([0.3])]
    jt = JaggedTensor.from_dense(bags, weights)
    assert jt.lengths().dtype == torch.int32
    for a, b in zip(jt.to_dense(), bags, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(jt.to_dense_weights(), weights, strict=True):
        assert torch.equal(a, b)
    assert jt.to_padded_dense().tolist() == [[1, 2], [0, 0], [3, 0]]
    assert jt.to_padded_dense(1, -1.0).tolist() == [[1], [-1], [3]]
    assert torch.equal(jt.to_padded_dense_weights(1), T([[0.1], [0.0], [0.3]]))
    unweighted = JaggedTensor.from_dense(bags)
    assert unweighted.to_dense_weights() is None
    assert unweighted.to_padded_dense_weights() is None
    assert JaggedTensor.from_dense([]).to_padded_dense().shape == (0, 0)


def test_from_dense_lengths():
    padded = T([[1, 2], [3, 4], [5, 6]])
    jt = JaggedTensor.from_dense_lengths(padded, T([2, 0, 1]), padded.float())
    assert [bag.tolist() for bag in jt.to_dense()] == [[1, 2], [], [5]]
    assert jt.weights().tolist() == [1.0, 2.0, 5.0]


def test_values_of_several_dimensions_have_gradients():
    values = torch.rand(3, 2, requires_grad=True)
    jt = JaggedTensor(values, lengths=T([1, 2]))
    jt.to_padded_dense(1).sum().backward()
    assert values.grad.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_empties():
    assert JaggedTensor.empty().values().dtype == torch.int64
    empty = JaggedTensor.empty(True, None, torch.int32, torch.float64, torch.int64)
    assert [t.dtype for t in (empty.values(), empty.weights(), empty.lengths())] == [
        torch.int32,
        torch.float64,
        torch.int64,
    ]
    assert empty.offsets().tolist() == [0]
    like = JaggedTensor.empty_like(JaggedTensor(torch.ones(1, 3), lengths=T([1])))
    assert like.values().shape == (0, 3)
    assert like.lengths().shape == (0,)
    assert like.to(torch.device("meta")).device().type == "meta"


@pytest.mark.parametrize("nothing", [torch.Tensor(), T([]), T([], dtype=torch.int32)], ids=str)
def test_empty_tensors_of_any_dtype_are_no_bags(nothing):
    for bounds in (
        {"lengths": nothing},
        {"offsets": nothing},
        {"lengths": nothing, "offsets": nothing},
    ):
        jt = JaggedTensor(torch.Tensor(), torch.Tensor(), **bounds)
        assert (jt.lengths().tolist(), jt.offsets().tolist(), jt.to_dense()) == ([], [0], [])
        assert jt.lengths().dtype == jt.offsets().dtype
        assert jt.lengths().dtype == (torch.int32 if nothing.dtype == torch.int32 else torch.int64)
        assert jt.to_padded_dense().shape == (0, 0)
    with pytest.raises(ValueError, match=r"`lengths` should sum to the number of values \(3\)"):
        JaggedTensor(VALUES, lengths=T([], dtype=torch.int64))
    with pytest.raises(TypeError, match="`lengths` should be of dtype int32 or int64"):
        JaggedTensor(VALUES, lengths=T([]))


FORMS = {
    "lengths": {"lengths": T([1, 2])},
    "offsets": {"offsets": T([0, 1, 3])},
    "both": {"lengths": T([1, 2]), "offsets": T([0, 1, 3])},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind",
    [JaggedTensor, lambda values, **b: KeyedJaggedTensor(["a"], values, **b)],
    ids=["jt", "kjt"],
)
def test_what_was_not_given_is_none_until_it_is_asked_for(form, kind):
    def held(jt: JaggedTensor | KeyedJaggedTensor) -> list[bool]:
        return [jt.lengths_or_none() is not None, jt.offsets_or_none() is not None]

    given = [form != "offsets", form != "lengths"]
    jt, others = kind(VALUES, **FORMS[form]), [kind(VALUES, **bounds) for bounds in FORMS.values()]
    leaves, spec = pytree.tree_flatten(jt)
    again = pytree.tree_unflatten(leaves, spec)
    copies = [again, jt.to(torch.device("cpu")), copy.copy(jt), copy.deepcopy(jt)]
    copies.append(pickle.loads(pickle.dumps(jt)))
    jt.size_in_bytes()
    for other in others:
        is_equal = jt_is_equal if isinstance(jt, JaggedTensor) else kjt_is_equal
        assert is_equal(jt, other)
        assert jt.copy_(other) is jt
        assert held(other) == [
            other.lengths_or_none() is not None,
            other.offsets_or_none() is not None,
        ]
    assert held(jt) == given
    for other in copies:
        assert held(other) == ([True, False] if other is again and form == "both" else given)
        assert other.lengths().tolist() == [1, 2]
        assert other.offsets().tolist() == [0, 1, 3]
    # What was asked for is kept, and is no part of the structure.
    jt.lengths(), jt.offsets()
    assert held(jt) == held(jt.to(torch.device("cpu"))) == [True, True]
    assert pytree.tree_structure(jt) == spec
    for twin in (jt, jt.to(torch.device("cpu")), pickle.loads(pickle.dumps(jt))):
        assert held(pytree.tree_map(torch.clone, twin)) == held(pytree.tree_unflatten(leaves, spec))
    if isinstance(jt, KeyedJaggedTensor):
        tensors, contexts = flatten_kjt_list([jt])
        assert [tensors[2] is not None, tensors[3] is not None] == given
        assert held(*unflatten_kjt_list(tensors, contexts)) == given
        assert jt.length_per_key_or_none() is None


def test_copy_and_size():
    jt = JaggedTensor(T([5, 7]), T([0.5, 1.0]), lengths=T([1, 1]))
    jt.offsets()
    other = JaggedTensor(T([1, 2]), T([0.1, 0.2]), lengths=T([0, 2]))
    assert jt.copy_(other) is jt
    assert jt_is_equal(jt, other)
    assert jt.offsets().tolist() == [0, 0, 2]
    assert jt.size_in_bytes() == 16 + 8 + 16 + 24
    with pytest.raises(ValueError, match=r"`jt` should have tensors of the same sizes \(\[2\]\)"):
        jt.copy_(JaggedTensor(T([1]), T([0.1]), lengths=T([0, 1])))
    with pytest.raises(ValueError, match="`jt` should have weights if this has"):
        jt.copy_(JaggedTensor(T([1, 2]), lengths=T([0, 2])))


def test_equality_looks_at_everything():
    jt = JaggedTensor(T([5, 7]), lengths=T([1, 1]))
    assert not jt_is_equal(jt, JaggedTensor(T([5, 8]), lengths=T([1, 1])))
    assert not jt_is_equal(jt, JaggedTensor(T([5, 7]), lengths=T([2, 0])))
    assert not jt_is_equal(jt, JaggedTensor(T([5, 7]), T([1.0, 1.0]), lengths=T([1, 1])))
    assert not jt_is_equal(jt, JaggedTensor(T([5, 7]), lengths=T([1, 1], dtype=torch.int32)))


@pytest.mark.parametrize("other", ["x", None, 1, T([5, 7]), {}], ids=repr)
def test_nothing_else_is_equal(other):
    jt = JaggedTensor(T([5, 7]), lengths=T([1, 1]))
    kjt = KeyedJaggedTensor(["a"], T([5, 7]), lengths=T([1, 1]))
    for is_equal, own, odd in ((jt_is_equal, jt, kjt), (kjt_is_equal, kjt, jt)):
        assert is_equal(own, own)
        for third in (other, odd):
            assert is_equal(own, third) is is_equal(third, own) is is_equal(third, third) is False


VALUES = T([5, 7, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": VALUES}, ValueError, "`lengths` or `offsets` should be given"),
        ({"values": [1]}, TypeError, "`values` should be a tensor. Received list"),
        ({"values": T(1)}, ValueError, "`values` should have one dimension or more"),
        (
            {"values": VALUES, "lengths": T([1, 1])},
            ValueError,
            "`lengths` should sum to the number of values \\(3\\). Received a sum of 2",
        ),
        (
            {"values": VALUES, "lengths": T([4, -1])},
            ValueError,
            "`lengths` should be 0 or more. Received -1 in sample 1",
        ),
        (
            {"values": VALUES, "lengths": T([1.0, 2.0])},
            TypeError,
            "`lengths` should be of dtype int32 or int64. Received torch.float32",
        ),
        ({"values": VALUES, "lengths": [1, 2]}, TypeError, "`lengths` should be a tensor"),
        (
            {"values": VALUES, "offsets": T([1, 3])},
            ValueError,
            "`offsets` should start at 0. Received 1",
        ),
        (
            {"values": VALUES, "offsets": T([0, 2])},
            ValueError,
            "`offsets` should end at the number of values \\(3\\). Received 2",
        ),
        (
            {"values": VALUES, "offsets": T([0, 4, 3])},
            ValueError,
            "`offsets` should never fall. Received 4 and then 3 in sample 1",
        ),
        (
            {"values": VALUES, "offsets": T([], dtype=torch.int32)},
            ValueError,
            "`offsets` should be one-dimensional and hold one number more",
        ),
        (
            {"values": VALUES, "offsets": T([0, 1, 3]), "lengths": T([2, 1])},
            ValueError,
            "`offsets` should be the running sums of `lengths`",
        ),
        (
            {"values": VALUES, "offsets": T([0, 3]), "lengths": T([2, 1])},
            ValueError,
            "`offsets` should be one more than `lengths` \\(2\\). Received 2",
        ),
        (
            {"values": VALUES, "lengths": T([3]), "weights": T([1.0])},
            ValueError,
            "`weights` should be as many as the values \\(3\\). Received \\[1\\]",
        ),
        (
            {"values": VALUES, "lengths": T([3]).to("meta")},
            ValueError,
            "`lengths` should be on the device of the values \\(cpu\\). Received meta",
        ),
    ],
)
def test_malformed_parts_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        JaggedTensor(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: JaggedTensor(VALUES, lengths=T([3])).weights(),
            ValueError,
            "`weights` should be given to be read",
        ),
        (
            lambda: JaggedTensor.from_dense([T([1.0])], [T([1.0, 2.0])]),
            ValueError,
            "`weights` should be as many as the values of each bag \\(\\[1\\]\\)",
        ),
        (lambda: JaggedTensor.from_dense([1]), TypeError, "`values` should be a list of tensors"),
        (
            lambda: JaggedTensor.from_dense_lengths(T([[1, 2]]), T([3])),
            ValueError,
            "`lengths` should be at most the length of the rows \\(2\\). Received 3",
        ),
        (
            lambda: JaggedTensor.from_dense_lengths(T([[1, 2]]), T([1, 1])),
            ValueError,
            "`lengths` should be one for each row of `values`",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_read_on_a_device_without_numbers():
    jt = JaggedTensor(
        torch.empty(3, device="meta"), lengths=torch.empty(2, dtype=int, device="meta")
    )
    assert jt.offsets().shape == (3,)


def kjts() -> list[KeyedJaggedTensor]:
    variable = KeyedJaggedTensor(
        ["a", "b"],
        T([1, 2, 3, 4]),
        lengths=T([1, 1, 2]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["b", "a"], T([[0, 0, 0], [1, 0, 1]])),
    )
    return [
        KeyedJaggedTensor(["a", "b"], T([1, 2, 3]), lengths=T([1, 0, 0, 2])),
        KeyedJaggedTensor(["a"], T([1, 2]), T([0.5, 1.0]), offsets=T([0, 2])),
        variable,
    ]


def test_lists_of_kjts_are_flattened_and_back():
    tensors, contexts = flatten_kjt_list(kjts())
    assert len(tensors) == 18
    assert contexts == [["a", "b"], ["a"], ["a", "b", "b", "a"]]
    for a, b in zip(unflatten_kjt_list(tensors, contexts), kjts(), strict=True):
        assert kjt_is_equal(a, b)
    with pytest.raises(ValueError, match="`values` should be 6 for each of 1 contexts"):
        unflatten_kjt_list(tensors, contexts[:1])


def test_kjt_equality_looks_at_everything():
    for i, a in enumerate(kjts()):
        for j, b in enumerate(kjts()):
            assert kjt_is_equal(a, b) is (i == j)
    plain, _, variable = kjts()
    assert not kjt_is_equal(plain, plain.permute([1, 0]))
    other = kjts()[2]
    other.inverse_indices()[1][1, 1] = 1
    assert not kjt_is_equal(variable, other)


def test_dicts_as_modules():
    kjt = kjts()[0]
    by_key = ComputeKJTToJTDict()(kjt)
    assert list(by_key) == ["a", "b"]
    assert kjt_is_equal(ComputeJTDictToKJT()(by_key), kjt)


def test_saved_and_loaded():
    file = io.BytesIO()
    torch.save({"kjt": kjts()[0], "jt": kjts()[0]["a"]}, file)
    file.seek(0)
    loaded = torch.load(file)  # weights_only
    assert kjt_is_equal(loaded["kjt"], kjts()[0])
    assert loaded["kjt"].offset_per_key_or_none() == kjts()[0].offset_per_key_or_none()
    assert jt_is_equal(loaded["jt"], kjts()[0]["a"])


def test_files_hold_the_parts_by_name():
    variable = kjts()[2].sync()
    state = variable.__getstate__()
    assert list(state)[:5] == ["_keys", "_values", "_weights", "_lengths", "_offsets"]
    assert state["_strides_per_rank"] == variable.stride_per_key_per_rank()
    # A file of before has only what was given.
    del state["_length_per_key"], state["_offset_per_key"], state["_stride"]
    loaded = KeyedJaggedTensor.__new__(KeyedJaggedTensor)
    loaded.__setstate__(state)
    assert kjt_is_equal(loaded, variable)
    assert loaded.length_per_key_or_none() is None
    assert loaded.length_per_key() == variable.length_per_key()


def test_a_shallow_copy_shares_tensors_only():
    kjt = kjts()[0]
    twin = copy.copy(kjt.sync())
    assert twin.values() is kjt.values()
    twin.copy_(kjts()[0])
    assert twin.length_per_key_or_none() is None
    assert kjt.length_per_key_or_none() == [1, 2]


PUBLIC = [JaggedTensor, KeyedJaggedTensor, KeyedTensor, ComputeKJTToJTDict, ComputeJTDictToKJT]


class Derived(JaggedTensor):
    """A class of somebody else."""

    def twice(self) -> int:
        return 2 * self.values().numel()


@pytest.mark.parametrize("cls", [*PUBLIC, Derived], ids=lambda cls: cls.__name__)
def test_the_source_of_a_class_is_found(cls):
    source = inspect.getsource(cls)
    assert source.startswith(f"class {cls.__name__}(")
    own = [value for value in vars(cls).values() if inspect.isfunction(value)]
    assert own
    assert all(inspect.getsource(function).strip() in source for function in own)
    assert cls.__module__ == (__name__ if cls is Derived else "torchrec.sparse.jagged_tensor")
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert list(inspect.signature(JaggedTensor).parameters) == list(
        JaggedTensor.__init__.__code__.co_varnames[1:5]
    )


def test_other_values_and_weights_in_the_same_bags():
    for kjt in kjts():
        n = kjt.values().numel()
        other = kjt.sync().with_values(torch.arange(n)).with_weights(torch.ones(n))
        assert other.values().tolist() == list(range(n))
        assert other.weights().tolist() == [1] * n
        assert other.lengths() is kjt.lengths()
        assert other.length_per_key_or_none() == kjt.length_per_key()
        assert other.stride_per_key() == kjt.stride_per_key()
        assert other.inverse_indices_or_none() == kjt.inverse_indices_or_none()
        assert kjt.weights_or_none() is None or kjt.weights().tolist() == [0.5, 1.0]
