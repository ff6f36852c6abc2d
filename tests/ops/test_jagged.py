"""The jagged operators: native against the reference, and both against lists."""

from __future__ import annotations

import pytest
import torch

from torchrec.ops import jagged
from torchrec.ops._library import native as library
from torchrec.ops.jagged import native, reference

T = torch.tensor
INTEGERS = [torch.int32, torch.int64]
DTYPES = [torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
BAGS = {
    "empty": [],
    "one_empty_bag": [0],
    "one": [3],
    "ends_empty": [0, 2, 1, 0],
    "all_empty": [0, 0, 0],
    "long": [300, 0, 1, 17, 2],
}
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")


def rows_of(lengths: list[int], dtype: torch.dtype, shape: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.randint(-99, 99, (sum(lengths), *shape)).to(dtype)


class Named(torch.Tensor):
    """A subclass that changes nothing."""


def bags_of(values: torch.Tensor, lengths: list[int]) -> list[list[object]]:
    return [bag.tolist() for bag in values.split(lengths)] if lengths else []


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("lengths", BAGS.values(), ids=BAGS)
def test_lengths_and_offsets_are_inverse(lengths, dtype):
    tensor = T(lengths, dtype=dtype)
    offsets = jagged.lengths_to_offsets(tensor)
    assert offsets.dtype == dtype
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert torch.equal(jagged.offsets_to_lengths(offsets), tensor)
    assert torch.equal(offsets, reference.lengths_to_offsets(tensor))


def test_strided_lengths_are_read_right():
    wide = T([[1, 9], [2, 9], [3, 9]])
    assert jagged.lengths_to_offsets(wide[:, 0]).tolist() == [0, 1, 3, 6]
    assert jagged.sum_groups(wide[:, 0], [1, 2]) == [1, 5]
    assert jagged.lengths_fit(wide[:, 0], 6)


@needs_native
def test_int32_offsets_do_not_overflow():
    lengths = torch.full((3,), 2**30, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"`lengths` of dtype torch.int32 should sum to less"):
        jagged.lengths_to_offsets(lengths)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_sums_of_groups(dtype):
    lengths = T([1, 0, 2, 3, 4, 0], dtype=dtype)
    assert jagged.sum_equal_groups(lengths, 3) == [1, 5, 4]
    assert jagged.sum_groups(lengths, [0, 4, 2]) == [0, 6, 4]
    assert jagged.sum_equal_groups(lengths[:0], 2) == [0, 0]
    assert jagged.sum_groups(lengths[:0], []) == []
    with pytest.raises(ValueError, match=r"`sizes` should sum to the number of lengths \(6\)"):
        jagged.sum_groups(lengths, [1, 2])


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    ("lengths", "total", "fit"),
    [([1, 2], 3, True), ([1, 2], 4, False), ([], 0, True), ([-1, 4], 3, False), ([], 1, False)],
)
def test_lengths_fit(lengths, total, fit, dtype):
    tensor = T(lengths, dtype=dtype)
    assert jagged.lengths_fit(tensor, total) is fit
    meta_like = torch.nn.Parameter(tensor, requires_grad=False)  # not plain: the other way
    assert jagged.lengths_fit(meta_like, total) is fit


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    ("offsets", "total", "fit"),
    [
        ([0, 1, 3], 3, True),
        ([0], 0, True),
        ([], 0, False),
        ([1, 3], 3, False),
        ([0, 2, 1], 1, False),
        ([0, 2], 3, False),
    ],
)
def test_offsets_fit(offsets, total, fit, dtype):
    tensor = T(offsets, dtype=dtype)
    assert jagged.offsets_fit(tensor, total) is fit
    assert jagged.offsets_fit(torch.nn.Parameter(tensor, requires_grad=False), total) is fit


FITTING = {
    "lengths": (["a", "b"], T([5, 6, 7]), None, T([1, 0, 2, 0]), None),
    "int32": (["a"], T([5, 6, 7]), None, T([1, 0, 2], dtype=torch.int32), None),
    "offsets": (["a", "b"], T([5, 6, 7]), None, None, T([0, 1, 3])),
    "weights": (["a"], T([5, 6]), torch.ones(2), T([1, 1]), None),
    "strided weights": (["a"], T([5, 6]), torch.ones(2, 2)[:, 0], T([1, 1]), None),
    "rows": (["a"], torch.ones(2, 3, requires_grad=True), None, T([1, 1]), None),
    "no bags": (["a"], T([]), None, T([], dtype=torch.int64), None),
    "many keys": ([f"{i}" for i in range(500)], T([5]), None, T([1] + [0] * 499), None),
}


@needs_native
@pytest.mark.parametrize("parts", FITTING.values(), ids=FITTING)
def test_bags_that_surely_fit(parts):
    assert jagged.bags_surely_fit(*parts)


LENGTHS, VALUES = T([1, 1]), T([5, 6])
NOT_SURE = {
    "no keys": ([], VALUES, None, LENGTHS, None),
    "keys are None": (None, VALUES, None, LENGTHS, None),
    "a tuple": (("a", "b"), VALUES, None, LENGTHS, None),
    "a key that is no string": (["a", 1], VALUES, None, LENGTHS, None),
    "the same key": (["a", "a"], VALUES, None, LENGTHS, None),
    "an equal key": (["ab", "".join(["a", "b"])], VALUES, None, LENGTHS, None),
    "one of many keys again": ([f"{i % 499}" for i in range(500)], T([]), None, T([0] * 500), None),
    "keys do not divide lengths": (["a", "b", "c"], VALUES, None, LENGTHS, None),
    "keys do not divide offsets": (["a", "b"], VALUES, None, None, T([0, 2])),
    "no offsets": (["a"], T([]), None, None, T([], dtype=torch.int64)),
    "neither": (["a"], VALUES, None, None, None),
    "both": (["a"], VALUES, None, LENGTHS, T([0, 1, 2])),
    "another sum": (["a"], VALUES, None, T([1, 2]), None),
    "a negative length": (["a"], VALUES, None, T([3, -1]), None),
    "offsets that fall": (["a"], VALUES, None, None, T([0, 3, 2])),
    "lengths of floats": (["a"], VALUES, None, T([1.0, 1.0]), None),
    "lengths of int16": (["a"], VALUES, None, T([1, 1], dtype=torch.int16), None),
    "lengths in two dimensions": (["a"], VALUES, None, T([[1, 1]]), None),
    "strided lengths": (["a"], VALUES, None, T([[1, 9], [1, 9]])[:, 0], None),
    "lengths without memory": (["a"], VALUES, None, torch._efficientzerotensor(2), None),
    "lengths of a subclass": (["a"], VALUES, None, LENGTHS.as_subclass(Named), None),
    "lengths elsewhere": (["a"], VALUES, None, LENGTHS.to("meta"), None),
    "lengths that are a list": (["a"], VALUES, None, [1, 1], None),
    "values elsewhere": (["a"], VALUES.to("meta"), None, LENGTHS, None),
    "values that are none": (["a"], None, None, LENGTHS, None),
    "a scalar": (["a"], T(5), None, T([1]), None),
    "more weights": (["a"], VALUES, torch.ones(3), LENGTHS, None),
    "a weight": (["a"], VALUES, T(1.0), LENGTHS, None),
    "weights of a subclass": (["a"], VALUES, torch.ones(2).as_subclass(Named), LENGTHS, None),
    "sparse values": (["a"], torch.eye(2).to_sparse(), None, LENGTHS, None),
}


@pytest.mark.parametrize("parts", NOT_SURE.values(), ids=NOT_SURE)
def test_bags_that_may_not_fit(parts):
    assert not jagged.bags_surely_fit(*parts)


@pytest.mark.parametrize(
    ("keys", "distinct"),
    [
        (["a"], True),
        (["a", "b", "ab"], True),
        ([f"{i}" for i in range(500)], True),
        ([f"{i % 499}" for i in range(500)], False),
        (["ab", "".join(["a", "b"])], False),
        (["a", 1], False),
        (["a", None], False),
        (("a", "b"), False),
        ([], False),
    ],
    ids=lambda value: str(value)[:12],
)
def test_keys_that_are_surely_distinct(keys, distinct):
    assert jagged.are_surely_distinct(keys) is (distinct and library is not None)


def test_bags_under_a_transform_may_not_fit():
    def each(values, lengths):
        assert not jagged.bags_surely_fit(["a"], values, None, lengths, None)
        return values

    torch.func.vmap(each)(torch.ones(2, 2), T([[1, 1], [1, 1]]))


@pytest.mark.parametrize("index_dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("lengths_dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)], ids=str)
def test_index_select_takes_bags(shape, dtype, lengths_dtype, index_dtype):
    lengths = BAGS["long"]
    values, tensor = rows_of(lengths, dtype, shape), T(lengths, dtype=lengths_dtype)
    bags = [3, 0, 1, 3, 4, 0]
    index = T(bags, dtype=index_dtype)
    taken, taken_lengths = jagged.jagged_index_select(values, tensor, index)
    whole = bags_of(values, lengths)
    assert taken_lengths.dtype == lengths_dtype
    assert bags_of(taken, taken_lengths.tolist()) == [whole[b] for b in bags]
    expected = reference.jagged_index_select(values, tensor, index, taken.size(0))
    assert torch.equal(taken, expected[0])
    assert torch.equal(taken_lengths, expected[1])


def test_index_select_of_nothing():
    none = T([], dtype=torch.int64)
    assert jagged.jagged_index_select(T([5]), T([1]), none)[0].tolist() == []
    assert jagged.jagged_index_select(none, none, none)[1].tolist() == []


@pytest.mark.parametrize("width", [0, 1, 2, 400])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
@pytest.mark.parametrize("lengths", BAGS.values(), ids=BAGS)
def test_padded_and_back(lengths, shape, dtype, width):
    values = rows_of(lengths, dtype, shape)
    offsets = jagged.lengths_to_offsets(T(lengths, dtype=torch.int32))
    padded = jagged.jagged_to_padded(values, offsets, width, 7)
    assert torch.equal(padded, reference.jagged_to_padded(values, offsets, width, 7))
    for row, bag in zip(padded, values.split(lengths), strict=True):
        held = min(width, len(bag))
        assert torch.equal(row[:held], bag[:held])
        assert (row[held:] == 7).all()
    back = jagged.padded_to_jagged(padded, offsets, sum(lengths))
    assert torch.equal(back, reference.padded_to_jagged(padded, offsets, sum(lengths)))
    if width == 400:
        assert torch.equal(back, values)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no bags", "no columns"])
def test_rows_without_elements_may_have_any_width(shape):
    bags, columns = shape
    values, offsets, width = torch.zeros(bags, columns), torch.arange(bags + 1), 2**60
    for module in (jagged, reference):
        padded = module.jagged_to_padded(values, offsets, width, 0.0)
        assert padded.shape == (bags, width, columns)
        assert module.padded_to_jagged(padded, offsets, bags).shape == (bags, columns)


@pytest.mark.parametrize("shape", [(), (2,)], ids=str)
def test_gradients(shape):
    lengths, offsets = T([2, 0, 3, 1]), T([0, 2, 2, 5, 6])
    values = torch.rand(6, *shape, dtype=torch.float64, requires_grad=True)
    padded = torch.rand(4, 2, *shape, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda v: jagged.jagged_index_select(v, lengths, T([2, 2, 0]))[0], (values,))
    assert check(lambda v: jagged.jagged_to_padded(v, offsets, 2, 1.0), (values,))
    assert check(lambda p: jagged.padded_to_jagged(p, offsets, 6), (padded,))


def test_results_do_not_depend_on_threads():
    lengths = torch.randint(0, 50, (9000,))
    values = torch.rand(int(lengths.sum()), 2)
    order = torch.randperm(9000)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(jagged.jagged_index_select(values, lengths, order)[0])
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


OFFSETS = T([0, 1, 3])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jagged.lengths_to_offsets(T([1.0])), TypeError, "`lengths` should be a one-dim"),
        (lambda: jagged.offsets_to_lengths(T([[0]])), TypeError, "`offsets` should be a one-dim"),
        (
            lambda: jagged.jagged_index_select(T([5, 6]), T([1, 1]), T([2])),
            IndexError,
            "out of range",
        ),
        (
            lambda: jagged.jagged_index_select(T([5, 6]), T([1, 1]), T([1]), 2),
            ValueError,
            "`total` should be the number of values taken \\(1\\). Received 2",
        ),
        (
            lambda: jagged.jagged_to_padded(T([5, 6, 7]), OFFSETS, -1),
            ValueError,
            "`width` should be 0 or more. Received -1",
        ),
        (
            lambda: jagged.jagged_to_padded(T([5, 6, 7]), OFFSETS, 2, 0.5),
            ValueError,
            "`padding` should be a number of torch.int64",
        ),
        (
            lambda: jagged.padded_to_jagged(T([[5, 6]]), OFFSETS, 3),
            ValueError,
            "`padded` should be \\[B, L, ...\\] with B = 2",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_native
@pytest.mark.parametrize("offsets", [[0, 9, 3], [-5, 3], [0, 2], [1, 3]], ids=str)
def test_native_kernels_stay_inside_their_tensors(offsets):
    message = r"`offsets` should start at 0, never fall and end at the number of values \(3\)"
    with pytest.raises(ValueError, match=message):
        native.jagged_to_padded(T([5, 6, 7]), T(offsets), 2, 0.0)
    with pytest.raises(ValueError, match=message):
        native.padded_to_jagged(torch.zeros(len(offsets) - 1, 2), T(offsets), 3)
    with pytest.raises(ValueError, match="`lengths` should not be negative and sum to"):
        native.jagged_index_select(T([5]), T([1, 9]), T([0]), 1)
    with pytest.raises(IndexError, match=r"`bags` should be in \[0, 2\)"):
        native.jagged_index_select(T([5]), T([1, 0]), T([-1]), 1)


@pytest.mark.parametrize("samples_dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("values_dtype", [torch.int64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (3,)], ids=["scalars", "rows"])
@pytest.mark.parametrize(
    "lengths",
    [[[1, 1, 1], [0, 2, 1]], [[0, 0], [0, 0]], [[1], [1], [1]], [[300, 1, 0, 2]]],
    ids=str,
)
def test_samples_of_every_key_against_lists(lengths, shape, values_dtype, dtype, samples_dtype):
    flat = [n for row in lengths for n in row]
    values = rows_of(flat, values_dtype, shape)
    weights = rows_of(flat, torch.float64)
    stride = len(lengths[0])
    samples = [stride - 1, 0, 0, stride // 2]
    of_key, of_weight = (
        [
            bags_of(x, row)
            for x, row in zip(rows.split([sum(r) for r in lengths]), lengths, strict=True)
        ]
        for rows in (values, weights)
    )
    for sizes in ([4], [1, 3], [2, 0, 2], None):
        parts = T(samples).split(sizes or [4])
        chosen = [(key, s) for part in parts for key in range(len(lengths)) for s in part.tolist()]
        got, got_weights, got_lengths = jagged.keyed_index_select(
            values, weights, T(lengths, dtype=dtype), T(samples, dtype=samples_dtype), sizes
        )
        assert got.dtype == values_dtype
        assert got_lengths.dtype == dtype
        assert got_lengths.tolist() == [lengths[key][s] for key, s in chosen]
        assert got.tolist() == [x for key, s in chosen for x in of_key[key][s]]
        assert got_weights.tolist() == [x for key, s in chosen for x in of_weight[key][s]]


def test_samples_of_every_key_on_many_threads_and_with_gradients():
    lengths = torch.randint(0, 3, (7, 40_000))
    lengths[3] = 1
    values = torch.randn(int(lengths.sum()), requires_grad=True)
    samples = torch.randperm(40_000)[:30_000]
    plain, _, _ = jagged.keyed_index_select(values.detach(), None, lengths, samples, [10_000] * 3)
    traced, _, _ = jagged.keyed_index_select(values, None, lengths, samples, [10_000] * 3)
    assert torch.equal(plain, traced)
    traced.sum().backward()
    taken = torch.zeros(40_000)
    taken[samples] = 1
    assert torch.equal(values.grad, taken.repeat(7).repeat_interleave(lengths.flatten()))


def test_samples_that_do_not_fit_are_refused():
    values, lengths = torch.arange(3), T([[1, 0], [1, 1]])
    select = jagged.keyed_index_select
    for wrong in (-1, 2):
        with pytest.raises(IndexError, match=r"`samples` should be in \[0, 2\), the batch"):
            select(values, None, lengths, T([0, wrong]))
    with pytest.raises(
        ValueError, match=r"`sizes` should not be negative and sum .* \(1\)\. Received \[2\]"
    ):
        select(values, None, lengths, T([0]), [2])
    with pytest.raises(ValueError, match=r"`lengths` should have the dimensions \[keys, B\]"):
        select(values, None, lengths.flatten(), T([0]))
    with pytest.raises(
        ValueError, match=r"a weight for each of the 3 values\. Received .* and 2 weights"
    ):
        select(values, torch.ones(2), lengths, T([0]))
    with pytest.raises(TypeError, match=r"`samples` should be a one-dimensional int32 or int64"):
        select(values, None, lengths, T([0.5]))


@needs_native
def test_lengths_that_do_not_fit_the_values_are_refused():
    for lengths in ([[1, 0], [1, 2]], [[1, -1], [2, 1]]):
        with pytest.raises(
            ValueError, match=r"`lengths` should not be negative and sum to .*\(3\)"
        ):
            jagged.keyed_index_select(torch.arange(3), None, T(lengths), T([0]))
