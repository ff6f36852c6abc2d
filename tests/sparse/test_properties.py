"""The three sparse types against lists of lists in plain Python."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

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
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

Bags = list[list[float]]


@dataclass
class Case:
    """A batch as plain Python has it, and as we do."""

    bags: dict[str, Bags]
    weights: dict[str, Bags] | None
    values_dtype: torch.dtype
    lengths_dtype: torch.dtype
    kjt: KeyedJaggedTensor
    inverse: list[list[int]] | None = None

    @property
    def keys(self) -> list[str]:
        return list(self.bags)


def flat(bags: list[Bags]) -> list[float]:
    return [entry for of_key in bags for bag in of_key for entry in bag]


def counts(bags: list[Bags]) -> list[int]:
    return [len(bag) for of_key in bags for bag in of_key]


def running_sums(numbers: list[int]) -> list[int]:
    return [sum(numbers[:i]) for i in range(len(numbers) + 1)]


def dense(jt: JaggedTensor) -> Bags:
    return [bag.tolist() for bag in jt.to_dense()]


def bags_of(kjt: KeyedJaggedTensor, entries: torch.Tensor | None = None) -> list[Bags]:
    """The bags of each key in turn, read off the lengths: duplicates of a key are kept apart."""
    rest = (kjt.values() if entries is None else entries).tolist()
    lengths = kjt.lengths().tolist()
    bags = [
        [[rest.pop(0) for _ in range(lengths.pop(0))] for _ in range(stride)]
        for stride in kjt.stride_per_key()
    ]
    assert not rest
    assert not lengths
    return bags


NAMES = st.text("abcxyz_0 ", min_size=1, max_size=4)
WEIGHT = st.floats(-4, 4, width=32).filter(lambda w: w == w)


@st.composite
def cases(draw, min_keys: int = 0, variable: bool = False, weighted: bool | None = None) -> Case:
    keys = draw(st.lists(NAMES, unique=True, min_size=min_keys, max_size=5))
    dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.float32]))
    lengths_dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    top = 2**31 - 1 if dtype == torch.int32 else 2**20 if dtype.is_floating_point else 2**63 - 1
    ids = st.integers(0, 9) | st.integers(-top, top)
    entry = ids.map(float) if dtype.is_floating_point else ids
    batch = draw(st.integers(0, 4))
    bags = {}
    for key in keys:
        size = draw(st.integers(0, 4)) if variable else batch
        bag = st.lists(entry, max_size=4)
        bags[key] = draw(st.lists(bag, min_size=size, max_size=size))
    weights = None
    if draw(st.booleans()) if weighted is None else weighted:
        weights = {k: [[draw(WEIGHT) for _ in bag] for bag in v] for k, v in bags.items()}
    inverse = None
    if variable and keys and all(bags.values()) and draw(st.booleans()):
        full = draw(st.integers(0, 5))
        inverse = [[draw(st.integers(0, len(v) - 1)) for _ in range(full)] for v in bags.values()]
    how = draw(st.sampled_from(["lengths", "offsets", "both"]))
    numbers = counts(list(bags.values()))
    lengths = torch.tensor(numbers, dtype=lengths_dtype)
    offsets = torch.tensor(running_sums(numbers), dtype=lengths_dtype)
    kjt = KeyedJaggedTensor(
        keys=keys,
        values=torch.tensor(flat(list(bags.values())), dtype=dtype),
        weights=None
        if weights is None
        else torch.tensor(flat(list(weights.values())), dtype=torch.float32),
        lengths=None if how == "offsets" else lengths,
        offsets=None if how == "lengths" else offsets,
        stride_per_key_per_rank=[[len(v)] for v in bags.values()] if variable else None,
        inverse_indices=None
        if inverse is None
        else (keys, torch.tensor(inverse, dtype=torch.int64)),
    )
    return Case(bags, weights, dtype, lengths_dtype, kjt, inverse)


def assert_holds(kjt: KeyedJaggedTensor, case: Case, keys: list[str]) -> None:
    """Every reader of ``kjt`` says what plain Python says of these keys of the case."""
    bags = [case.bags[key] for key in keys]
    lengths = [sum(counts([of_key])) for of_key in bags]
    strides = [len(of_key) for of_key in bags]
    assert kjt.keys() == keys
    assert kjt.values().tolist() == flat(bags)
    assert kjt.values().dtype == case.values_dtype
    assert kjt.lengths().tolist() == counts(bags)
    assert kjt.lengths().dtype == case.lengths_dtype
    assert kjt.offsets().tolist() == running_sums(counts(bags))
    assert kjt.length_per_key() == lengths
    assert kjt.offset_per_key() == running_sums(lengths)
    assert kjt.stride_per_key() == strides
    assert kjt.lengths_offset_per_key() == running_sums(strides)
    if len(set(keys)) == len(keys):
        assert kjt.index_per_key() == {key: i for i, key in enumerate(keys)}
        assert validate_keyed_jagged_tensor(kjt)
    if case.weights is None:
        assert kjt.weights_or_none() is None
    else:
        assert kjt.weights().tolist() == flat([case.weights[key] for key in keys])


@given(cases())
def test_what_is_put_in_can_be_read(case):
    kjt = case.kjt
    assert_holds(kjt, case, case.keys)
    if case.keys:
        assert kjt.stride() == len(case.bags[case.keys[0]])
    assert not kjt.variable_stride_per_key()
    assert_holds(kjt.sync(), case, case.keys)
    assert_holds(kjt.unsync(), case, case.keys)


@given(cases())
def test_every_key_is_a_jagged_tensor(case):
    by_key = case.kjt.to_dict()
    assert list(by_key) == case.keys
    for key, bags in case.bags.items():
        for jt in (by_key[key], case.kjt[key], ComputeKJTToJTDict()(case.kjt)[key]):
            assert dense(jt) == bags
            assert jt.lengths().tolist() == counts([bags])
            assert jt.offsets().tolist() == running_sums(counts([bags]))
            if case.weights is None:
                assert jt.weights_or_none() is jt.to_dense_weights() is None
            else:
                assert [bag.tolist() for bag in jt.to_dense_weights()] == case.weights[key]


@given(cases(min_keys=1))
def test_jagged_tensors_make_up_a_keyed_one(case):
    by_key = case.kjt.to_dict()
    assert_holds(KeyedJaggedTensor.from_jt_dict(by_key), case, case.keys)
    backwards = dict(reversed(by_key.items()))
    assert_holds(ComputeJTDictToKJT()(backwards), case, case.keys[::-1])


@given(cases(), st.data())
def test_split_cuts_the_keys_into_runs(case, data):
    segments, left = [], len(case.keys)
    while left or (len(segments) < 2 and data.draw(st.booleans())):
        segments.append(data.draw(st.integers(0, left)))
        left -= segments[-1]
        if len(segments) > 8:
            segments.append(left)
            break
    parts = case.kjt.split(segments)
    assert len(parts) == len(segments)
    start = 0
    for part, size in zip(parts, segments, strict=True):
        assert_holds(part, case, case.keys[start : start + size])
        assert part.stride() == case.kjt.stride()
        start += size


@given(cases(min_keys=1), st.data())
def test_permute_takes_keys_by_position(case, data):
    order = data.draw(st.lists(st.integers(0, len(case.keys) - 1), max_size=7))
    keys = [case.keys[i] for i in order]
    taken = case.kjt.permute(order)
    assert_holds(taken, case, keys)
    assert bags_of(taken) == [case.bags[key] for key in keys]
    assert_holds(case.kjt.permute(order, torch.tensor(order, dtype=torch.int32)), case, keys)


@given(cases(min_keys=1), st.data())
def test_concat_joins_what_split_cut(case, data):
    cut = data.draw(st.integers(0, len(case.keys)))
    parts = case.kjt.split([cut, len(case.keys) - cut])
    assert_holds(KeyedJaggedTensor.concat(parts), case, case.keys)
    whole = KeyedJaggedTensor.concat(parts[::-1])
    assert_holds(whole, case, case.keys[cut:] + case.keys[:cut])
    assert whole.stride() == case.kjt.stride()


@given(cases(variable=True, min_keys=1), st.data())
def test_batches_that_differ_by_key(case, data):
    kjt = case.kjt
    assert kjt.variable_stride_per_key()
    assert kjt.stride_per_key_per_rank() == [[len(bags)] for bags in case.bags.values()]
    assert_holds(kjt, case, case.keys)
    assert {key: dense(jt) for key, jt in kjt.to_dict().items()} == case.bags
    order = data.draw(st.lists(st.integers(0, len(case.keys) - 1), min_size=1, unique=True))
    keys = [case.keys[i] for i in order]
    taken = kjt.permute(order)
    assert_holds(taken, case, keys)
    cut = data.draw(st.integers(0, len(case.keys)))
    head, tail = kjt.split([cut, len(case.keys) - cut])
    assert_holds(head, case, case.keys[:cut])
    assert_holds(tail, case, case.keys[cut:])
    again = KeyedJaggedTensor.from_jt_dict(kjt.to_dict())
    assert_holds(again, case, case.keys)
    assert_holds(
        KeyedJaggedTensor.concat([kjt, KeyedJaggedTensor.empty_like(kjt)]), case, case.keys
    )
    if case.inverse is not None:
        of_keys, inverse = kjt.inverse_indices()
        assert of_keys == case.keys
        assert inverse.tolist() == case.inverse
        assert kjt.stride() == len(case.inverse[0])


@given(cases(variable=True, min_keys=1).filter(lambda case: case.inverse is not None), st.data())
def test_inverse_indices_give_the_full_batch(case, data):
    order = data.draw(st.permutations(range(len(case.keys))))
    for kjt in (case.kjt, case.kjt.permute(list(order))):
        full = kjt.expand_inverse()
        rows = dict(zip(case.keys, case.inverse, strict=True))
        assert full.keys() == kjt.keys()
        for key in case.keys:
            assert dense(full[key]) == [case.bags[key][row] for row in rows[key]]
            if case.weights is not None:
                expected = [case.weights[key][row] for row in rows[key]]
                assert [w.tolist() for w in full[key].to_dense_weights()] == expected


@given(cases())
def test_lists_there_and_back(case):
    if case.values_dtype == torch.float32:
        case.kjt = KeyedJaggedTensor.from_lists({})
        return
    built = KeyedJaggedTensor.from_lists(case.bags, case.weights, dtype=case.values_dtype)
    assert built.to_lists() == case.kjt.to_lists() == case.bags
    assert bags_of(built) == list(case.bags.values())
    if case.weights is not None:
        assert bags_of(built, built.weights()) == list(case.weights.values())


@given(cases(variable=True))
def test_variable_batches_as_lists(case):
    assert case.kjt.to_lists() == case.bags


def printed(bags: dict[str, Bags], weights: dict[str, Bags] | None) -> str:
    if not bags:
        return "KeyedJaggedTensor()"
    of_keys = []
    for key, of_key in bags.items():
        body = str(of_key)
        if weights is not None:
            body = f'{{\n        "values": {of_key},\n        "weights": {weights[key]}\n    }}'
        of_keys.append(f'    "{key}": {body}')
    return "KeyedJaggedTensor({\n" + ",\n".join(of_keys) + "\n})"


@given(cases() | cases(variable=True))
def test_printed_form(case):
    weights = case.weights
    assert str(case.kjt).rstrip("\n") == printed(case.bags, weights)
    for key, bags in case.bags.items():
        body = (
            f"    {bags}"
            if weights is None
            else f'    "values": {bags},\n    "weights": {weights[key]}'
        )
        assert str(case.kjt[key]).rstrip("\n") == f"JaggedTensor({{\n{body}\n}})"


@given(cases() | cases(variable=True, min_keys=1))
def test_pytrees(case):
    leaves, spec = tree_flatten(case.kjt)
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert_holds(tree_unflatten(leaves, spec), case, case.keys)
    doubled = tree_map(lambda t: t if t is None else t.clone(), {"x": [case.kjt]})["x"][0]
    assert_holds(doubled, case, case.keys)
    assert (
        doubled.values().data_ptr() != case.kjt.values().data_ptr() or not doubled.values().numel()
    )
    for key, bags in case.bags.items():
        leaves, spec = tree_flatten(case.kjt[key])
        assert dense(tree_unflatten(leaves, spec)) == bags


@given(cases() | cases(variable=True))
def test_copies(case):
    kjt = case.kjt
    target = tree_map(lambda t: torch.zeros_like(t) if isinstance(t, torch.Tensor) else t, kjt)
    assert target.copy_(kjt) is target
    assert_holds(target, case, case.keys)
    for same in (kjt.to(torch.device("cpu")), kjt.flatten_lengths()):
        assert_holds(same, case, case.keys)
        assert kjt_is_equal(same, kjt)
    there = kjt.to(torch.device("meta"))
    assert there.keys() == case.keys
    assert there.values().shape == kjt.values().shape
    half = kjt.to(torch.device("cpu"), dtype=torch.float16)
    assert case.weights is None or half.weights().dtype == torch.float16
    assert half.values().dtype == case.values_dtype


@given(cases(min_keys=1), st.data())
def test_equality_sees_every_difference(case, data):
    kjt = case.kjt
    assert kjt_is_equal(kjt, tree_map(lambda t: t if t is None else t.clone(), kjt))
    if case.keys[::-1] != case.keys:
        assert not kjt_is_equal(kjt, kjt.permute(list(range(len(case.keys)))[::-1]))
    if kjt.values().numel():
        other = tree_map(lambda t: t if t is None else t.clone(), kjt)
        place = data.draw(st.integers(0, kjt.values().numel() - 1))
        other.values()[place] = 5 if kjt.values()[place] != 5 else 6
        assert not kjt_is_equal(kjt, other)
        changed = [not jt_is_equal(kjt[key], other[key]) for key in case.keys]
        assert sum(changed) == 1


@given(st.lists(cases(), max_size=3))
def test_lists_of_keyed_jagged_tensors_as_flat_lists(batch):
    flattened = flatten_kjt_list([case.kjt for case in batch])
    for case, kjt in zip(batch, unflatten_kjt_list(*flattened), strict=True):
        assert_holds(kjt, case, case.keys)


@given(cases())
def test_empties(case):
    like = KeyedJaggedTensor.empty_like(case.kjt)
    assert like.keys() == []
    assert like.values().dtype == case.values_dtype
    assert like.values().numel() == like.lengths().numel() == 0
    assert (like.weights_or_none() is None) == (case.weights is None)
    for key in case.keys:
        jt = JaggedTensor.empty_like(case.kjt[key])
        assert dense(jt) == []
        assert jt.values().dtype == case.values_dtype


# ---- JaggedTensor


@given(cases(min_keys=1), st.data())
def test_padded_dense(case, data):
    key = case.keys[0]
    jt, bags = case.kjt[key], case.bags[key]
    width = data.draw(st.none() | st.integers(0, 6))
    padding = float(data.draw(st.integers(-3, 3)))
    longest = max(counts([bags]), default=0) if width is None else width

    def pad(bag: list[float]) -> list[float]:
        return (bag + [padding] * longest)[:longest]

    padded = jt.to_padded_dense(width, padding)
    assert padded.shape == (len(bags), longest)
    assert padded.dtype == case.values_dtype
    assert padded.tolist() == [pad(bag) for bag in bags]
    of_weights = jt.to_padded_dense_weights(width, padding)
    if case.weights is None:
        assert of_weights is None
    else:
        assert of_weights.tolist() == [pad(bag) for bag in case.weights[key]]
    if width is None:
        weights = of_weights
        back = JaggedTensor.from_dense_lengths(padded, jt.lengths(), weights)
        assert jt_is_equal(back, jt)


@given(cases(min_keys=1))
def test_dense_there_and_back(case):
    jt = case.kjt[case.keys[0]]
    if jt.lengths().numel() == 0:
        return
    back = JaggedTensor.from_dense(jt.to_dense(), jt.to_dense_weights())
    assert dense(back) == case.bags[case.keys[0]]
    assert back.values().dtype == case.values_dtype
    assert torch.equal(back.lengths(), jt.lengths())
    if case.weights is not None:
        assert [w.tolist() for w in back.to_dense_weights()] == case.weights[case.keys[0]]


# ---- KeyedTensor


@st.composite
def keyed_tensors(draw, keys: list[str] | None = None, batch: int | None = None):
    """For each key B rows of numbers, and the KeyedTensor that holds them side by side."""
    keys = draw(st.lists(NAMES, unique=True, min_size=1, max_size=5)) if keys is None else keys
    batch = draw(st.integers(0, 4)) if batch is None else batch
    number = st.integers(-9, 9).map(float)
    rows = {}
    for key in keys:
        dim = draw(st.integers(0, 3))
        row = st.lists(number, min_size=dim, max_size=dim)
        rows[key] = (dim, draw(st.lists(row, min_size=batch, max_size=batch)))
    tensors = [torch.tensor(of_key).reshape(batch, dim) for dim, of_key in rows.values()]
    kt = KeyedTensor(keys, [dim for dim, _ in rows.values()], torch.cat(tensors, 1))
    return {key: of_key for key, (_, of_key) in rows.items()}, tensors, kt


@given(keyed_tensors())
def test_keyed_tensors_hold_columns(case):
    rows, tensors, kt = case
    for same in (kt, KeyedTensor.from_tensor_list(list(rows), tensors), kt.to(torch.device("cpu"))):
        assert same.keys() == list(rows)
        assert same.length_per_key() == [t.size(1) for t in tensors]
        assert same.offset_per_key() == running_sums([t.size(1) for t in tensors])
        assert {key: t.tolist() for key, t in same.to_dict().items()} == rows
        assert {key: same[key].tolist() for key in rows} == rows
        assert same.key_dim() == 1
    body = ",\n".join(f'    "{key}": {of_key}' for key, of_key in rows.items())
    assert str(kt).rstrip("\n") == f"KeyedTensor({{\n{body}\n}})"
    leaves, spec = tree_flatten(kt)
    again = tree_unflatten(leaves, spec)
    assert {key: t.tolist() for key, t in again.to_dict().items()} == rows


@given(st.data())
def test_regroup_joins_columns_of_several(data):
    keys = data.draw(st.lists(NAMES, unique=True, min_size=1, max_size=6))
    cut = data.draw(st.integers(0, len(keys)))
    batch = data.draw(st.integers(0, 3))
    first = data.draw(keyed_tensors(keys[:cut], batch)) if cut else None
    second = data.draw(keyed_tensors(keys[cut:], batch)) if cut < len(keys) else None
    given_ = [case for case in (first, second) if case is not None]
    rows = {key: of_key for case in given_ for key, of_key in case[0].items()}
    groups = data.draw(
        st.lists(st.lists(st.sampled_from(keys), min_size=1, max_size=4), min_size=1, max_size=4)
    )
    kts = [case[2] for case in given_]
    expected = [
        [[number for key in group for number in rows[key][i]] for i in range(batch)]
        for group in groups
    ]
    assert [t.tolist() for t in KeyedTensor.regroup(kts, groups)] == expected
    names = [f"group {i}" for i in range(len(groups))]
    by_name = KeyedTensor.regroup_as_dict(kts, groups, names)
    assert {name: t.tolist() for name, t in by_name.items()} == dict(
        zip(names, expected, strict=True)
    )
