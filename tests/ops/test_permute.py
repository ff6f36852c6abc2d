"""The permute operators: native against the reference, and both against lists."""

from __future__ import annotations

import pytest
import torch

from torchrec.ops import permute
from torchrec.ops._library import native as library
from torchrec.ops.permute import native, reference

T = torch.tensor
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")


ORDERS = [[], [0], [2, 0, 1], [1, 1, 0, 2], [2, 2]]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("lengths_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("strides", [2, 0, [3, 0, 1]], ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_keys_are_permuted(order, strides, lengths_dtype, dtype, weighted):
    each = strides if isinstance(strides, list) else [strides] * 3
    lengths = torch.randint(0, 4, (sum(each),), dtype=lengths_dtype)
    sizes = [int(part.sum()) for part in lengths.split(each)]
    values = torch.randint(0, 99, (sum(sizes),)).to(dtype)
    weights = torch.rand(sum(sizes)) if weighted else None
    found = permute.permute_jagged(lengths, values, weights, strides, order, sizes)

    def take(tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return torch.cat([tensor[:0], *(tensor.split(counts)[i] for i in order)])

    assert torch.equal(found[0], take(values, sizes))
    assert found[1] is None if weights is None else torch.equal(found[1], take(weights, sizes))
    assert torch.equal(found[2], take(lengths, each))
    total = sum(sizes[i] for i in order)
    expected = reference.permute_jagged(lengths, values, weights, each, order, total)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    assert found[0].dtype == dtype
    assert found[2].dtype == lengths_dtype


def test_sizes_may_be_left_out():
    lengths, values = T([1, 0, 2, 1]), T([5, 6, 7, 8])
    found = permute.permute_jagged(lengths, values, None, [2, 2], [1])
    assert found[0].tolist() == [6, 7, 8]


def test_rows_of_several_dimensions():
    values = torch.rand(4, 3, 2)
    found = permute.permute_jagged(T([1, 3]), values, None, 1, [1, 0], [1, 3])
    assert torch.equal(found[0], torch.cat([values[1:], values[:1]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
def test_columns_are_regrouped(rows, dtype):
    inputs = [torch.randint(0, 99, (rows, c)).to(dtype) for c in (3, 0, 130)]
    pieces, counts = [2, 100, 30, 0, 1, 2, 1, 0, 0, -1, 0, 4, 2, 0, 130, 2, 1, 1], [4, 0, 2]
    found = permute.regroup(inputs, pieces, counts)
    zeros = torch.zeros(rows, 4, dtype=dtype)
    assert torch.equal(found[0], torch.cat([inputs[2][:, 100:], inputs[0][:, 1:], zeros], 1))
    assert found[1].shape == (rows, 0)
    assert torch.equal(found[2], torch.cat([inputs[2], inputs[2][:, 1:2]], 1))
    for a, b in zip(found, reference.regroup(inputs, pieces, counts), strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_are_read_right():
    matrix = torch.rand(3, 4)
    (found,) = permute.regroup([matrix.t()], [0, 1, 2], [1])
    assert torch.equal(found, matrix.t()[:, 1:])
    lengths = T([[1, 9], [2, 9]])[:, 0]
    values = torch.rand(3, 2)[:, 0]
    found, _, _ = permute.permute_jagged(lengths, values, None, 1, [1, 0], [1, 2])
    assert torch.equal(found, values[[1, 2, 0]])


def test_gradients():
    check = torch.autograd.gradcheck
    lengths = T([2, 0, 3, 1])
    rows = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(6)

    def permuted(v: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = permute.permute_jagged(lengths, v, w, [1, 3], [1, 0, 1], [2, 4])
        only = permute.permute_jagged(lengths, ids, w, [1, 3], [1], [2, 4])
        return found[0], found[1], only[1]

    assert check(permuted, (rows, weights))
    a = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    # Columns read twice, overlapping, and never.
    pieces = [0, 1, 2, 1, 0, 2, 0, 2, 2, 0, 1, 2, -1, 0, 1]
    assert check(lambda x, y: tuple(permute.regroup([x, y], pieces, [2, 3])), (a, b))
    assert check(lambda x, y: permute.regroup([x, y], [1, 1, 1], [1])[0], (a, b))


@pytest.mark.parametrize("order", [[2], [-1], [0, 5]], ids=str)
def test_positions_are_checked(order):
    with pytest.raises(IndexError, match=r"`order` should hold positions in \[0, 2\)"):
        permute.permute_jagged(T([1, 1]), T([5, 6]), None, 1, order, [1, 1])


def test_one_stride_needs_sizes():
    with pytest.raises(ValueError, match="`sizes` should be given if `strides` is one number"):
        permute.permute_jagged(T([1, 1]), T([5, 6]), None, 1, [0])


@needs_native
def test_native_kernels_stay_inside_their_tensors():
    run = native.permute_jagged
    lengths, values = T([1, 1]), T([5, 6])
    with pytest.raises(ValueError, match=r"`strides` should sum to the number of lengths \(2\)"):
        run(lengths, values, None, [1, 2], [0], 1)
    with pytest.raises(ValueError, match=r"sum to values.size\(0\) \(1\)"):
        run(lengths, values[:1], None, [1, 1], [0], 1)
    with pytest.raises(ValueError, match=r"`weights` should be as many as the values \(2\)"):
        run(lengths, values, torch.ones(1), [1, 1], [0], 1)
    with pytest.raises(ValueError, match=r"`total` should be the number of values taken \(1\)"):
        run(lengths, values, None, [1, 1], [0], 2)
    with pytest.raises(IndexError, match=r"`order` should hold positions in \[0, 2\)"):
        run(lengths, values, None, [1, 1], [-1], 1)
    a, b = torch.ones(2, 3), torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"`counts` should sum to the number of pieces \(1\)"):
        native.regroup([a], [0, 0, 1], [2])
    with pytest.raises(ValueError, match=r"two-dimensional tensors of 2 rows and torch.float32"):
        native.regroup([a, b], [0, 0, 1], [1])
    for piece in ([0, 2, 2], [1, 0, 1], [0, -1, 1], [0, 0, -1]):
        with pytest.raises((IndexError, RuntimeError), match=r"pieces|negative"):
            native.regroup([a], piece, [1])
