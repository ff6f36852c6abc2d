"""KeyedJaggedTensor: reading, cutting, joining, moving, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    jt_is_equal,
    kjt_is_equal,
)

T = torch.tensor
INTEGERS = [torch.int32, torch.int64]
CPU = torch.device("cpu")
LISTS = {"a": [[1, 2], [], [3]], "b": [[], [], []], "c": [[4], [5, 6, 7], []]}
WEIGHTS = {k: [[x / 2 for x in bag] for bag in bags] for k, bags in LISTS.items()}
VARIABLE = {"a": [[1], [2, 3]], "b": [[4, 5, 6]], "c": []}


def make(
    lists: dict[str, list[list[int]]],
    dtype: torch.dtype = torch.int64,
    lengths_dtype: torch.dtype = torch.int64,
    weighted: bool = False,
    offsets: bool = False,
) -> KeyedJaggedTensor:
    flat = [bag for bags in lists.values() for bag in bags]
    values = T([x for bag in flat for x in bag], dtype=dtype)
    lengths = T([len(bag) for bag in flat], dtype=lengths_dtype)
    strides = [len(bags) for bags in lists.values()]
    return KeyedJaggedTensor(
        list(lists),
        values,
        values / 2 if weighted else None,
        None if offsets else lengths,
        torch.nn.functional.pad(lengths.cumsum(0, dtype=lengths_dtype), (1, 0))
        if offsets
        else None,
        stride_per_key=strides if len(set(strides)) > 1 else None,
    )


FORMS = {
    "plain": {},
    "int32": {"dtype": torch.int32, "lengths_dtype": torch.int32},
    "mixed": {"dtype": torch.int32},
    "floats": {"dtype": torch.float32},
    "weighted": {"weighted": True},
    "offsets": {"offsets": True, "weighted": True},
}
BATCHES = {
    "usual": LISTS,
    "variable": VARIABLE,
    "batch_of_zero": {"a": [], "b": []},
    "nothing_in_it": {"a": [[], []], "b": [[], []]},
    "one_key": {"a": [[1], [2]]},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
batches = pytest.mark.parametrize("lists", BATCHES.values(), ids=BATCHES)


@forms
@batches
def test_every_operation_keeps_the_bags(lists, form):
    kjt = make(lists, **form)
    keys = list(lists)
    assert kjt.to_lists() == lists
    assert kjt.stride_per_key() == [len(bags) for bags in lists.values()]
    assert kjt.length_per_key() == [sum(map(len, bags)) for bags in lists.values()]
    for key, jt in kjt.to_dict().items():
        assert [bag.tolist() for bag in jt.to_dense()] == lists[key]
        assert jt_is_equal(kjt[key], jt)
    for order in ([*range(len(keys))][::-1], [0], []):
        assert kjt.permute(order).to_lists() == {keys[i]: lists[keys[i]] for i in order}
    halves = kjt.split([1, 0, len(keys) - 1])
    assert [half.keys() for half in halves] == [keys[:1], [], keys[1:]]
    joined = KeyedJaggedTensor.concat(halves)
    assert joined.to_lists() == lists
    assert kjt_is_equal(joined, make(lists, **form))
    assert kjt_is_equal(KeyedJaggedTensor.from_jt_dict(kjt.to_dict()), joined)
    assert kjt_is_equal(kjt.to(torch.device("cpu")), kjt)
    assert kjt_is_equal(kjt.flatten_lengths(), kjt)
    if form.get("weighted"):
        for part in (joined, *halves, kjt.permute([0]), *kjt.to_dict().values()):
            assert torch.equal(part.weights(), part.values() / 2)


def test_printed_forms():
    kjt = KeyedJaggedTensor(
        keys=["product", "user"],
        values=T([1, 2, 1, 5, 2, 3, 4, 1]),
        lengths=T([3, 1, 2, 2]),
    )
    assert str(kjt) == (
        'KeyedJaggedTensor({\n    "product": [[1, 2, 1], [5]],\n    "user": [[2, 3], [4, 1]]\n})\n'
    )
    weighted = KeyedJaggedTensor(["f"], T([0, 1]), torch.ones(2), lengths=T([2, 0]))
    assert str(weighted) == (
        'KeyedJaggedTensor({\n    "f": {\n        "values": [[0, 1], []],\n'
        '        "weights": [[1.0, 1.0], []]\n    }\n})\n'
    )
    assert str(kjt.permute([1, 0, 1])) == (
        'KeyedJaggedTensor({\n    "user": [[2, 3], [4, 1]],\n    "product": [[1, 2, 1], [5]],\n'
        '    "user": [[2, 3], [4, 1]]\n})\n'
    )
    assert str(KeyedJaggedTensor.empty()) == "KeyedJaggedTensor()\n"
    assert repr(kjt).startswith("<torchrec.sparse.jagged_tensor.KeyedJaggedTensor object at 0x")


def test_numbers_on_the_host():
    kjt = make(LISTS)
    assert kjt.length_per_key_or_none() is None
    assert kjt.offset_per_key_or_none() is None
    assert kjt.sync() is kjt
    assert kjt.length_per_key_or_none() == [3, 0, 4]
    assert kjt.offset_per_key_or_none() == [0, 3, 3, 7]
    assert kjt.unsync() is kjt
    assert kjt.offset_per_key_or_none() is None
    assert kjt.lengths_offset_per_key() == [0, 3, 6, 9]
    assert kjt.index_per_key() == {"a": 0, "b": 1, "c": 2}
    assert kjt.stride() == 3
    assert kjt.stride_per_key_per_rank() == []
    assert not kjt.variable_stride_per_key()
    assert kjt.size_in_bytes() == 7 * 8 + 9 * 8
    by_sync = KeyedJaggedTensor.from_lengths_sync(["a"], T([5]), T([1]))
    assert by_sync.offset_per_key_or_none() == [0, 1]
    by_sync = KeyedJaggedTensor.from_offsets_sync(["a"], T([5]), T([0, 1]))
    assert by_sync.length_per_key_or_none() == [1]


@pytest.mark.parametrize(
    "given", [[[2], [1]], T([[2], [1]], dtype=torch.int32)], ids=["list", "tensor"]
)
def test_variable_batch(given):
    inverse = (["b", "a"], T([[0, 0, 0], [1, 0, 1]]))
    kjt = KeyedJaggedTensor(
        ["a", "b"],
        T([1, 2, 3, 4]),
        lengths=T([1, 1, 2]),
        stride_per_key_per_rank=given,
        inverse_indices=inverse,
    )
    assert kjt.variable_stride_per_key()
    assert kjt.stride() == 3  # the full batch
    assert kjt.stride_per_key() == [2, 1]
    assert kjt.stride_per_key_per_rank() == [[2], [1]]
    expanded = kjt.expand_inverse()
    assert expanded.to_lists() == {"a": [[2], [1], [2]], "b": [[3, 4]] * 3}
    assert not expanded.variable_stride_per_key()
    permuted = kjt.permute([1, 0])
    assert permuted.stride_per_key() == [1, 2]
    assert permuted.expand_inverse().to_lists() == {"b": [[3, 4]] * 3, "a": [[2], [1], [2]]}
    parts = kjt.split([1, 1])
    assert parts[0].expand_inverse().to_lists() == {"a": [[2], [1], [2]]}
    again = KeyedJaggedTensor.concat(parts)
    assert kjt_is_equal(again, kjt.permute([0, 1]))
    assert again.inverse_indices() is inverse
    moved = kjt.to(torch.device("meta"))
    assert moved.inverse_indices()[1].is_meta
    assert moved.stride_per_key() == [2, 1]


def test_expansion_takes_the_weights_and_their_gradients_along():
    weights = T([1.0, 2.0], requires_grad=True)
    kjt = KeyedJaggedTensor(
        ["a"],
        T([1, 2]),
        weights,
        lengths=T([1, 1]),
        stride_per_key_per_rank=[[2]],
        inverse_indices=(["a"], T([[1, 1, 0]])),
    )
    kjt.expand_inverse().weights().sum().backward()
    assert weights.grad.tolist() == [1.0, 2.0]


def test_joining_inverse_indices():
    def one(key: str) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            [key],
            T([1, 2]),
            lengths=T([1, 1]),
            stride_per_key_per_rank=[[2]],
            inverse_indices=([key], T([[1, 0, 0]])),
        )

    joined = KeyedJaggedTensor.concat([one("a"), one("b")])
    assert joined.inverse_indices()[0] == ["a", "b"]
    assert joined.expand_inverse().to_lists() == {"a": [[2], [1], [1]], "b": [[2], [1], [1]]}


def test_weights_keep_their_gradients():
    weights = torch.ones(7, requires_grad=True)
    kjt = KeyedJaggedTensor(list(LISTS), make(LISTS).values(), weights, make(LISTS).lengths())
    (kjt.permute([2, 0]).weights().sum() + kjt["a"].weights().sum() * 2).backward()
    assert weights.grad.tolist() == [3.0] * 3 + [1.0] * 4


def test_empties():
    empty = KeyedJaggedTensor.empty(True, None, torch.int32, torch.float64, torch.int64)
    assert [t.dtype for t in (empty.values(), empty.weights(), empty.lengths())] == [
        torch.int32,
        torch.float64,
        torch.int64,
    ]
    assert (empty.keys(), empty.stride(), empty.offsets().tolist()) == ([], 0, [0])
    assert KeyedJaggedTensor.empty().values().dtype == torch.int64
    like = KeyedJaggedTensor.empty_like(make(LISTS, weighted=True))
    assert (like.keys(), like.stride(), like.to_dict()) == ([], 3, {})
    assert like.weights().shape == (0,)
    assert KeyedJaggedTensor.empty_like(make(LISTS), torch.device("meta")).values().is_meta
    kjt = make(LISTS)
    assert kjt_is_equal(KeyedJaggedTensor.concat([kjt, KeyedJaggedTensor.empty()]), kjt)
    nothing = KeyedJaggedTensor.empty()
    assert kjt_is_equal(KeyedJaggedTensor.concat([nothing, kjt, nothing]), kjt)
    assert KeyedJaggedTensor.concat([nothing, nothing]).keys() == []
    assert KeyedJaggedTensor(["a"], T([]), lengths=T([], dtype=torch.int32)).stride() == 0
    assert KeyedJaggedTensor([], T([]), lengths=T([], dtype=torch.int32), stride=5).stride() == 5


@pytest.mark.parametrize("nothing", [torch.Tensor(), T([]), T([], dtype=torch.int32)], ids=str)
def test_empty_tensors_of_any_dtype_are_no_bags(nothing):
    for keys in ([], ["a", "b"]):
        for bounds in ({"lengths": nothing}, {"offsets": nothing}):
            kjt = KeyedJaggedTensor(keys, torch.Tensor(), weights=torch.Tensor(), **bounds)
            assert (kjt.stride(), kjt.lengths().tolist(), kjt.offsets().tolist()) == (0, [], [0])
            assert kjt.to_lists() == {key: [] for key in keys}
            assert kjt.length_per_key() == [0] * len(keys)
    with pytest.raises(TypeError, match="`lengths` should be of dtype int32 or int64"):
        KeyedJaggedTensor(["a"], T([1]), lengths=torch.Tensor())


def test_without_keys_and_values_nothing_else_is_needed():
    kjt = KeyedJaggedTensor([], torch.Tensor())
    assert (kjt.keys(), kjt.stride(), kjt.lengths().tolist(), kjt.to_dict()) == ([], 0, [], {})
    assert str(kjt) == "KeyedJaggedTensor()\n"
    assert KeyedJaggedTensor([], torch.Tensor(), stride=3).stride() == 3
    assert kjt_is_equal(KeyedJaggedTensor.concat([kjt, make(LISTS)]), make(LISTS))
    with pytest.raises(ValueError, match="`lengths` or `offsets` should be given"):
        KeyedJaggedTensor(["a"], torch.Tensor())


@pytest.mark.parametrize("given", [None, 7], ids=["largest", "given"])
@pytest.mark.parametrize("sizes", [[[3], [2], [1]], T([[3], [2], [1]])], ids=["list", "tensor"])
def test_parts_of_a_variable_batch_are_of_the_same_full_batch(given, sizes):
    kjt = KeyedJaggedTensor(
        ["a", "b", "c"],
        torch.arange(6),
        lengths=torch.ones(6, dtype=torch.int64),
        stride=given,
        stride_per_key_per_rank=sizes,
    )
    full = given or 3
    assert kjt.stride() == full
    parts = [kjt.permute([1, 2]), kjt.permute([2]), *kjt.split([1, 0, 2]), kjt.split([2, 1])[1]]
    assert [part.stride_per_key() for part in parts] == [[2, 1], [1], [3], [], [2, 1], [1]]
    for part in parts:
        again = pytree.tree_unflatten(*pytree.tree_flatten(part))
        for same in (part, part.permute(list(range(len(part.keys())))), part.to(CPU), again):
            assert same.stride() == full
            assert same.stride_per_key() == part.stride_per_key()
    assert kjt["b"].lengths().tolist() == [1, 1]
    assert KeyedJaggedTensor.concat([kjt.permute([1]), kjt.permute([2])]).stride() == full


def test_two_dimensional_lengths_are_flattened():
    kjt = KeyedJaggedTensor(["a", "b"], T([1, 2, 3]), lengths=T([[1, 1], [0, 1]]))
    assert kjt.lengths().tolist() == [1, 1, 0, 1]


def test_known_numbers_are_taken():
    kjt = KeyedJaggedTensor(
        list(LISTS),
        make(LISTS).values(),
        lengths=make(LISTS).lengths(),
        stride=3,
        stride_per_key=[3, 3, 3],
        length_per_key=[3, 0, 4],
        lengths_offset_per_key=[0, 3, 6, 9],
        offset_per_key=[0, 3, 3, 7],
        index_per_key={"a": 0, "b": 1, "c": 2},
        jt_dict=make(LISTS).to_dict(),
    )
    assert kjt.length_per_key_or_none() == [3, 0, 4]
    assert not kjt.variable_stride_per_key()
    assert [bag.tolist() for bag in kjt["c"].to_dense()] == LISTS["c"]


def test_copy_dtype_and_storage():
    kjt = make(LISTS, weighted=True)
    assert kjt.to(torch.device("cpu"), dtype=torch.float64).weights().dtype == torch.float64
    assert kjt.to(torch.device("cpu"), dtype=torch.float64).values().dtype == torch.int64
    kjt.sync().offsets()
    other = make({"a": [[], [2, 1], [3]], "b": [[], [], []], "c": LISTS["c"]}, weighted=True)
    assert kjt.copy_(other) is kjt
    assert kjt_is_equal(kjt, other)
    assert kjt.offsets().tolist() == other.offsets().tolist()
    assert kjt.clear_storage() == 7 * 8 + 7 * 4 + 9 * 8 + 10 * 8
    assert kjt.values().untyped_storage().nbytes() == 0


def sent(lists: dict[str, list[list[int]]], **form: object) -> KeyedJaggedTensor:
    return make(lists, **form)


def test_what_is_sent_between_ranks():
    kjt = make(LISTS, weighted=True)
    assert kjt.dist_labels() == ["lengths", "values", "weights"]
    assert kjt.dist_splits([1, 2]) == [[3, 6], [3, 4], [3, 4]]
    variable = make(VARIABLE)
    assert variable.dist_labels() == ["lengths", "values", "strides"]
    assert variable.dist_tensors()[2].tolist() == [2, 1, 0]
    assert variable.dist_splits([2, 1]) == [[3, 0], [6, 0], [2, 1]]
    with pytest.raises(
        ValueError, match=r"`key_splits` should not be negative and sum to .* \(3\)"
    ):
        kjt.dist_splits([1, 1])


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("with_recat", [False, True])
@pytest.mark.parametrize("variable", [False, True], ids=["one_size", "variable"])
def test_what_ranks_sent_is_put_together(variable, with_recat, weighted):
    """Two ranks with batches of 2 and 1 (or of their own sizes) send both keys to this one."""
    ranks = [{"a": [[1], [2, 3]], "b": [[], [4]]}, {"a": [[5]], "b": [[6, 7]]}]
    if variable:
        ranks[1]["b"] = []
    parts = [make(rank, weighted=weighted) for rank in ranks]
    received = [parts[0].lengths(), parts[0].values()], [parts[1].lengths(), parts[1].values()]
    tensors = [torch.cat(pair) for pair in zip(*received, strict=True)]
    if variable:
        tensors.append(T([2, 2, 1, 0]))
    if weighted:
        tensors.append(torch.cat([part.weights() for part in parts]))
    kjt = KeyedJaggedTensor.dist_init(
        ["a", "b"],
        tensors,
        variable,
        2,
        T([0, 2, 1, 3]) if with_recat else None,
        None if variable else [2, 1],
    )
    assert kjt.to_lists() == {k: ranks[0][k] + ranks[1][k] for k in ("a", "b")}
    assert kjt.stride_per_key_per_rank() == ([[2, 1], [2, 0]] if variable else [])
    if weighted:
        assert torch.equal(kjt.weights(), kjt.values() / 2)


def test_order_of_single_bags_and_staggered_ranks():
    tensors = [T([1] * 6), T([10, 11, 20, 21, 30, 40])]
    kjt = KeyedJaggedTensor.dist_init(["a", "b"], tensors, False, 2, T([0, 1, 4, 2, 3, 5]), [2, 1])
    assert kjt.to_lists() == {"a": [[10], [11], [30]], "b": [[20], [21], [40]]}
    tensors = [T([1] * 7), T([10, 20, 21, 30, 31, 32, 40]), T([1, 2, 3, 1])]
    kjt = KeyedJaggedTensor.dist_init(["a"], tensors, True, 4, None, None, stagger=2)
    assert kjt.values().tolist() == [10, 30, 31, 32, 20, 21, 40]
    assert kjt.stride_per_key_per_rank() == [[1, 3, 2, 1]]


LENGTHS, VALUES = T([2, 0, 0, 1]), T([5, 6, 7])


def parts(**changes: object) -> dict[str, object]:
    return {"keys": ["u", "v"], "values": VALUES, "lengths": LENGTHS} | changes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (parts(lengths=None), ValueError, "`lengths` or `offsets` should be given"),
        (parts(keys=["u", "u"]), ValueError, "`keys` should be distinct. Received 'u' more than"),
        (parts(keys="uv"), TypeError, "`keys` should be a list of strings. Received 'uv'"),
        (parts(keys=["u", 1]), TypeError, "`keys` should be strings"),
        (parts(keys=["u", ["v"]]), TypeError, "`keys` should be strings"),
        (
            parts(keys=["u", "v", "w"]),
            ValueError,
            "`lengths` should be equally many numbers for each of 3 keys. Received 4",
        ),
        (parts(keys=[]), ValueError, "`keys` should name the 4 numbers of `lengths`"),
        (parts(stride=3), ValueError, "`lengths` should be 2 keys x stride 3 = 6 numbers"),
        (
            parts(lengths=T([1, 0, 0, 1])),
            ValueError,
            "`lengths` should sum to the number of values \\(3\\). "
            "Received a sum of 2: 1 for key 'u', 1 for key 'v'",
        ),
        (
            parts(lengths=T([2, 0, 2, -1])),
            ValueError,
            "`lengths` of key 'v' should be 0 or more. Received -1 in sample 1",
        ),
        (parts(lengths=LENGTHS.float()), TypeError, "`lengths` should be of dtype int32 or int64"),
        (
            parts(lengths=None, offsets=T([0, 2, 1, 2, 3])),
            ValueError,
            "`offsets` of key 'u' should never fall. Received 2 and then 1 in sample 1",
        ),
        (
            parts(offsets=T([0, 1, 2, 2, 3])),
            ValueError,
            "`offsets` should be the running sums of `lengths`",
        ),
        (parts(weights=T([1.0])), ValueError, "`weights` should be as many as the values \\(3\\)"),
        (
            parts(stride_per_key=[3, 2]),
            ValueError,
            "`stride_per_key` should sum to the number of lengths \\(4\\)",
        ),
        (
            parts(stride_per_key_per_rank=[[3], [1, 0]]),
            ValueError,
            "`stride_per_key_per_rank` should be \\[F, W\\]",
        ),
        (
            parts(stride_per_key_per_rank=[[5], [-1]]),
            ValueError,
            "`stride_per_key_per_rank` of key 'v' should be 0 or more",
        ),
        (
            parts(stride_per_key_per_rank=[[3], [1]], inverse_indices=(["u"], T([[0, 2]]))),
            ValueError,
            "`inverse_indices` should cover key 'v'",
        ),
        (
            parts(stride_per_key_per_rank=[[3], [1]], inverse_indices=(None, T([[0, 2], [0, 0]]))),
            TypeError,
            "The keys of `inverse_indices` should be a list of str. Received None",
        ),
        (
            parts(
                stride_per_key_per_rank=[[3], [1]],
                inverse_indices=(["u", "v"], T([[0, 2], [0, 1]])),
            ),
            ValueError,
            "`inverse_indices` of key 'v' should be in \\[0, 1\\), the size of its batch. Received 1",
        ),
        (parts(length_per_key=[1, 2]), ValueError, "`length_per_key` should be \\[2, 1\\]"),
        (parts(offset_per_key=[0, 1, 3]), ValueError, "`offset_per_key` should be \\[0, 2, 3\\]"),
        (parts(index_per_key={"u": 1, "v": 0}), ValueError, "`index_per_key` should be"),
    ],
)
def test_malformed_parts_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        KeyedJaggedTensor(**arguments)


KJT = make(LISTS)
OTHER = make({"z": [[1], [2], [3]]}, weighted=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KJT["x"], KeyError, "Key should be one of \\['a', 'b', 'c'\\]. Received 'x'"),
        (lambda: KJT.weights(), ValueError, "`weights` should be given to be read"),
        (lambda: KJT.inverse_indices(), ValueError, "`inverse_indices` should be given to be read"),
        (lambda: KJT.expand_inverse(), ValueError, "`inverse_indices` should be given to be read"),
        (lambda: KJT.split([1, 1]), ValueError, "`segments` should not be negative and sum to"),
        (lambda: KJT.split([4, -1]), ValueError, "`segments` should not be negative and sum to"),
        (
            lambda: KJT.permute([3]),
            IndexError,
            "`indices` should be in \\[0, 3\\)",
        ),
        (lambda: KeyedJaggedTensor.concat([]), ValueError, "`kjt_list` should hold at least one"),
        (
            lambda: KeyedJaggedTensor.concat([1]),
            TypeError,
            "`kjt_list` should be a list of Keyed",
        ),
        (
            lambda: KeyedJaggedTensor.concat([KJT, KJT]),
            ValueError,
            "`kjt_list` should hold each key once. Received 'a', 'b', 'c' again",
        ),
        (
            lambda: KeyedJaggedTensor.concat([KJT, OTHER]),
            ValueError,
            "`kjt_list` should be weighted in all parts or in none",
        ),
        (
            lambda: KeyedJaggedTensor.concat([KJT, make({"z": [[1]]})]),
            ValueError,
            "`kjt_list` should have batches of one size \\(3, of keys .*Received 1 for keys \\['z'\\]",
        ),
        (lambda: KeyedJaggedTensor.from_jt_dict({}), ValueError, "`jt_dict` should hold at least"),
        (
            lambda: KeyedJaggedTensor.from_jt_dict({"a": T([1])}),
            TypeError,
            "`jt_dict` should map strings to JaggedTensors. Received Tensor under key 'a'",
        ),
        (
            lambda: KeyedJaggedTensor.from_jt_dict({"a": KJT["a"], "z": OTHER["z"]}),
            ValueError,
            "`jt_dict` should be weighted in all JaggedTensors or in none",
        ),
        (lambda: make(LISTS).copy_(OTHER), ValueError, "`kjt` should have the keys"),
        (lambda: make(LISTS).copy_(JaggedTensor.empty()), TypeError, "`kjt` should be a Keyed"),
        (
            lambda: KeyedJaggedTensor.dist_init(["a"], [T([1])], False, 1, None, [1]),
            ValueError,
            "`tensors` should be lengths, values, and weights if there are any",
        ),
        (
            lambda: KeyedJaggedTensor.dist_init(["a"], [T([1]), T([1])], False, 2, None, [1]),
            ValueError,
            "`stride_per_rank` should be one size for each of 2 ranks",
        ),
        (
            lambda: KeyedJaggedTensor.dist_init(["a"], [T([1]), T([1])], False, 1, None, [2]),
            ValueError,
            "`tensors` should hold lengths for 1 keys from 1 ranks",
        ),
        (
            lambda: KeyedJaggedTensor.dist_init(["a"], [T([1]), T([1])], False, 1, T([0, 1]), [1]),
            ValueError,
            "`recat` should order the 1 blocks or the 1 bags received. Received 2",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_accelerator_is_never_waited_for():
    """Meta tensors have no numbers, so whatever works on them has read none."""
    kjt = KeyedJaggedTensor(
        ["a", "b"], torch.empty(5, device="meta"), lengths=torch.empty(4, dtype=int, device="meta")
    )
    assert kjt.stride() == 2
    assert kjt.offsets().shape == (5,)
    joined = KeyedJaggedTensor.concat(
        [kjt, KeyedJaggedTensor(["c", "d"], kjt.values(), lengths=kjt.lengths())]
    )
    assert joined.values().shape == (10,)
    with pytest.raises(ValueError, match="`lengths` should be equally many numbers for each of 3"):
        KeyedJaggedTensor(["a", "b", "c"], kjt.values(), lengths=kjt.lengths())
